"""RAM of a replica that embeds with llama.cpp: formulas fitted to measurements.

They describe the context of `worker.engines.llamacpp.embedding_engine`: all tokens of a batch are
outputs; an encoder reads an input in one batch, a causal model in batches of 512 tokens, with
one KV cache for all inputs. The rest is as in worker/agent/estimate/llamacpp.py.
"""

from dataclasses import dataclass
from pathlib import Path

from worker.agent.estimate import llamacpp
from worker.agent.estimate.base import MIB, Estimate, round_up
from worker.agent.model_files.gguf import read_header
from worker.agent.model_files.gguf_shape import ENCODERS, GgufShape, read_shape

_BATCH_TOKENS = 512
_F32_BYTES, _F16_BYTES = 4, 2
_RESERVE_BYTES = 12 * MIB
"""Measured replicas were up to 4 MiB above the formulas."""


@dataclass(frozen=True, slots=True)
class EmbeddingMemoryModel:
    """See `worker.agent.estimate.base.MemoryModel`."""

    shape: GgufShape
    weights_bytes: int
    is_causal: bool
    trained_context_length: int
    max_slots: int = 256
    """LLAMA_MAX_SEQ"""

    def estimate(self, *, context_length: int, slots: int, quant: str) -> Estimate:
        # The engine refuses inputs that are longer than the trained context.
        longest = min(context_length, self.trained_context_length or context_length)
        cells = round_up(max(_BATCH_TOKENS, longest), llamacpp.CELL_STEP)
        tokens = _BATCH_TOKENS if self.is_causal else cells
        cache_bytes = 0
        if not self.is_encoder:
            token_bytes = llamacpp.cache_token_bytes(self.shape, quant)
            cache_bytes = cells * token_bytes + slots * self.shape.state * _F32_BYTES
        return Estimate(
            weights_bytes=self.weights_bytes,
            kv_cache_bytes=cache_bytes,
            scratch_bytes=self._scratch_bytes(cells, tokens, slots),
            process_bytes=llamacpp.process_bytes(slots),
        )

    @property
    def is_encoder(self) -> bool:
        return self.shape.architecture in ENCODERS

    def _scratch_bytes(self, cells: int, tokens: int, slots: int) -> int:
        """Masks, the widest point of the graph, and a row of logits for every token, which is
        allocated even if the model has no output matrix."""
        shape = self.shape
        masks = cells * tokens * _F16_BYTES * (2 if shape.has_window else 1)
        logits = tokens * shape.vocabulary * _F32_BYTES
        width = llamacpp.graph_width(shape)
        if not self.is_encoder:
            # A row of the output matrix beside the activations for pooling.
            width = max(width, shape.vocabulary + 5 * shape.embedding)
        states = llamacpp.graph_states(shape, slots)
        graph = _F32_BYTES * (width * tokens + states)
        converted = llamacpp.converted_bytes(shape, tokens)
        return masks + graph + converted + logits + _RESERVE_BYTES


def read_memory_model(path: Path) -> EmbeddingMemoryModel:
    """Read a GGUF file's header. Raises ModelFileError."""
    header = read_header(path)
    shape = read_shape(header, embeds=True)
    weights_bytes = llamacpp.weights_bytes(header, shape)
    is_causal = header.metadata.get(f"{shape.architecture}.attention.causal") is not False
    is_causal = is_causal and shape.architecture not in ENCODERS
    return EmbeddingMemoryModel(shape, weights_bytes, is_causal, shape.context_length)
