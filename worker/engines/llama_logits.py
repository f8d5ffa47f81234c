"""The logits of a step: what may not be drawn is masked, and log probabilities are read off."""

from collections.abc import Callable

import numpy as np
from llguidance import LLMatcher
from numpy.typing import NDArray

from shared.errors import EngineError
from shared.messages import Logprob, TokenLogprobs
from worker.engines.grammar import first_lines

Row = NDArray[np.float32]
"""`(vocab_size,)`: the logits of one position, in llama.cpp's own memory."""


class GrammarMask:
    """The grammar of one sequence: which tokens may come next."""

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        self._matcher = matcher
        self._bits = np.zeros((vocab_size + 31) // 32, np.int32)
        """Bit i of the whole: token i is allowed."""

    def apply(self, row: Row) -> None:
        """Set what is not allowed to -inf. Raises EngineError."""
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        self._check()
        allowed = np.unpackbits(self._bits.view(np.uint8), count=row.size, bitorder="little")
        row[allowed == 0] = -np.inf

    def accept(self, token: int) -> None:
        """Take the token that was drawn. Raises EngineError."""
        if not self._matcher.is_stopped():
            self._matcher.consume_token(token)
            self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = first_lines(self._matcher.get_error())
            raise EngineError(f"The grammar could not be followed: {reason}")


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
