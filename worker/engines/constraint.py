"""A grammar while a sequence follows it: which tokens may come next."""

from collections.abc import Callable, Iterable

import numpy as np
from llguidance import LLMatcher
from numpy.typing import NDArray

from shared.errors import EngineError

_SHOWN_CHARS = 300


class Constraint:
    """The grammar of one sequence.

    `compute_mask` and what follows it happen one after the other, though it may be in different
    threads. Nothing here raises: it would take the whole batch along.
    """

    def __init__(self, matcher: LLMatcher, vocab_size: int, produced: Iterable[int] = ()) -> None:
        """`produced`: tokens that the text has already."""
        self._matcher = matcher
        self._produced = list(produced)
        self._bits = np.zeros((vocab_size + 31) // 32, np.int32)
        """Bit i of the whole: token i is allowed."""
        self.error: EngineError | None = None
        """Why the grammar could not be followed; whatever is drawn then means nothing."""

    def begin(self) -> None:
        self._matcher.reset()
        for token in self._produced:
            self.accept(token)

    def accept(self, token: int) -> None:
        """Take the token that was drawn."""
        if self.error is None and not self._matcher.is_stopped():
            self._run(lambda: self._matcher.consume_token(token))

    def compute_mask(self) -> None:
        if self.error is None:
            bits = self._bits
            self._run(lambda: self._matcher.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes))

    def forbidden(self, size: int) -> NDArray[np.bool_]:
        """`(size,)`: true for each token that the last mask does not allow."""
        forbidden = np.ones(size, np.bool_)
        allowed = np.unpackbits(self._bits.view(np.uint8), bitorder="little")[:size]
        forbidden[: allowed.size] = allowed == 0
        return forbidden

    def _run(self, step: Callable[[], object]) -> None:
        try:
            step()
            reason = self._matcher.get_error() if self._matcher.is_error() else ""
        except BaseException as exc:  # a panic in Rust is no Exception
            reason = f"{type(exc).__name__}: {exc}"
        if reason:
            self.error = EngineError(f"The grammar could not be followed: {first_lines(reason)}")


def first_lines(text: str) -> str:
    """An error of a matcher without the parser's state, which llguidance appends."""
    return text.partition("\n<state>")[0].strip()[:_SHOWN_CHARS]
