"""Log probabilities from the model's own distribution.

What ExLlamaV2 returns will not do: `token_probs` and `top_k_probs` are of what is left after
truncation, and `logits` were changed in place by penalties, bias and grammar. So the logits
are copied before the sampler sees them, for the sequences that ask.
"""

import math
from collections.abc import Callable

import torch

from shared.messages import Logprob, TokenLogprobs


def raw_logits(logits: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """Copy the row of one position. `logits`: `(1, 1, padded_vocab) float32 cpu`; the padding,
    whose logits mean nothing, is left off."""
    return logits[0, -1, :vocab_size].clone()


def token_logprobs(
    raw: torch.Tensor,
    token: int,
    num_alternatives: int,
    report: Callable[[int, float], Logprob],
    *,
    is_end: bool = False,
) -> TokenLogprobs:
    """`raw`: `(vocab,) float32`, as `raw_logits` gives it."""
    normalised = torch.log_softmax(raw, dim=-1)
    values, ids = torch.topk(normalised, min(num_alternatives, raw.numel()))
    top = [report(i, value) for i, value in zip(ids.tolist(), values.tolist(), strict=True)]
    # An id beyond the vocabulary is not drawn: the sampler masks the padding. If it were, an
    # exception here would end the whole batch.
    chosen = float(normalised[token]) if token < raw.numel() else -math.inf
    return TokenLogprobs(report(token, chosen), top, is_end)
