"""The project's own attention: launches `kernels` on the current stream.

ExLlamaV2 sets its stream with torch.cuda.set_stream; Triton and the allocator both use it.
Nothing waits for the device, and grids depend on shapes only, so a step can be captured.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache

import torch

from worker.engines.exllamav2.attention import kernels, tiles
from worker.engines.exllamav2.attention.call import PackedCall, PagedCall

_LOG2_E = 1.4426950408889634
_CPU_SMS = 4
"""Triton's interpreter has no multiprocessors; small grids keep it fast."""


class TritonAttention:
    """See `worker.engines.exllamav2.attention.call.Attention` for the contract."""

    name = "triton"

    def paged(self, call: PagedCall) -> torch.Tensor:
        with _on(call.q.device):
            if call.k_new is not None and call.v_new is not None:
                _append(call, call.k_new.contiguous(), call.v_new.contiguous())
            return _attend_pages(call, call.q.contiguous())

    def packed(self, call: PackedCall) -> torch.Tensor:
        with _on(call.q.device):
            return _attend_packed(call, call.q.contiguous())


def _append(call: PagedCall, k_new: torch.Tensor, v_new: torch.Tensor) -> None:
    sequences, num_new, kv_heads, head_dim = k_new.shape
    row = kv_heads * head_dim
    kernels.append_to_pages[(num_new, sequences)](
        k_new, v_new, call.k_cache, call.v_cache, call.block_table, call.cache_lens,
        call.block_table.shape[1], KV_STRIDE=row, BLOCK=1 << (row - 1).bit_length(),
        PAGE_SIZE=call.k_cache.shape[1],
    )  # fmt: skip


def _attend_pages(call: PagedCall, q: torch.Tensor) -> torch.Tensor:
    sequences, q_len, heads, head_dim = q.shape
    _, page_size, kv_heads, _ = call.k_cache.shape
    device = _properties(q.device)
    max_pages = int(call.block_table.shape[1])
    group = heads // kv_heads
    tile = tiles.choose_tile(q_len * group, tiles.pad_head_dim(head_dim), device.shared_bytes_of_sm)
    blocks = -(-q_len * group // tile.rows)
    # By the width of the table: the lengths are on the device.
    splits = min(call.num_splits, tiles.MAX_SPLITS) or tiles.choose_splits(
        blocks * kv_heads * sequences,
        sequences,
        max_pages * page_size,
        tile.programs_per_sm * device.num_sms,
    )
    out = torch.empty_like(q)
    partials, logsums = _scratch(q, splits)
    kernels.attend[(blocks * kv_heads, splits, sequences)](
        q, call.k_cache, call.v_cache, out, partials, logsums,
        call.block_table, call.cache_lens, None, None,
        *_score_scales(call.softmax_scale, call.softcap), call.window_left,
        q_len, call.num_appended, max_pages, splits,
        KV_HEADS=kv_heads, GROUP=group, HEAD_DIM=head_dim, PAGE_SIZE=page_size,
        HAS_PAGES=True, IS_CAUSAL=True, HAS_WINDOW=call.window_left >= 0,
        HAS_SOFTCAP=call.softcap > 0, IS_SPLIT=splits > 1, num_stages=tile.num_stages,
        **_tile_options(tile, head_dim),
    )  # fmt: skip
    if splits > 1:
        kernels.combine_splits[(sequences * q_len * heads,)](
            partials, logsums, out, splits,
            HEAD_DIM=head_dim, BLOCK_D=tiles.pad_head_dim(head_dim), MAX_SPLITS=tiles.MAX_SPLITS,
            num_warps=tiles.COMBINE_WARPS,
        )  # fmt: skip
    return out


def _attend_packed(call: PackedCall, q: torch.Tensor) -> torch.Tensor:
    _, heads, head_dim = q.shape
    device = _properties(q.device)
    kv_heads = call.k.shape[1]
    group = heads // kv_heads
    tile = tiles.choose_tile(
        call.max_q_len * group, tiles.pad_head_dim(head_dim), device.shared_bytes_of_sm
    )
    blocks = -(-call.max_q_len * group // tile.rows)
    out = torch.empty_like(q)
    kernels.attend[(blocks * kv_heads, 1, call.q_starts.shape[0] - 1)](
        q, call.k.contiguous(), call.v.contiguous(), out, None, None,
        None, None, call.q_starts, call.kv_starts,
        *_score_scales(call.softmax_scale, call.softcap), call.window_left,
        0, 0, 0, 1,
        KV_HEADS=kv_heads, GROUP=group, HEAD_DIM=head_dim, PAGE_SIZE=1,
        HAS_PAGES=False, IS_CAUSAL=call.is_causal, HAS_WINDOW=call.window_left >= 0,
        HAS_SOFTCAP=call.softcap > 0, IS_SPLIT=False, num_stages=tile.packed_stages,
        **_tile_options(tile, head_dim),
    )  # fmt: skip
    return out


def _scratch(q: torch.Tensor, splits: int) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Partial results and their log sums, uninitialised: the kernel writes all that is read."""
    if splits == 1:
        return None, None
    *tokens_and_heads, head_dim = q.shape
    partials = torch.empty(
        (*tokens_and_heads, splits, head_dim), dtype=torch.float32, device=q.device
    )
    logsums = torch.empty((*tokens_and_heads, splits), dtype=torch.float32, device=q.device)
    return partials, logsums


def _score_scales(softmax_scale: float, softcap: float) -> tuple[float, float]:
    """The factors of scores before and after tanh; exponents are base 2."""
    if softcap > 0:
        return softmax_scale / softcap, softcap * _LOG2_E
    return softmax_scale * _LOG2_E, 0.0


def _tile_options(tile: tiles.Tile, head_dim: int) -> dict[str, int]:
    return {
        "BLOCK_D": tiles.pad_head_dim(head_dim),
        "BLOCK_M": tile.rows,
        "BLOCK_N": tile.keys,
        "num_warps": tile.num_warps,
    }


def _on(device: torch.device) -> AbstractContextManager[object]:
    """Triton launches on the current device, which need not be that of the tensors."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


@dataclass(frozen=True, slots=True)
class _Device:
    num_sms: int
    shared_bytes_of_sm: int


@lru_cache(maxsize=64)
def _properties(device: torch.device) -> _Device:
    if device.type != "cuda":
        return _Device(_CPU_SMS, tiles.LARGE_SM_BYTES)
    properties = torch.cuda.get_device_properties(device)
    return _Device(properties.multi_processor_count, properties.shared_memory_per_multiprocessor)
