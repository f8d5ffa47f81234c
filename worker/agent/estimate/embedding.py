"""RAM of a replica that embeds with llama.cpp: the formulas, as found by measuring.

They describe the context that worker/engines/llama_embedding.py makes: all tokens of a batch are
outputs, an encoder reads an input in one piece, a causal model 512 tokens at a time out of one
KV cache that all inputs share. The rest is as in worker/agent/llamacpp_memory.py.
"""

from dataclasses import dataclass
from pathlib import Path

from worker.agent import llamacpp_memory
from worker.agent.footprint import MIB, Estimate, round_up
from worker.agent.gguf_header import GgufHeader, read_header
from worker.agent.gguf_shape import ENCODERS, Shape, read_shape

_BATCH_TOKENS = 512
_F32_BYTES, _F16_BYTES = 4, 2
_RESERVE_BYTES = 12 * MIB
"""Measured replicas were up to 4 MiB above the formulas."""


@dataclass(frozen=True, slots=True)
class EmbeddingFootprint:
    """See `worker.agent.footprint.Footprint`."""

    shape: Shape
    weights_bytes: int
    is_causal: bool
    trained_context_length: int
    max_slots: int = 256
    """LLAMA_MAX_SEQ"""

    def estimate(self, *, context_length: int, slots: int, quant: str) -> Estimate:
        # The engine takes no input that is longer than what the model was trained on.
        longest = min(context_length, self.trained_context_length or context_length)
        cells = round_up(max(_BATCH_TOKENS, longest), llamacpp_memory.CELL_STEP)
        tokens = _BATCH_TOKENS if self.is_causal else cells
        cache_bytes = 0
        if not self.is_encoder:
            token_bytes = llamacpp_memory.cache_token_bytes(self.shape, quant)
            cache_bytes = cells * token_bytes + slots * self.shape.state * _F32_BYTES
        return Estimate(
            weights_bytes=self.weights_bytes,
            kv_cache_bytes=cache_bytes,
            scratch_bytes=self._scratch_bytes(cells, tokens, slots),
            process_bytes=llamacpp_memory.process_bytes(slots),
        )

    @property
    def is_encoder(self) -> bool:
        return self.shape.architecture in ENCODERS

    def _scratch_bytes(self, cells: int, tokens: int, slots: int) -> int:
        """Masks, the widest point of the graph, and a row of logits for every token: room for
        them is there even where the model has no output matrix."""
        shape = self.shape
        masks = cells * tokens * _F16_BYTES * (2 if shape.has_window else 1)
        logits = tokens * shape.vocabulary * _F32_BYTES
        width = llamacpp_memory.graph_width(shape)
        if not self.is_encoder:
            # The output matrix's row, beside what the pooling needs.
            width = max(width, shape.vocabulary + 5 * shape.embedding)
        states = llamacpp_memory.graph_states(shape, slots)
        graph = _F32_BYTES * (width * tokens + states)
        converted = llamacpp_memory.converted_bytes(shape, tokens)
        return masks + graph + converted + logits + _RESERVE_BYTES


def read_footprint(path: Path) -> EmbeddingFootprint:
    """Read a GGUF file's header. Raises ModelFileError."""
    header = read_header(path)
    shape = read_shape(header, embeds=True)
    weights_bytes = llamacpp_memory.weights_bytes(header, shape)
    return EmbeddingFootprint(shape, weights_bytes, _is_causal(header, shape), shape.context_length)


def _is_causal(header: GgufHeader, shape: Shape) -> bool:
    if shape.architecture in ENCODERS:
        return False
    return header.metadata.get(f"{shape.architecture}.attention.causal") is not False
