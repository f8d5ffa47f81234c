"""The logits of a position, and the log probabilities that are read off them."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from shared.messages import Logprob, TokenLogprobs

Row = NDArray[np.float32]
"""`(vocab_size,)`: the logits of one position, in llama.cpp's own memory."""
_BLOCK = 512
"""Logits whose maximum is taken together in the search for the best ones."""


def token_logprobs(
    row: Row,
    token: int,
    num_alternatives: int,
    report: Callable[[int, float], Logprob],
    *,
    is_end: bool = False,
) -> TokenLogprobs:
    """A token in the distribution of untouched logits."""
    highest = row.max()
    powers = row - highest
    np.exp(powers, out=powers)
    norm = highest + np.log(powers.sum())
    top = [report(i, float(row[i] - norm)) for i in best_tokens(row, num_alternatives)]
    return TokenLogprobs(report(token, float(row[token] - norm)), top, is_end)


def best_tokens(row: Row, num_wanted: int) -> list[int]:
    """The ids of the highest logits, best first, equal ones by id.

    Sorting or partitioning a large vocabulary takes milliseconds. But as many blocks as there
    are wanted have a maximum of at least `least`, so the best ones are not below it: few are left.
    """
    if not num_wanted:
        return []
    maxima = np.maximum.reduceat(row, np.arange(0, row.size, _BLOCK))
    least = np.sort(maxima)[-num_wanted] if num_wanted <= maxima.size else -np.inf
    ids = np.flatnonzero(row >= least)
    best: list[int] = ids[np.argsort(-row[ids], kind="stable")][:num_wanted].tolist()
    return best
