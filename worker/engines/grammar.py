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

_log = logging.getLogger(__name__)
_MAX_KEPT = 512
"""More than sequences can be on their way from `check` to the loop: it never compiles."""
_PARAM = "response_format"


class GrammarCompiler:
    """Thread-safe. Keeps the grammars used last: clients repeat theirs."""

    def __init__(self, new_tokenizer: Callable[[], LLTokenizer], stop_ids: list[int]) -> None:
        """`new_tokenizer` raises ValueError for a vocabulary that llguidance cannot read: such
        a model serves everything but grammars. Its end tokens are to be `stop_ids`."""
        self._has_end = bool(stop_ids)
        self._tokenizer: LLTokenizer | None = None
        try:
            self._tokenizer = new_tokenizer()
        except ValueError as exc:
            _log.warning("no grammars with this model: llguidance cannot read its tokens: %s", exc)
        self._lock = threading.Lock()
        self._kept: OrderedDict[Grammar, LLMatcher] = OrderedDict()

    @property
    def vocab_size(self) -> int:
        """Tokens that a mask speaks of; those behind them are never allowed."""
        return int(self._tokenizer.vocab_size) if self._tokenizer is not None else 0

    def check(self, grammar: Grammar) -> None:
        """Compile it. Raises InvalidRequest, which says what is wrong with the grammar."""
        self._compiled(grammar)

    def matcher(self, grammar: Grammar) -> LLMatcher:
        """A fresh matcher for one sequence, at the start of the text. Raises InvalidRequest."""
        return self._compiled(grammar).deep_copy()

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
        if self._tokenizer is None:
            raise InvalidRequest("Grammars do not work with this model's tokens.", param=_PARAM)
        if not self._has_end:
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
                f"The {grammar.kind.value} is not valid: {first_lines(matcher.get_error())}",
                param=_PARAM,
            )
        return matcher


def first_lines(text: str, num_chars: int = 300) -> str:
    """An error of a matcher without the parser's state, which llguidance appends."""
    return text.partition("\n<state>")[0].strip()[:num_chars]


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
