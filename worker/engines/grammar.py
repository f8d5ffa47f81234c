"""Grammars of completions, compiled by llguidance: what the engines share.

Compiled and checked in the task threads, before a sequence reaches the engine loop; the loop
copies what was compiled. Imported only where an engine is loaded.
"""

import json
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable

from llguidance import LLMatcher, LLTokenizer

from shared.errors import InvalidRequest
from shared.messages import Grammar, GrammarKind
from worker.engines.constraint import Constraint, first_lines

_log = logging.getLogger(__name__)
_MAX_KEPT = 512
"""More than sequences can be on their way from `check` to the loop: it never compiles."""
_JSON_OPTIONS = {"whitespace_pattern": r"(?: |\n{1,2}[ \t]{0,20})?"}
"""Small models lose themselves in white space where any amount of it is allowed."""


class GrammarCompiler:
    """Thread-safe. Keeps the grammars used last: clients repeat theirs."""

    def __init__(self, new_tokenizer: Callable[[], LLTokenizer], stop_ids: list[int]) -> None:
        """`new_tokenizer` is called with the first grammar: it may take a second. It raises
        ValueError for a vocabulary that llguidance cannot read: such a model serves everything
        but grammars. Its end tokens are to be `stop_ids`."""
        self._new_tokenizer = new_tokenizer
        self._has_end = bool(stop_ids)
        self._making = threading.Lock()
        self._is_made = False
        self._made: LLTokenizer | None = None
        self._lock = threading.Lock()
        self._kept: OrderedDict[Grammar, LLMatcher] = OrderedDict()

    @property
    def _tokenizer(self) -> LLTokenizer | None:
        with self._making:
            if not self._is_made:
                self._is_made = True
                try:
                    self._made = self._new_tokenizer()
                except ValueError as exc:
                    _log.warning("no grammars: llguidance cannot read the tokens: %s", exc)
            return self._made

    @property
    def vocab_size(self) -> int:
        """Tokens that a mask speaks of; those behind them are never allowed."""
        tokenizer = self._tokenizer
        return int(tokenizer.vocab_size) if tokenizer is not None else 0

    def check(self, grammar: Grammar) -> None:
        """Compile it. Raises InvalidRequest, which says what is wrong with the grammar."""
        self._compiled(grammar)

    def matcher(self, grammar: Grammar) -> LLMatcher:
        """A fresh matcher at the start of the text. Raises InvalidRequest."""
        return self._compiled(grammar).deep_copy()

    def constraint(self, grammar: Grammar, produced: list[int]) -> Constraint:
        """A fresh constraint for one sequence, which has these tokens already. Raises
        InvalidRequest."""
        constraint = Constraint(self.matcher(grammar), self.vocab_size, produced)
        constraint.begin()
        return constraint

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
        tokenizer = self._tokenizer
        if tokenizer is None:
            raise InvalidRequest(
                "Grammars do not work with this model's tokens.", param=grammar.param
            )
        if not self._has_end:
            raise InvalidRequest(
                "This model declares no end token, so a grammar could not end its text.",
                param=grammar.param,
            )
        try:
            source = _to_llguidance(grammar)
        except ValueError as exc:
            raise InvalidRequest(
                f"The JSON schema is not valid: {exc}", param=grammar.param
            ) from exc
        matcher = LLMatcher(tokenizer, source, log_level=0)
        if matcher.is_error():
            raise InvalidRequest(
                f"The {grammar.kind.value} is not valid: {first_lines(matcher.get_error())}",
                param=grammar.param,
            )
        return matcher


def _to_llguidance(grammar: Grammar) -> str:
    """Raises ValueError for JSON that is none."""
    if grammar.kind is GrammarKind.JSON_SCHEMA:
        schema = json.loads(grammar.source)
        if isinstance(schema, bool):
            schema = {} if schema else {"not": {}}
        if not isinstance(schema, dict):
            raise ValueError("it must be an object")
        asked = schema.get("x-guidance", {})
        if isinstance(asked, dict):
            schema = {**schema, "x-guidance": {**_JSON_OPTIONS, **asked}}
        return LLMatcher.grammar_from_json_schema(schema)
    if grammar.kind is GrammarKind.REGEX:
        return LLMatcher.grammar_from_regex(grammar.source)
    return LLMatcher.grammar_from_lark(grammar.source)
