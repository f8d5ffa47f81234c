"""Completions that match a JSON schema, a regular expression or a grammar, by llguidance.

Grammars are compiled and checked in the task threads; the engine loop copies what was
compiled. ExLlamaV2 runs the mask of the next token in a thread pool while the GPU works.
"""

import json
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer

from shared.errors import EngineError, InvalidRequest
from shared.messages import Grammar, GrammarKind

_MAX_KEPT = 32
_PARAM = "response_format"


class GrammarCompiler:
    """Thread-safe. Keeps the grammars used last: clients repeat theirs."""

    def __init__(self, tokenizer_json: Path, stop_ids: list[int]) -> None:
        self._stop_ids = stop_ids
        self._tokenizer = LLTokenizer(tokenizer_json.read_text("utf-8"), eos_token=stop_ids or None)
        self._lock = threading.Lock()
        self._kept: OrderedDict[Grammar, LLMatcher] = OrderedDict()

    def check(self, grammar: Grammar) -> None:
        """Compile it. Raises InvalidRequest, which says what is wrong with the grammar."""
        self._compiled(grammar)

    def constraint(self, grammar: Grammar) -> "Constraint":
        """A fresh constraint for one sequence. Raises InvalidRequest."""
        return Constraint(self._compiled(grammar).deep_copy(), self._tokenizer.vocab_size)

    def _compiled(self, grammar: Grammar) -> LLMatcher:
        with self._lock:
            matcher = self._kept.get(grammar)
            if matcher is not None:
                self._kept.move_to_end(grammar)
                return matcher
        matcher = self._compile(grammar)
        with self._lock:
            self._kept[grammar] = matcher
            while len(self._kept) > _MAX_KEPT:
                self._kept.popitem(last=False)
        return matcher

    def _compile(self, grammar: Grammar) -> LLMatcher:
        if not self._stop_ids:
            raise InvalidRequest(
                "This model declares no end token, so a grammar could not end its text.",
                param=_PARAM,
            )
        try:
            source = _to_llguidance(grammar)
        except ValueError as exc:
            raise InvalidRequest(f"The JSON schema is not valid: {exc}", param=_PARAM) from exc
        matcher = LLMatcher(self._tokenizer, source, log_level=0)
        if matcher.is_error():
            raise InvalidRequest(
                f"The {grammar.kind.value} is not valid: {_first_lines(matcher.get_error())}",
                param=_PARAM,
            )
        return matcher


class Constraint:
    """The grammar of one sequence: which tokens may come next.

    `compute_mask` and what follows it happen one after the other, though in different threads.
    """

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        self._matcher = matcher
        self._bits = np.zeros((vocab_size + 31) // 32, np.int32)
        """Bit i of the whole: token i is allowed."""
        self.error: EngineError | None = None

    def begin(self) -> None:
        self._matcher.reset()

    def accept(self, token: int) -> None:
        if self.error is None and not self._matcher.is_stopped():
            self._matcher.consume_token(token)
            self._note_error()

    def compute_mask(self) -> None:
        """Never raises: in the thread pool it would take the whole batch along."""
        if self.error is None:
            self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
            self._note_error()

    def mask(self, logits: torch.Tensor) -> torch.Tensor:
        """Set what is not allowed to -inf, in place. `logits`: `(padded_vocab,) float32 cpu`."""
        if self.error is not None:
            return logits  # whatever is drawn now, the sequence ends with the error
        allowed = torch.from_numpy(np.unpackbits(self._bits.view(np.uint8), bitorder="little"))
        size = min(allowed.numel(), logits.numel())
        logits[:size].masked_fill_(allowed[:size] == 0, float("-inf"))
        logits[size:] = float("-inf")
        return logits

    def _note_error(self) -> None:
        if self._matcher.is_error():
            reason = _first_lines(self._matcher.get_error())
            self.error = EngineError(f"The grammar could not be followed: {reason}")


def new_filter(filter_class: type[Any], model: Any, tokenizer: Any, constraint: Constraint) -> Any:
    """Make the ExLlamaV2Filter that carries a constraint. Every job needs one of its own.

    Contract: exllamav2@v0.3.2:generator/filters/base.py. The method names and their order of
    use (begin, then mask and feed in turn) are the library's.
    """

    class ConstraintFilter(filter_class):  # type: ignore[misc]
        def begin(self, prefix_str: str) -> None:
            constraint.begin()

        def feed(self, token: torch.Tensor) -> None:
            constraint.accept(int(token[0, 0]))

        def use_background_worker(self) -> bool:
            return True

        def can_mask_logits(self) -> bool:
            return True

        def prepare_logit_mask(self) -> bool:
            constraint.compute_mask()
            return True  # the sampler asserts it

        def mask_logits(self, logits: torch.Tensor) -> torch.Tensor:
            return constraint.mask(logits)

    return ConstraintFilter(model, tokenizer)


def _to_llguidance(grammar: Grammar) -> str:
    """Raises ValueError for JSON that is none."""
    if grammar.kind is GrammarKind.JSON_SCHEMA:
        schema = json.loads(grammar.source)
        if isinstance(schema, bool):
            schema = {} if schema else {"not": {}}
        if not isinstance(schema, dict):
            raise ValueError("it must be an object")
        return LLMatcher.grammar_from_json_schema(schema)
    if grammar.kind is GrammarKind.REGEX:
        return LLMatcher.grammar_from_regex(grammar.source)
    return LLMatcher.grammar_from_lark(grammar.source)


def _first_lines(text: str, num_chars: int = 300) -> str:
    """Without the parser's state, which llguidance appends."""
    return text.partition("\n<state>")[0].strip()[:num_chars]
