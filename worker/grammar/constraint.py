"""Grammar-constrained decoding of one sequence: which tokens may come next."""

import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from numpy.typing import NDArray

from shared.errors import EngineError, InvalidRequest, LlmisError

_SHOWN_CHARS = 300
_LIMITS = LLParserLimits(step_lexer_fuel=150_000, max_lexer_states=120_000, verbose_errors=False)
"""A state takes 400 bytes; a character of a string with `maxLength` takes up to 9 states."""
_GRACE_S = 0.1
_CALL_S = 0.005
"""CPU time allowed per call on average, beyond the initial `_GRACE_S`. With 262,144 tokens a
schema of 500 properties takes 0.3 ms, or 4 ms in states that were not visited before."""
_PROBED_TOKENS = 8
_TOKEN_BYTES = 16 * 1024
"""Upper bound of the growth of the shared lexer per token, for tokens of 4 characters."""


@dataclass(slots=True, eq=False)
class CompiledGrammar:
    """A compiled grammar, shared by all sequences that use it. llguidance's copies of a matcher
    share one lexer, which grows with the text, and which fails for all once it fails for one."""

    matcher: LLMatcher
    """At the start of the text. It never advances; sequences advance copies of it."""
    vocab_size: int
    """Size of a mask; token ids from here on are never allowed."""
    param: str
    """The parameter that errors name."""
    compiled_bytes: int = 0
    num_tokens: int = 0
    """Consumed by all sequences so far."""
    has_failed: bool = False

    @property
    def num_bytes(self) -> int:
        return self.compiled_bytes + self.num_tokens * _TOKEN_BYTES


class Constraint:
    """The grammar of one sequence. Not thread-safe: the calls may come from different threads, but
    one after the other. Nothing here raises, because an exception would fail the whole batch: see
    `error`."""

    def __init__(self, compiled: CompiledGrammar, produced: Iterable[int] = ()) -> None:
        """`produced`: tokens of earlier attempts, consumed by `begin`."""
        self._compiled = compiled
        self._matcher = compiled.matcher.deep_copy()
        self._produced = list(produced)
        self._bits = np.zeros((compiled.vocab_size + 31) // 32, np.int32)
        """Bit i, little-endian: token i is allowed."""
        self._allowed_s = _GRACE_S
        """CPU time left; each call adds `_CALL_S`."""
        self.error: LlmisError | None = None
        """Why the grammar could not be followed; tokens drawn after that are meaningless."""

    def begin(self) -> None:
        self._matcher.reset()
        for token in self._produced:
            self.accept(token)

    def accept(self, token: int) -> None:
        """Consume a drawn token."""
        if self.error is None and not self._matcher.is_stopped():
            self._compiled.num_tokens += 1
            self._run(lambda: self._matcher.consume_token(token))

    def compute_mask(self) -> None:
        if self.error is None:
            bits = self._bits
            self._run(lambda: self._matcher.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes))

    def forbidden(self, size: int) -> NDArray[np.bool_]:
        """`(size,)`: true for each token that the last mask forbids."""
        forbidden = np.ones(size, np.bool_)
        allowed = np.unpackbits(self._bits.view(np.uint8), bitorder="little")[:size]
        forbidden[: allowed.size] = allowed == 0
        return forbidden

    def probe(self) -> LlmisError | None:
        """Follow the grammar for a few random tokens: most unusable grammars fail at once."""
        rng = random.Random(0)  # nosec B311 # reproducible, no secret
        for _ in range(_PROBED_TOKENS):
            self.compute_mask()
            allowed = np.flatnonzero(~self.forbidden(self._compiled.vocab_size))
            if self.error is not None or self._matcher.is_stopped() or not allowed.size:
                break
            self.accept(int(rng.choice(allowed)))
        return self.error

    def _run(self, step: Callable[[], object]) -> None:
        # CPU time of this thread, so that other load does not count against the grammar.
        started_s = time.thread_time()
        try:
            step()
        except BaseException as exc:  # llguidance: a Rust panic is not an Exception
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
                    "The grammar takes too long to follow: its expressions are too long or "
                    "repeat too much. Simplify it.",
                    param=self._compiled.param,
                )
            )

    def _fail(self, error: LlmisError) -> None:
        self.error = error
        self._compiled.has_failed = True


def new_matcher(tokenizer: LLTokenizer, source: str) -> LLMatcher:
    """Compile what `LLMatcher.grammar_from_…` returned. Recurses as deep as the grammar's
    references: call it with `on_large_stack`."""
    return LLMatcher(tokenizer, source, log_level=0, limits=_LIMITS)


def first_lines(text: str) -> str:
    """A matcher's error without the parser state that llguidance appends."""
    return text.partition("\n<")[0].strip()[:_SHOWN_CHARS]
