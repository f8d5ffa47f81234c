"""The three functions of flash-attn that ExLlamaV2 calls, on top of any `Attention`.

Signatures are those of flash-attn 2.8.3 (Dao-AILab/flash-attention,
flash_attn/flash_attn_interface.py), parameter for parameter. An unsupported argument that would
change the result is an error: ignoring it would silently give wrong text.
"""

import torch

from shared.errors import EngineError
from worker.engines.exllamav2.attention.call import (
    Attention,
    PackedCall,
    PagedCall,
    check_packed,
    check_paged,
)

Window = tuple[int, int]


class FlashApi:
    """Bound to one `Attention`; its methods replace flash-attn's."""

    def __init__(self, attention: Attention) -> None:
        self._attention = attention

    def flash_attn_with_kvcache(
        self,
        q: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        k: torch.Tensor | None = None,
        v: torch.Tensor | None = None,
        rotary_cos: torch.Tensor | None = None,
        rotary_sin: torch.Tensor | None = None,
        cache_seqlens: torch.Tensor | None = None,
        cache_batch_idx: torch.Tensor | None = None,
        cache_leftpad: torch.Tensor | None = None,
        block_table: torch.Tensor | None = None,
        softmax_scale: float | None = None,
        causal: bool = False,
        window_size: Window = (-1, -1),
        softcap: float = 0.0,
        rotary_interleaved: bool = True,
        alibi_slopes: torch.Tensor | None = None,
        num_splits: int = 0,
        return_softmax_lse: bool = False,
    ) -> torch.Tensor:
        """(batch, q_len, heads, head_dim). Writes k and v to the pages, if given.

        ExLlamaV2 gives them, unless it has written the tokens of a single sequence itself.
        It relies on the pages: a quantised cache is stored from them after the call.
        """
        _refuse(
            "flash_attn_with_kvcache",
            rotary_cos=rotary_cos,
            rotary_sin=rotary_sin,
            cache_batch_idx=cache_batch_idx,
            cache_leftpad=cache_leftpad,
            alibi_slopes=alibi_slopes,
            return_softmax_lse=return_softmax_lse or None,
        )
        if block_table is None or not isinstance(cache_seqlens, torch.Tensor):
            raise EngineError(
                "flash_attn_with_kvcache: only a paged cache is supported, with block_table "
                "and cache_seqlens as tensors"
            )
        # A single query needs no causal mask: it sees all keys.
        if not causal and q.shape[1] > 1:
            raise EngineError("flash_attn_with_kvcache: causal=False is not supported")
        call = PagedCall(
            q=q,
            k_cache=k_cache,
            v_cache=v_cache,
            cache_lens=cache_seqlens,
            block_table=block_table,
            softmax_scale=_scale(softmax_scale, q),
            k_new=k,
            v_new=v,
            window_left=_window_left(window_size, is_causal=True),
            softcap=softcap,
            num_splits=num_splits,
        )
        return self._attention.paged(check_paged(call))

    def flash_attn_func(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        dropout_p: float = 0.0,
        softmax_scale: float | None = None,
        causal: bool = False,
        window_size: Window = (-1, -1),
        softcap: float = 0.0,
        alibi_slopes: torch.Tensor | None = None,
        deterministic: bool = False,
        return_attn_probs: bool = False,
    ) -> torch.Tensor:
        """(batch, q_len, heads, head_dim), from k and v (batch, keys, kv_heads, head_dim)."""
        batch, q_len = q.shape[:2]
        num_keys = k.shape[1]
        starts = torch.arange(batch + 1, dtype=torch.int32, device=q.device)
        # For one sequence this is a view; slices of a cache for several are copied.
        packed = self.flash_attn_varlen_func(
            q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), starts * q_len, starts * num_keys,
            q_len, num_keys, dropout_p, softmax_scale, causal, window_size, softcap,
            alibi_slopes, deterministic, return_attn_probs,
        )  # fmt: skip
        return packed.view(q.shape)

    def flash_attn_varlen_func(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        cu_seqlens_q: torch.Tensor,
        cu_seqlens_k: torch.Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        dropout_p: float = 0.0,
        softmax_scale: float | None = None,
        causal: bool = False,
        window_size: Window = (-1, -1),
        softcap: float = 0.0,
        alibi_slopes: torch.Tensor | None = None,
        deterministic: bool = False,
        return_attn_probs: bool = False,
        block_table: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """(tokens, heads, head_dim). `max_seqlen_k` is not needed; there is no backward."""
        _refuse(
            "flash_attn_varlen_func",
            dropout_p=dropout_p or None,
            alibi_slopes=alibi_slopes,
            return_attn_probs=return_attn_probs or None,
            block_table=block_table,
        )
        call = PackedCall(
            q=q,
            k=k,
            v=v,
            q_starts=cu_seqlens_q,
            kv_starts=cu_seqlens_k,
            max_q_len=int(max_seqlen_q),
            softmax_scale=_scale(softmax_scale, q),
            is_causal=causal,
            window_left=_window_left(window_size, is_causal=causal),
            softcap=softcap,
        )
        return self._attention.packed(check_packed(call))


def _refuse(function: str, **arguments: object) -> None:
    given = [name for name, value in arguments.items() if value is not None]
    if given:
        raise EngineError(f"{function}: {', '.join(given)} not supported by this attention")


def _scale(softmax_scale: float | None, q: torch.Tensor) -> float:
    return float(q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale)


def _window_left(window: Window, is_causal: bool) -> int:
    """flash-attn's window: `left` keys before the query's own; `right` counts as 0 if causal.
    ExLlamaV2 passes config.json's window for both, one key more than transformers uses."""
    left, right = window
    if not is_causal and (left >= 0 or right >= 0):
        raise EngineError("attention: a window without causal=True is not supported")
    return left if left >= 0 else -1
