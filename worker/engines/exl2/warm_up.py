"""Compiles what a model's steps will need, before the first request has to wait for it.

Triton compiles a kernel at its first launch, about a second each, and keeps it on disk
(TRITON_CACHE_DIR): the second start of a replica only loads it.
"""

from collections.abc import Iterable

import torch

from worker.engines.exl2.calls import PAGE_MULTIPLE, Attention, PagedCall, check_paged
from worker.engines.exl2.tiles import FEW_ROWS


def warm_up(
    attention: Attention,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    windows: Iterable[int] = (-1,),
    softcap: float = 0.0,
    page_size: int = 2 * PAGE_MULTIPLE,
    device: torch.device | str = "cuda",
) -> int:
    """Launch every variant once on one page of zeros; how many calls that took.

    `windows` holds the window of each kind of layer, -1 for those without. Blocks until the
    device is done, so it belongs in the loading of a model.
    """
    cache = torch.zeros((1, page_size, num_kv_heads, head_dim), dtype=torch.float16, device=device)
    index = torch.zeros((1, 1), dtype=torch.int32, device=device)
    num_calls = 0
    for q_len in warm_up_lengths(num_heads // num_kv_heads):
        q = torch.zeros((1, q_len, num_heads, head_dim), dtype=torch.float16, device=device)
        new = torch.zeros((1, q_len, num_kv_heads, head_dim), dtype=torch.float16, device=device)
        for window in set(windows):
            for num_splits in (1, 2):
                call = PagedCall(
                    q=q, k_cache=cache, v_cache=cache, cache_lens=index[0], block_table=index,
                    softmax_scale=1.0, k_new=new, v_new=new, window_left=window,
                    softcap=softcap, num_splits=num_splits,
                )  # fmt: skip
                attention.paged(check_paged(call))
                num_calls += 1
    if cache.is_cuda:
        torch.cuda.synchronize(cache.device)
    return num_calls


def warm_up_lengths(group: int) -> list[int]:
    """One q_len for each tile that `tiles.choose_tile` can give this group."""
    return sorted({1, FEW_ROWS // group + 1})
