"""RAM of a replica that runs llama.cpp: the formulas, as found by measuring.

What they rest on is the log of the wheel that requirements.txt pins ("model buffer size",
"KV buffer size", "compute buffer size") for models of many shapes, and the resident set of whole
replicas: `python -m bench.estimates`. They describe the context that
worker/engines/llamacpp.py makes: its own KV cache for each slot, micro-batches of 512 tokens,
as many outputs as slots, flash attention, full-size caches for sliding-window layers.
"""

import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from worker.agent.footprint import MIB, Estimate, round_up
from worker.agent.ggml_types import GGML_TYPES, GgmlType
from worker.agent.gguf_header import GgufHeader, TensorInfo, read_header
from worker.agent.gguf_shape import Shape, read_shape
from worker.agent.model_file import ModelFileError

_MICRO_BATCH_TOKENS = 512
CELL_STEP = 256
"""llama.cpp rounds the cells of a sequence up to this."""
_CELL_BYTES = 48
"""What llama.cpp notes of each cell: position, shift, and a bit for each of 256 sequences."""
_F32_BYTES, _F16_BYTES = 4, 2
_CACHE_TYPES = {"f16": GGML_TYPES[1], "q8_0": GGML_TYPES[8], "q4_0": GGML_TYPES[2]}

_PROCESS_BYTES = 88 * MIB
"""A replica of the counter model had 84 MiB after some hundred requests, 8 of them for the model;
the rest is reserve."""
_SLOT_BYTES = MIB // 4
"""Task thread, Redis connection, sampler and the lists of a sequence."""
_TOKEN_BYTES = 240
"""One entry of llama.cpp's vocabulary: texts, scores, both directions of the map."""
_MERGE_BYTES = 240
_UNIGRAM_TOKEN_BYTES = 320
"""More in a Unigram vocabulary, for its tree of prefixes: 256 with the texts of Gemma's."""
_CANDIDATE_BYTES = 12
"""llama_token_data: a sampler lists the whole vocabulary."""
_SCORED_TOKENS = 16
"""Rows of logits for prompts whose log probabilities are wanted."""
_GRAMMAR_BYTES = 400
"""A token of the vocabulary, as soon as the first grammar comes."""

_REPACKED_X86 = frozenset({"Q4_0", "Q4_K", "IQ4_NL", "MXFP4"})
_REPACKED_ARM = _REPACKED_X86 | {"Q1_0", "Q5_K", "Q6_K", "Q8_0"}
"""Types whose matrices are copied into another order at load (ggml-cpu/repack.cpp). An ARM
processor may repack fewer of them: which, depends on its extensions."""
_REPACKED_ROWS = 8


@dataclass(frozen=True, slots=True)
class LlamaCppFootprint:
    """See `worker.agent.footprint.Footprint`."""

    shape: Shape
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


def read_footprint(path: Path) -> LlamaCppFootprint:
    """Read a GGUF file's header. Raises ModelFileError."""
    header = read_header(path)
    shape = read_shape(header)
    return LlamaCppFootprint(shape, weights_bytes(header, shape), shape.context_length)


def weights_bytes(header: GgufHeader, shape: Shape) -> int:
    """The tensors, and the vocabulary beside them."""
    is_unigram = header.metadata.get("tokenizer.ggml.model") == "t5"
    token_bytes = _TOKEN_BYTES + (_UNIGRAM_TOKEN_BYTES if is_unigram else 0)
    vocabulary_bytes = shape.vocabulary * token_bytes + shape.merges * _MERGE_BYTES
    return _tensor_bytes(header, platform.machine()) + vocabulary_bytes


def process_bytes(slots: int) -> int:
    """What a replica takes without a model."""
    return _PROCESS_BYTES + slots * _SLOT_BYTES


def _tensor_bytes(header: GgufHeader, machine: str) -> int:
    """Mapped and repacked tensors.

    The mapped part goes from the first to the last tensor that is used where it lies: what is
    repacked between them stays resident as well.
    """
    is_arm = machine.lower() in ("aarch64", "arm64")
    types = _REPACKED_ARM if is_arm else _REPACKED_X86
    has_output = any(tensor.name == "output.weight" for tensor in header.tensors)
    repacked_bytes = 0
    first, last = header.file_bytes, 0
    for tensor in header.tensors:
        is_embedding = tensor.name == "token_embd.weight"
        is_repacked = _is_repacked(tensor, types)
        # Embeddings that double as the output matrix are there both ways.
        if is_repacked and not (is_embedding and has_output):
            repacked_bytes += tensor.num_bytes
        if is_embedding or not is_repacked:
            first = min(first, tensor.offset)
            last = max(last, tensor.offset + tensor.num_bytes)
    return max(0, last - first) + repacked_bytes


def _is_repacked(tensor: TensorInfo, types: frozenset[str]) -> bool:
    is_matrix = len(tensor.shape) >= 2 and tensor.name.endswith(".weight")
    return is_matrix and tensor.type.name in types and tensor.shape[1] % _REPACKED_ROWS == 0


def _cache_type(quant: str) -> GgmlType:
    found = _CACHE_TYPES.get(quant)
    if found is None:
        raise ValueError(f"KV cache of {quant!r}: llamacpp has {', '.join(_CACHE_TYPES)}")
    return found


def cache_token_bytes(shape: Shape, quant: str) -> int:
    """What one token takes in the KV cache of all layers."""
    token_bytes = sum(_cache_rows(shape, _cache_type(quant)))
    if not token_bytes:
        return 0
    # Layers with a sliding window have a cache of their own, as large as the other.
    return token_bytes + _CELL_BYTES * (2 if shape.has_window else 1)


def _cache_rows(shape: Shape, cache_type: GgmlType) -> Iterator[int]:
    """Bytes that one token takes in each layer's K and V cache."""
    for size in (*shape.key_sizes, *shape.value_sizes):
        if size % cache_type.block_size or shape.head_size % cache_type.block_size:
            raise ModelFileError(
                f"the KV cache cannot be {cache_type.name.lower()}: the model's heads have "
                f"{shape.head_size} values, no multiple of {cache_type.block_size}. Use f16"
            )
        yield cache_type.row_bytes(size)


def _scratch_bytes(shape: Shape, cells: int, slots: int) -> int:
    """Masks, the widest point of the graph, logits, and what sampling lists.

    The graph's buffers are shared between its nodes, so the widest point counts, and it is one
    of: a feed-forward layer, an attention layer, a recurrent one, the output.
    """
    masks = cells * _MICRO_BATCH_TOKENS * _F16_BYTES * (2 if shape.has_window else 1)
    width = graph_width(shape) * _MICRO_BATCH_TOKENS
    logits = (slots + _SCORED_TOKENS) * shape.vocabulary
    lists = _CANDIDATE_BYTES * slots + _GRAMMAR_BYTES
    graph = _F32_BYTES * (max(width, logits) + graph_states(shape, slots))
    converted = converted_bytes(shape, _MICRO_BATCH_TOKENS)
    return masks + graph + converted + logits * _F32_BYTES + lists * shape.vocabulary


def graph_width(shape: Shape) -> int:
    """Values of one token at the widest point of the graph but for the output."""
    kv = max(map(sum, zip(shape.key_sizes, shape.value_sizes, strict=True)))
    return max(
        5 * shape.embedding + 3 * shape.feed_forward,
        3 * shape.embedding + 2 * shape.query + kv,
        5 * shape.embedding + 6 * shape.inner,
    )


def graph_states(shape: Shape, slots: int) -> int:
    """Values of two recurrent states a sequence: the one that is read and the one written."""
    return 2 * shape.state // len(shape.key_sizes) * slots


def converted_bytes(shape: Shape, tokens: int) -> int:
    """Activations in the weights' own precision, made anew for each matrix, by all threads."""
    return _F16_BYTES * tokens * max(shape.feed_forward, shape.query, shape.inner)
