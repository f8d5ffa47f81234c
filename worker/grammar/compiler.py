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
from llguidance.gbnf_to_lark import any_to_lark

from shared.errors import InvalidRequest
from shared.messages import Grammar, GrammarKind
from worker.engines.constraint import CompiledGrammar, Constraint, first_lines, new_matcher
from worker.engines.grammar_trial import GrammarTrial
from worker.engines.large_stack import on_large_stack
from worker.guided_schema import guided_schema

_log = logging.getLogger(__name__)
_MAX_KEPT_BYTES = 64 << 20
_LEAST_BYTES = 128 << 10
"""A small schema takes 80 KiB."""
_STACK_BYTES = 128 << 20


_WORDS = {
    GrammarKind.JSON_SCHEMA: "JSON schema",
    GrammarKind.REGEX: "regular expression",
    GrammarKind.LARK: "grammar",
}


class GrammarCompiler:
    """Thread-safe. Compiles one grammar at a time, and keeps those used last: clients repeat
    theirs."""

    def __init__(self, new_tokenizer: Callable[[], LLTokenizer], stop_ids: list[int]) -> None:
        """`new_tokenizer` is called with the first grammar: it may take a second. It raises
        ValueError for a vocabulary that llguidance cannot read: such a model serves everything
        but grammars. Its end tokens are to be `stop_ids`."""
        self._new_tokenizer: Callable[[], LLTokenizer] | None = new_tokenizer
        self._has_end = bool(stop_ids)
        self._tokenizer: LLTokenizer | None = None
        self._trial: GrammarTrial | None = None
        self._compiling = threading.Lock()
        self._lock = threading.Lock()
        self._kept: OrderedDict[Grammar, CompiledGrammar] = OrderedDict()

    def compiled(self, grammar: Grammar) -> CompiledGrammar:
        """Compile it, unless it is kept. Raises InvalidRequest, which says what is wrong with
        the grammar."""
        found = self._find(grammar)
        if found is None:
            with self._compiling:
                found = self._find(grammar) or self._compile(grammar)
            self._keep(grammar, found)
        return found

    def _find(self, grammar: Grammar) -> CompiledGrammar | None:
        with self._lock:
            found = self._kept.get(grammar)
            if found is None or found.has_failed:
                return None
            self._kept.move_to_end(grammar)
            return found

    def _keep(self, grammar: Grammar, compiled: CompiledGrammar) -> None:
        with self._lock:
            self._kept[grammar] = compiled
            num_bytes = sum(kept.num_bytes for kept in self._kept.values())
            while num_bytes > _MAX_KEPT_BYTES:
                num_bytes -= self._kept.popitem(last=False)[1].num_bytes

    def _compile(self, grammar: Grammar) -> CompiledGrammar:
        tokenizer, trial = self._prepare(grammar)
        source = _to_llguidance(grammar)
        verdict = trial.verdict(source)
        if not verdict.is_valid:
            raise _not_valid(grammar, verdict.reason)
        if not verdict.is_followed:
            raise InvalidRequest(verdict.reason, param=grammar.param)
        matcher = on_large_stack(_STACK_BYTES, lambda: new_matcher(tokenizer, source))
        if matcher.is_error():
            raise _not_valid(grammar, first_lines(matcher.get_error()))
        num_bytes = max(_LEAST_BYTES, verdict.num_bytes)
        compiled = CompiledGrammar(matcher, int(tokenizer.vocab_size), grammar.param, num_bytes)
        # With these tokens, too; and the loop finds most of the lexer made.
        error = Constraint(compiled).probe()
        if error is not None:
            raise error
        return compiled

    def _prepare(self, grammar: Grammar) -> tuple[LLTokenizer, GrammarTrial]:
        if not self._has_end:
            raise InvalidRequest(
                "This model declares no end token, so a grammar could not end its text.",
                param=grammar.param,
            )
        if self._new_tokenizer is not None:
            new_tokenizer, self._new_tokenizer = self._new_tokenizer, None
            try:
                self._tokenizer = new_tokenizer()
                self._trial = GrammarTrial(self._tokenizer)
            except ValueError as exc:
                _log.warning("no grammars: llguidance cannot read the tokens: %s", exc)
        if self._tokenizer is None or self._trial is None:
            raise InvalidRequest(
                "Grammars do not work with this model's tokens.", param=grammar.param
            )
        return self._tokenizer, self._trial


def _not_valid(grammar: Grammar, reason: str) -> InvalidRequest:
    return InvalidRequest(
        f"Invalid value for {grammar.param}: the {_WORDS[grammar.kind]} is not valid: {reason}",
        param=grammar.param,
    )


def _lark_of(grammar: Grammar) -> str:
    """The grammar in Lark's notation, if it comes in GBNF. Raises InvalidRequest."""
    try:
        return str(any_to_lark(grammar.source))
    except Exception as exc:  # the converter raises bare ones
        raise _not_valid(grammar, str(exc)) from exc


def _to_llguidance(grammar: Grammar) -> str:
    """Raises InvalidRequest for a schema that is no JSON object, or has a number beyond 64 bits."""
    if grammar.kind is GrammarKind.REGEX:
        return LLMatcher.grammar_from_regex(grammar.source)
    if grammar.kind is GrammarKind.LARK:
        return LLMatcher.grammar_from_lark(_lark_of(grammar))
    try:
        schema = json.loads(grammar.source)
        if not isinstance(schema, dict):
            raise ValueError("it must be an object")
        return LLMatcher.grammar_from_json_schema(guided_schema(schema))
    except ValueError as exc:
        raise _not_valid(grammar, str(exc)) from exc
