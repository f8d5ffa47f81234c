"""RAM of a replica that runs llama.cpp: formulas fitted to measurements.

Measured were the buffer sizes in the log of the pinned wheel ("model buffer size", "KV buffer
size", "compute buffer size") for models of many shapes, and the resident set of whole replicas
(`python -m bench.estimates`). The formulas describe the context that worker/engines/llamacpp makes:
a KV cache for each slot, micro-batches of 512 tokens, as many outputs as slots, flash
attention, full-size caches for sliding-window layers.
"""

import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from worker.agent.estimate.base import MIB, Estimate, round_up
from worker.agent.model_files.errors import ModelFileError
from worker.agent.model_files.ggml_types import GGML_TYPES, GgmlType
from worker.agent.model_files.gguf import GgufHeader, TensorInfo, read_header
from worker.agent.model_files.gguf_shape import GgufShape, read_shape

_MICRO_BATCH_TOKENS = 512
CELL_STEP = 256
"""llama.cpp rounds the cells of a sequence up to this."""
_CELL_BYTES = 48
"""llama.cpp's record of a cell: position, shift, and a bit for each of 256 sequences."""
_F32_BYTES, _F16_BYTES = 4, 2
_CACHE_TYPES = {"f16": GGML_TYPES[1], "q8_0": GGML_TYPES[8], "q4_0": GGML_TYPES[2]}

_PROCESS_BYTES = 88 * MIB
"""Measured: 84 MiB for a replica of the counter model after some hundred requests, of which the
model has 8. The rest is reserve."""
_SLOT_BYTES = MIB // 4
"""Task thread, Redis connection, sampler and the lists of a sequence."""
_TOKEN_BYTES = 240
"""An entry of llama.cpp's vocabulary: text, score, both directions of the map."""
_MERGE_BYTES = 240
_UNIGRAM_TOKEN_BYTES = 320
"""Added by a Unigram vocabulary for its prefix tree; measured: 256 for Gemma's tokens."""
_CANDIDATE_BYTES = 12
"""llama_token_data, once for each token of the vocabulary: a sampler lists them all."""
_SCORED_TOKENS = 16
"""Rows of logits for prompts whose log probabilities are wanted."""
_GRAMMAR_BYTES = 400
"""For each token of the vocabulary, allocated with the first grammar."""

_REPACKED_X86 = frozenset({"Q4_0", "Q4_K", "IQ4_NL", "MXFP4"})
_REPACKED_ARM = _REPACKED_X86 | {"Q1_0", "Q5_K", "Q6_K", "Q8_0"}
"""Types whose matrices are copied into another layout at load (ggml-cpu/repack.cpp). An ARM
processor repacks some or all of them, depending on its extensions."""
_REPACKED_ROWS = 8


@dataclass(frozen=True, slots=True)
class LlamaCppMemoryModel:
    """See `worker.agent.estimate.base.MemoryModel`."""

    shape: GgufShape
    weights_bytes: int
    trained_context_length: int
    max_slots: int = 256
    """LLAMA_MAX_SEQ"""

    def estimate(self, *, context_length: int, slots: int, quant: str) -> Estimate:
        shape = self.shape
        cells = round_up(context_length, CELL_STEP)
        token_bytes = cache_token_bytes(shape, quant)
        state_bytes = shape.state * _F32_BYTES
        return Estimate(
            weights_bytes=self.weights_bytes,
            kv_cache_bytes=slots * (cells * token_bytes + state_bytes),
            scratch_bytes=_scratch_bytes(shape, cells, slots),
            process_bytes=process_bytes(slots),
        )


def read_memory_model(path: Path) -> LlamaCppMemoryModel:
    """Read a GGUF file's header. Raises ModelFileError."""
    header = read_header(path)
    shape = read_shape(header)
    return LlamaCppMemoryModel(shape, weights_bytes(header, shape), shape.context_length)


def weights_bytes(header: GgufHeader, shape: GgufShape) -> int:
    """Bytes of the tensors and the vocabulary."""
    is_unigram = header.metadata.get("tokenizer.ggml.model") == "t5"
    token_bytes = _TOKEN_BYTES + (_UNIGRAM_TOKEN_BYTES if is_unigram else 0)
    vocabulary_bytes = shape.vocabulary * token_bytes + shape.merges * _MERGE_BYTES
    return _tensor_bytes(header, platform.machine()) + vocabulary_bytes


def process_bytes(slots: int) -> int:
    """Bytes of a replica without a model."""
    return _PROCESS_BYTES + slots * _SLOT_BYTES


def _tensor_bytes(header: GgufHeader, machine: str) -> int:
    """Mapped and repacked tensors. The mapped part reaches from the first to the last tensor that
    is used in place: repacked tensors between them stay resident, too."""
    is_arm = machine.lower() in ("aarch64", "arm64")
    types = _REPACKED_ARM if is_arm else _REPACKED_X86
    has_output = any(tensor.name == "output.weight" for tensor in header.tensors)
    repacked_bytes = 0
    first, last = header.file_bytes, 0
    for tensor in header.tensors:
        is_embedding = tensor.name == "token_embd.weight"
        is_repacked = _is_repacked(tensor, types)
        # Embeddings that double as the output matrix are held twice, mapped and repacked.
        if is_repacked and not (is_embedding and has_output):
            repacked_bytes += tensor.num_bytes
        if is_embedding or not is_repacked:
            first = min(first, tensor.offset)
            last = max(last, tensor.offset + tensor.num_bytes)
    return max(0, last - first) + repacked_bytes


def _is_repacked(tensor: TensorInfo, types: frozenset[str]) -> bool:
    is_matrix = len(tensor.shape) >= 2 and tensor.name.endswith(".weight")
    return is_matrix and tensor.type.name in types and tensor.shape[1] % _REPACKED_ROWS == 0


def cache_token_bytes(shape: GgufShape, quant: str) -> int:
    """Bytes of one token in the KV caches of all layers."""
    if quant not in _CACHE_TYPES:
        raise ValueError(f"KV cache of {quant!r}: llamacpp has {', '.join(_CACHE_TYPES)}")
    token_bytes = sum(_cache_rows(shape, _CACHE_TYPES[quant]))
    if not token_bytes:
        return 0
    # Layers with a sliding window have a second cache of the same size.
    return token_bytes + _CELL_BYTES * (2 if shape.has_window else 1)


def _cache_rows(shape: GgufShape, cache_type: GgmlType) -> Iterator[int]:
    """Bytes of one token in each layer's K and V cache. Raises ModelFileError."""
    for size in (*shape.key_sizes, *shape.value_sizes):
        if size % cache_type.block_size or shape.head_size % cache_type.block_size:
            raise ModelFileError(
                f"the KV cache cannot be {cache_type.name.lower()}: the model's heads have "
                f"{shape.head_size} values, not a multiple of {cache_type.block_size}. Use f16"
            )
        yield cache_type.row_bytes(size)


def _scratch_bytes(shape: GgufShape, cells: int, slots: int) -> int:
    """Masks, the widest point of the graph, logits, and the lists of the samplers. The nodes of the
    graph share their buffers, so only the widest counts. It is one of: a feed-forward layer, an
    attention layer, a recurrent layer, the output."""
    masks = cells * _MICRO_BATCH_TOKENS * _F16_BYTES * (2 if shape.has_window else 1)
    width = graph_width(shape) * _MICRO_BATCH_TOKENS
    logits = (slots + _SCORED_TOKENS) * shape.vocabulary
    lists = _CANDIDATE_BYTES * slots + _GRAMMAR_BYTES
    graph = _F32_BYTES * (max(width, logits) + graph_states(shape, slots))
    converted = converted_bytes(shape, _MICRO_BATCH_TOKENS)
    return masks + graph + converted + logits * _F32_BYTES + lists * shape.vocabulary


def graph_width(shape: GgufShape) -> int:
    """Values of one token at the widest point of the graph, the output excepted."""
    kv = max(map(sum, zip(shape.key_sizes, shape.value_sizes, strict=True)))
    return max(
        5 * shape.embedding + 3 * shape.feed_forward,
        3 * shape.embedding + 2 * shape.query + kv,
        5 * shape.embedding + 6 * shape.inner,
    )


def graph_states(shape: GgufShape, slots: int) -> int:
    """Values of two recurrent states for each sequence: one is read, one is written."""
    return 2 * shape.state // len(shape.key_sizes) * slots


def converted_bytes(shape: GgufShape, tokens: int) -> int:
    """Bytes of activations converted to the precision of the weights, for the widest matrix."""
    return _F16_BYTES * tokens * max(shape.feed_forward, shape.query, shape.inner)
