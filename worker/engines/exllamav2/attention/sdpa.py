"""Attention with torch alone: for hosts without Triton, and the reference for our kernels.

Gathers the pages of every sequence, as many as the block table is wide, in each layer of each
step: batched and without waiting for the device, but slow at long contexts.
"""

import torch
from torch.nn.functional import pad, scaled_dot_product_attention

from worker.engines.exllamav2.attention.call import PackedCall, PagedCall


class SdpaAttention:
    """See `worker.engines.exllamav2.attention.call.Attention` for the contract."""

    name = "sdpa"

    def paged(self, call: PagedCall) -> torch.Tensor:
        sequences, q_len, _, head_dim = call.q.shape
        _, page_size, kv_heads, _ = call.k_cache.shape
        device = call.q.device
        table = call.block_table.long()
        lens = call.cache_lens.long()
        if call.k_new is not None and call.v_new is not None:
            positions = lens[:, None] + torch.arange(q_len, device=device)
            pages = torch.gather(table, 1, positions // page_size)
            slots = pages * page_size + positions % page_size
            call.k_cache.view(-1, kv_heads, head_dim)[slots] = call.k_new
            call.v_cache.view(-1, kv_heads, head_dim)[slots] = call.v_new
            lens = lens + q_len
        num_keys = table.shape[1] * page_size
        keys = torch.arange(num_keys, device=device)
        is_key = keys < lens[:, None]
        # The rest of the last page may hold NaN, and 0 × NaN is NaN.
        is_stale = ~is_key[:, :, None, None]
        gathered = (sequences, num_keys, kv_heads, head_dim)
        k = call.k_cache[table].view(gathered).masked_fill_(is_stale, 0.0)
        v = call.v_cache[table].view(gathered).masked_fill_(is_stale, 0.0)
        q_positions = (lens[:, None] - q_len + torch.arange(q_len, device=device))[:, :, None]
        is_seen = keys <= q_positions
        if call.window_left >= 0:
            is_seen &= keys >= q_positions - call.window_left
        return _attend(call.q, k, v, is_seen, call.softmax_scale, call.softcap)

    def packed(self, call: PackedCall) -> torch.Tensor:
        """One product over all tokens, masked to those of the same sequence."""
        q_sequence, q_positions = _places(call.q_starts, call.q.shape[0])
        k_sequence, k_positions = _places(call.kv_starts, call.k.shape[0])
        q_lens, kv_lens = call.q_starts.diff(), call.kv_starts.diff()
        # Bottom-right alignment: the last query of a sequence sees its last key.
        q_positions = (q_positions + (kv_lens - q_lens)[q_sequence])[:, None]
        is_seen = q_sequence[:, None] == k_sequence
        if call.is_causal:
            is_seen &= k_positions <= q_positions
        if call.window_left >= 0:
            is_seen &= k_positions >= q_positions - call.window_left
        q, k, v = (x[None] for x in (call.q, call.k, call.v))
        return _attend(q, k, v, is_seen[None], call.softmax_scale, call.softcap)[0]


def _places(starts: torch.Tensor, num_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sequence and position of each of the packed tokens; both (num_tokens,) int64."""
    tokens = torch.arange(num_tokens, device=starts.device)
    sequence = torch.searchsorted(starts[1:].contiguous(), tokens, right=True)
    return sequence, tokens - starts[sequence]


def _attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    is_seen: torch.Tensor,
    softmax_scale: float,
    softcap: float,
) -> torch.Tensor:
    """q (sequences, q_len, heads, head_dim), k and v likewise, is_seen (…, q_len, keys)."""
    sequences, q_len, heads, head_dim = q.shape
    kv_heads = k.shape[2]
    group = heads // kv_heads
    # The heads of a group become rows, so that the keys are not copied for each of them.
    rows = q.view(sequences, q_len, kv_heads, group, head_dim).permute(0, 2, 1, 3, 4)
    rows = rows.reshape(sequences, kv_heads, q_len * group, head_dim)
    k, v = k.transpose(1, 2), v.transpose(1, 2)
    mask = is_seen.repeat_interleave(group, dim=1)[:, None]
    if softcap > 0:
        result = _softcapped(rows, k, v, mask, softmax_scale, softcap)
    else:
        result = _masked_sdpa(rows, k, v, mask, softmax_scale)
    # A query that sees no key gets 0, as from flash-attn.
    result = torch.where(mask.any(-1, keepdim=True), result, 0.0)
    result = result.view(sequences, kv_heads, q_len, group, head_dim).permute(0, 2, 1, 3, 4)
    return result.reshape(sequences, q_len, heads, head_dim)


def _masked_sdpa(
    rows: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor, scale: float
) -> torch.Tensor:
    # torch's fast kernels need the rows of a mask at multiples of 16 bytes.
    if mask.shape[-1] % 16:
        mask = pad(mask, (0, 16 - mask.shape[-1] % 16))[..., : mask.shape[-1]]
    return scaled_dot_product_attention(rows, k, v, attn_mask=mask, scale=scale)


def _softcapped(
    rows: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor,
    scale: float,
    softcap: float,
) -> torch.Tensor:
    """torch's own attention has no soft cap, so this computes all scores, in fp32."""
    scores = rows.float() @ k.float().transpose(-1, -2) * scale
    scores = (softcap * torch.tanh(scores / softcap)).masked_fill(~mask, float("-inf"))
    return (torch.softmax(scores, -1) @ v.float()).to(rows.dtype)
