"""Log probabilities of tokens, computed from the logits that the model gave for a position.

The logits must be untouched: penalties, biases, grammars and truncation change the distribution
that is drawn from, and log probabilities are of the model's own. Thread-safe.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from shared.wire.events import Logprob, TokenLogprobs

Row = NDArray[np.float32]
"""`(vocab_size,)`: the logits of one position."""
_BLOCK = 512
"""Logits per block in the search for the best ones."""


def token_logprobs(
    row: Row,
    token: int,
    num_alternatives: int,
    report: Callable[[int, float], Logprob],
    *,
    is_end: bool = False,
) -> TokenLogprobs:
    """The token and its alternatives in the softmax of the row; `row` is not changed."""
    highest = row.max()
    powers = row - highest
    np.exp(powers, out=powers)
    norm = highest + np.log(powers.sum())
    top = [report(i, float(row[i] - norm)) for i in best_tokens(row, num_alternatives)]
    # An id beyond the vocabulary is never drawn: samplers mask the padding. If one were, an
    # exception here would end the whole batch.
    chosen = float(row[token] - norm) if token < row.size else -math.inf
    return TokenLogprobs(report(token, chosen), top, is_end)


def best_tokens(row: Row, num_wanted: int) -> list[int]:
    """The ids of the highest logits, best first, equal ones by id.

    Sorting or partitioning a large vocabulary takes milliseconds, so most of it is excluded
    first. At least `num_wanted` blocks have a maximum of `least` or more, so at least that many
    logits do, and none of the best ones is below it.
    """
    if not num_wanted:
        return []
    maxima = np.maximum.reduceat(row, np.arange(0, row.size, _BLOCK))
    least = np.sort(maxima)[-num_wanted] if num_wanted <= maxima.size else -np.inf
    ids = np.flatnonzero(row >= least)
    best: list[int] = ids[np.argsort(-row[ids], kind="stable")][:num_wanted].tolist()
    return best
