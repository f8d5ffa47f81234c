"""Attention calls and their checks: the border between flash-attn's API and the kernels.

Checks read shapes, types and devices, never values on the device. Each combination of shapes is
checked once, since a step repeats it for every layer.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch

from shared.errors import EngineError
from worker.engines.exllamav2.attention.tiles import MAX_HEAD_DIM

PAGE_MULTIPLE = 128
"""The longest tile of keys; a page holds a whole number of them."""


@dataclass(frozen=True, slots=True)
class PagedCall:
    """Causal attention of (sequences, q_len) queries over keys and values in pages.

    The last query of a sequence sees its last key. New keys and values, if given, are written
    to the pages after the first `cache_lens` ones, and are attended to; without them the pages
    already hold the keys of the queries.
    """

    q: torch.Tensor
    """(sequences, q_len, heads, head_dim) fp16."""
    k_cache: torch.Tensor
    """(pages, page_size, kv_heads, head_dim) fp16, contiguous; `v_cache` likewise."""
    v_cache: torch.Tensor
    cache_lens: torch.Tensor
    """(sequences,) int32: keys in the pages before this call."""
    block_table: torch.Tensor
    """(sequences, max_pages) int32; entries after the last page of a sequence are not read."""
    softmax_scale: float
    k_new: torch.Tensor | None = None
    """(sequences, q_len, kv_heads, head_dim) fp16; `v_new` likewise."""
    v_new: torch.Tensor | None = None
    window_left: int = -1
    """A query sees itself and this many keys before it; -1 = all."""
    softcap: float = 0.0
    """Scores become softcap × tanh(score / softcap); 0 = unchanged."""
    num_splits: int = 0
    """Parts to split the keys into; 0 = chosen by shape."""

    @property
    def num_appended(self) -> int:
        return 0 if self.k_new is None else int(self.q.shape[1])


@dataclass(frozen=True, slots=True)
class PackedCall:
    """Attention of sequences whose tokens are concatenated, without a cache."""

    q: torch.Tensor
    """(tokens, heads, head_dim) fp16."""
    k: torch.Tensor
    """(key tokens, kv_heads, head_dim) fp16; `v` likewise."""
    v: torch.Tensor
    q_starts: torch.Tensor
    """(sequences + 1,) int32: where each sequence begins, and the end; `kv_starts` likewise."""
    kv_starts: torch.Tensor
    max_q_len: int
    """Of the longest sequence, given so that the host need not read it from the device."""
    softmax_scale: float
    is_causal: bool
    window_left: int = -1
    softcap: float = 0.0


class Attention(Protocol):
    """An implementation of attention. Never synchronises with the device."""

    @property
    def name(self) -> str: ...

    def paged(self, call: PagedCall) -> torch.Tensor:
        """(sequences, q_len, heads, head_dim) fp16, contiguous."""

    def packed(self, call: PackedCall) -> torch.Tensor:
        """(tokens, heads, head_dim) fp16, contiguous."""


def check_paged(call: PagedCall) -> PagedCall:
    """Return the call. Raises EngineError for one that no kernel here can serve."""
    _check_halves(call.q, call.k_cache, call.v_cache, call.k_new, call.v_new)
    _check_indices(call.q, call.cache_lens, call.block_table)
    if not (call.k_cache.is_contiguous() and call.v_cache.is_contiguous()):
        # New keys would be appended to a contiguous copy, and lost.
        raise EngineError("attention: the pages must be contiguous")
    if (call.k_new is None) != (call.v_new is None):
        raise EngineError("attention: k and v must be given together")
    tensors = (call.q, call.k_cache, call.v_cache, call.k_new, call.v_new)
    shapes = [None if tensor is None else tensor.shape for tensor in tensors]
    _check_paged_shapes(*shapes, call.cache_lens.shape, call.block_table.shape)
    return call


def check_packed(call: PackedCall) -> PackedCall:
    """Return the call. Raises EngineError for one that no kernel here can serve."""
    _check_halves(call.q, call.k, call.v)
    _check_indices(call.q, call.q_starts, call.kv_starts)
    if call.k.shape != call.v.shape or call.q_starts.shape != call.kv_starts.shape:
        raise EngineError(
            f"attention: k {tuple(call.k.shape)} and v {tuple(call.v.shape)}, or their starts, "
            "differ in shape"
        )
    _check_heads(call.q.shape, call.k.shape)
    return call


@lru_cache(maxsize=4096)
def _check_paged_shapes(
    q: torch.Size,
    k_cache: torch.Size,
    v_cache: torch.Size,
    k_new: torch.Size | None,
    v_new: torch.Size | None,
    lens: torch.Size,
    table: torch.Size,
) -> None:
    if len(q) != 4 or len(k_cache) != 4 or k_cache != v_cache:
        raise EngineError(
            f"attention: q {tuple(q)}, k_cache {tuple(k_cache)} and v_cache {tuple(v_cache)} "
            "must have four dimensions, and both caches the same"
        )
    _check_heads(q, k_cache)
    if k_cache[1] % PAGE_MULTIPLE:
        raise EngineError(
            f"attention: page size {k_cache[1]} must be a multiple of {PAGE_MULTIPLE}"
        )
    expected = (q[0], q[1], k_cache[2], k_cache[3])
    for new in (k_new, v_new):
        if new is not None and tuple(new) != expected:
            raise EngineError(
                f"attention: new keys and values {tuple(new)} must be {expected}: as many "
                "tokens as queries"
            )
    if tuple(lens) != (q[0],) or len(table) != 2 or table[0] != q[0]:
        raise EngineError(
            f"attention: cache_seqlens {tuple(lens)} and block_table {tuple(table)} do not fit "
            f"a batch of {q[0]}"
        )


@lru_cache(maxsize=4096)
def _check_heads(q: torch.Size, k: torch.Size) -> None:
    """Both end in (heads, head_dim)."""
    (heads, head_dim), (kv_heads, k_head_dim) = q[-2:], k[-2:]
    if head_dim != k_head_dim or heads % kv_heads:
        raise EngineError(
            f"attention: {heads} query heads of {head_dim} do not fit {kv_heads} KV heads of "
            f"{k_head_dim}"
        )
    if head_dim > MAX_HEAD_DIM or head_dim % 8:
        raise EngineError(
            f"attention: head size {head_dim} must be a multiple of 8, at most {MAX_HEAD_DIM}"
        )


def _check_halves(q: torch.Tensor, *others: torch.Tensor | None) -> None:
    for tensor in (q, *others):
        if tensor is None:
            continue
        if tensor.dtype != torch.float16:
            raise EngineError(f"attention: {tensor.dtype} given, only float16 is supported")
        if tensor.device != q.device:
            raise EngineError(f"attention: tensors on {q.device} and on {tensor.device}")


def _check_indices(q: torch.Tensor, *indices: torch.Tensor) -> None:
    for tensor in indices:
        if tensor.dtype != torch.int32 or not tensor.is_contiguous():
            raise EngineError("attention: lengths and tables must be contiguous int32")
        if tensor.device != q.device:
            raise EngineError(f"attention: q on {q.device}, its lengths on {tensor.device}")
