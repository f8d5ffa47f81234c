"""Attention in float64, one sequence at a time: what every kernel is held against.

Computed on the device of the keys: long sequences take a GPU a moment, a CPU seconds each.
"""

from dataclasses import dataclass

import torch

from worker.engines.exllamav2.attention.call import PagedCall

TOLERANCE = 5e-3
"""‖out − ref‖ / ‖ref‖ in fp16."""
NUM_SPARE_PAGES = 2
PAGE_SIZE = 256


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    causal: bool = True,
    window_left: int = -1,
    softcap: float = 0.0,
) -> torch.Tensor:
    """One sequence: q (q_len, heads, dim), k and v (keys, kv_heads, dim) → float64."""
    device = k.device
    q, k, v = (x.double() for x in (q, k, v))
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    positions = torch.arange(q.shape[0], device=device)[:, None] + k.shape[0] - q.shape[0]
    keys = torch.arange(k.shape[0], device=device)
    is_seen = torch.ones(q.shape[0], k.shape[0], dtype=torch.bool, device=device)
    if causal:
        is_seen &= keys <= positions
    if window_left >= 0:
        is_seen &= keys >= positions - window_left
    scores = torch.einsum("qhd,nhd->hqn", q, k) * scale
    if softcap > 0:
        scores = softcap * torch.tanh(scores / softcap)
    weights = torch.softmax(scores.masked_fill(~is_seen, float("-inf")), -1)
    # A query that sees no key: NaN by softmax, 0 by contract.
    return torch.einsum("hqn,nhd->qhd", weights.nan_to_num(0.0), v)


def error(out: torch.Tensor, expected: torch.Tensor) -> float:
    """‖out − ref‖ / ‖ref‖; NaN if anything in `out` is."""
    return float((out.double() - expected.to(out.device)).norm() / expected.norm())


@dataclass(frozen=True)
class Case:
    """A paged call to make up: shapes, and how many keys each sequence has in the cache."""

    lens: tuple[int, ...]
    q_len: int = 1
    heads: int = 2
    kv_heads: int = 1
    head_dim: int = 64
    appends: bool = True
    """New keys come with the call; else the last q_len of `lens` are theirs."""
    window_left: int = -1
    softcap: float = 0.0
    num_splits: int = 0
    extra_pages: int = 0
    """Columns of the block table that no sequence needs."""
    scale: float = 0.0
    """0: 1 / √head_dim."""

    def totals(self) -> list[int]:
        return [length + (self.q_len if self.appends else 0) for length in self.lens]


@dataclass
class Made:
    """A call, what must come out, and what must stand in the pages after it."""

    call: PagedCall
    expected: torch.Tensor
    k_after: torch.Tensor
    v_after: torch.Tensor


def make(case: Case, device: torch.device, seed: int = 0) -> Made:
    """Random keys in shuffled pages; NaN everywhere that no key of a sequence is.

    Page 0 belongs to nobody: block tables are filled up with it.
    """
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).half()

    pages_of = [-(-total // PAGE_SIZE) for total in case.totals()]
    num_pages = sum(pages_of) + NUM_SPARE_PAGES
    order = (torch.randperm(num_pages - 1, generator=generator) + 1).tolist()
    width = max(1, *pages_of) + case.extra_pages
    table = torch.zeros(len(case.lens), width, dtype=torch.int32)
    shape = (num_pages, PAGE_SIZE, case.kv_heads, case.head_dim)
    before = [torch.full(shape, float("nan")).half() for _ in range(2)]
    after = [x.clone() for x in before]
    q = random(len(case.lens), case.q_len, case.heads, case.head_dim)
    new = [random(len(case.lens), case.q_len, case.kv_heads, case.head_dim) for _ in range(2)]
    scale = case.scale or case.head_dim**-0.5
    expected = []
    for b, (length, total) in enumerate(zip(case.lens, case.totals(), strict=True)):
        own = [order.pop() for _ in range(pages_of[b])]
        table[b, : len(own)] = torch.tensor(own, dtype=torch.int32)
        kv = []
        for start, end, fresh in zip(before, after, new, strict=True):
            old = random(length, case.kv_heads, case.head_dim)
            whole = torch.cat([old, fresh[b]]) if case.appends else old
            for pages, tokens in ((start, old), (end, whole)):
                for first in range(0, tokens.shape[0], PAGE_SIZE):
                    piece = tokens[first : first + PAGE_SIZE]
                    pages[own[first // PAGE_SIZE], : piece.shape[0]] = piece
            kv.append(whole)
        assert kv[0].shape[0] == total
        own_q, own_k, own_v = (x.to(device) for x in (q[b], *kv))
        options = (True, case.window_left, case.softcap)
        expected.append(attend(own_q, own_k, own_v, scale, *options))
    k_new, v_new = (x.to(device) if case.appends else None for x in new)
    call = PagedCall(
        q=q.to(device),
        k_cache=before[0].to(device),
        v_cache=before[1].to(device),
        cache_lens=torch.tensor(case.lens, dtype=torch.int32, device=device),
        block_table=table.to(device),
        softmax_scale=scale,
        k_new=k_new,
        v_new=v_new,
        window_left=case.window_left,
        softcap=case.softcap,
        num_splits=case.num_splits,
    )
    return Made(call, torch.stack(expected), *after)
