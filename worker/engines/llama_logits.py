"""The logits of a position, and the log probabilities that are read off them."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from shared.messages import Logprob, TokenLogprobs

Row = NDArray[np.float32]
"""`(vocab_size,)`: the logits of one position, in llama.cpp's own memory."""


def token_logprobs(
    row: Row, token: int, num_alternatives: int, piece: Callable[[int], bytes]
) -> TokenLogprobs:
    """A token in the distribution of untouched logits."""
    shifted = row - row.max()
    normalised = shifted - np.log(np.exp(shifted).sum())
    top: list[Logprob] = []
    if num_alternatives:
        ids = np.argpartition(normalised, -num_alternatives)[-num_alternatives:]
        for token_id in ids[np.argsort(-normalised[ids])].tolist():
            top.append(Logprob(token_id, float(normalised[token_id]), piece(token_id)))
    return TokenLogprobs(Logprob(token, float(normalised[token]), piece(token)), top)
