"""A grammar while a sequence follows it: which tokens may come next."""

import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from numpy.typing import NDArray

from shared.errors import EngineError, InvalidRequest, LlmisError

_SHOWN_CHARS = 300
_LIMITS = LLParserLimits(step_lexer_fuel=50_000, max_lexer_states=120_000, verbose_errors=False)
"""A state takes 400 bytes, and a character of a string with `maxLength` up to 9 states."""
_GRACE_S = 0.1
_CALL_S = 0.005
"""What a call may take on average, once the grace is used up. With 262,144 tokens a schema of
500 properties takes 0.3 ms, and 4 ms where the grammar is met for the first time."""
_PROBED_TOKENS = 8
_TOKEN_BYTES = 16 * 1024
"""What copies of a matcher share grows by this with a token at most: 4 characters."""


@dataclass(slots=True, eq=False)
class CompiledGrammar:
    """What the sequences with the same grammar share. llguidance's copies of a matcher have one
    lexer between them, which grows with the text and fails for all once it has failed for one."""

    matcher: LLMatcher
    """At the start of the text; only copies of it move."""
    vocab_size: int
    """Tokens that a mask speaks of; those behind them are never allowed."""
    param: str
    """The parameter that errors name."""
    compiled_bytes: int = 0
    num_tokens: int = 0
    """Taken by all sequences so far."""
    has_failed: bool = False

    @property
    def num_bytes(self) -> int:
        return self.compiled_bytes + self.num_tokens * _TOKEN_BYTES


class Constraint:
    """The grammar of one sequence.

    `compute_mask` and what follows it happen one after the other, though it may be in different
    threads. Nothing here raises: it would take the whole batch along.
    """

    def __init__(self, compiled: CompiledGrammar, produced: Iterable[int] = ()) -> None:
        """`produced`: tokens that the text has already."""
        self._compiled = compiled
        self._matcher = compiled.matcher.deep_copy()
        self._produced = list(produced)
        self._bits = np.zeros((compiled.vocab_size + 31) // 32, np.int32)
        """Bit i of the whole: token i is allowed."""
        self._allowed_s = _GRACE_S
        """CPU time that is left."""
        self.error: LlmisError | None = None
        """Why the grammar could not be followed; whatever is drawn then means nothing."""

    def begin(self) -> None:
        self._matcher.reset()
        for token in self._produced:
            self.accept(token)

    def accept(self, token: int) -> None:
        """Take the token that was drawn."""
        if self.error is None and not self._matcher.is_stopped():
            self._compiled.num_tokens += 1
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

    def probe(self) -> LlmisError | None:
        """Follow the grammar for some tokens: most that cannot be followed fail at once."""
        rng = random.Random(0)  # nosec B311 # the same tries every time
        for _ in range(_PROBED_TOKENS):
            self.compute_mask()
            allowed = np.flatnonzero(~self.forbidden(self._compiled.vocab_size))
            if self.error is not None or self._matcher.is_stopped() or not allowed.size:
                break
            self.accept(int(rng.choice(allowed)))
        return self.error

    def _run(self, step: Callable[[], object]) -> None:
        # Time of this thread: others are not what the grammar is to blame for.
        started_s = time.thread_time()
        try:
            step()
        except BaseException as exc:  # a panic in Rust is no Exception
            self._fail(EngineError(f"The grammar could not be followed: {exc!r}"[:_SHOWN_CHARS]))
            return
        self._allowed_s += _CALL_S - (time.thread_time() - started_s)
        if self._matcher.is_error():
            self._fail(
                InvalidRequest(
                    f"The grammar could not be followed: {first_lines(self._matcher.get_error())}",
                    param=self._compiled.param,
                )
            )
        elif self._allowed_s < 0:
            self._fail(
                InvalidRequest(
                    "The grammar takes too long to follow: its expressions are too long, or "
                    "repeat too much. Make it simpler.",
                    param=self._compiled.param,
                )
            )

    def _fail(self, error: LlmisError) -> None:
        self.error = error
        self._compiled.has_failed = True


def new_matcher(tokenizer: LLTokenizer, source: str) -> LLMatcher:
    """Compile what `LLMatcher.grammar_from_…` returned. It recurses as deep as the grammar's
    references: needs a large stack."""
    return LLMatcher(tokenizer, source, log_level=0, limits=_LIMITS)


def first_lines(text: str) -> str:
    """An error of a matcher without the parser's state, which llguidance appends."""
    return text.partition("\n<")[0].strip()[:_SHOWN_CHARS]
