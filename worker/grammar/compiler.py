"""Compiles the grammars of completions with llguidance, for all engines.

Grammars are compiled and checked in the task threads, before a sequence reaches the engine loop;
the loop only copies the result. Imported only where an engine is loaded.
"""

import json
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable

from llguidance import LLMatcher, LLTokenizer

from shared.errors import InvalidRequest
from shared.wire.job import Grammar, GrammarKind
from worker.foreign import foreign_errors
from worker.grammar.constraint import CompiledGrammar, Constraint, first_lines, new_matcher
from worker.grammar.guided_schema import guided_schema
from worker.grammar.large_stack import on_large_stack
from worker.grammar.notation import as_lark, fault
from worker.grammar.patterns import ascii_classes
from worker.grammar.trial import GrammarTrial

_log = logging.getLogger(__name__)
_MAX_KEPT_BYTES = 64 << 20
_LEAST_BYTES = 128 << 10
"""Memory of a grammar in the cache, at least; a small schema takes 80 KiB."""
_STACK_BYTES = 128 << 20
"""Twice that of the trial process."""
_NOUNS = {
    GrammarKind.JSON_SCHEMA: "JSON schema",
    GrammarKind.REGEX: "regular expression",
    GrammarKind.LARK: "grammar",
}


class GrammarCompiler:
    """Thread-safe. Compiles one grammar at a time and caches the ones used last, because clients
    repeat theirs."""

    def __init__(self, new_tokenizer: Callable[[], LLTokenizer], stop_ids: list[int]) -> None:
        """`new_tokenizer` is called for the first grammar and may take a second. Its end tokens
        must be `stop_ids`. It raises ValueError for a vocabulary that llguidance cannot read:
        such a model serves everything but grammars."""
        self._new_tokenizer: Callable[[], LLTokenizer] | None = new_tokenizer
        self._has_end = bool(stop_ids)
        self._tokenizer: LLTokenizer | None = None
        self._trial: GrammarTrial | None = None
        self._compiling = threading.Lock()
        self._lock = threading.Lock()
        self._kept: OrderedDict[Grammar, CompiledGrammar] = OrderedDict()

    def compiled(self, grammar: Grammar) -> CompiledGrammar:
        """Return the grammar from the cache, or compile it. Raises InvalidRequest with what is
        wrong with the grammar."""
        found = self._find(grammar)
        if found is None:
            with self._compiling:
                # Again: another thread may have compiled it while this one waited.
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
        result = trial.run(source)
        if not result.is_valid:
            raise _not_valid(grammar, result.reason)
        if not result.is_followed:
            raise InvalidRequest(result.reason, param=grammar.param)
        matcher = on_large_stack(_STACK_BYTES, lambda: new_matcher(tokenizer, source))
        if matcher.is_error():
            raise _not_valid(grammar, first_lines(matcher.get_error()))
        num_bytes = max(_LEAST_BYTES, result.num_bytes)
        compiled = CompiledGrammar(matcher, int(tokenizer.vocab_size), grammar.param, num_bytes)
        # The trial process used single bytes as tokens: probe with the real ones too. This also
        # builds most of the lexer before the loop needs it.
        error = Constraint(compiled).probe()
        if error is not None:
            raise error
        return compiled

    def _prepare(self, grammar: Grammar) -> tuple[LLTokenizer, GrammarTrial]:
        if not self._has_end:
            reason = "This model declares no end token, so a grammar could not end the text."
            raise InvalidRequest(reason, param=grammar.param)
        if self._new_tokenizer is not None:
            new_tokenizer, self._new_tokenizer = self._new_tokenizer, None
            try:
                self._tokenizer = new_tokenizer()
                self._trial = GrammarTrial(self._tokenizer)
            except ValueError as exc:
                _log.warning("grammars are off: llguidance cannot read the vocabulary: %s", exc)
        if self._tokenizer is None or self._trial is None:
            raise InvalidRequest(
                "Grammars do not work with this model's vocabulary.", param=grammar.param
            )
        return self._tokenizer, self._trial


def _not_valid(grammar: Grammar, reason: str) -> InvalidRequest:
    what = f"the {_NOUNS[grammar.kind]}"
    if grammar.kind is GrammarKind.LARK:
        what, reason = fault(grammar.source, reason) or (what, reason)
    message = f"Invalid value for {grammar.param}: {what} is not valid: {reason}"
    return InvalidRequest(message, param=grammar.param)


def _to_llguidance(grammar: Grammar) -> str:
    """Raises InvalidRequest for a schema that is not a JSON object or has a number over 64 bits."""
    if grammar.kind is GrammarKind.REGEX:
        return LLMatcher.grammar_from_regex(ascii_classes(grammar.source))
    if grammar.kind is GrammarKind.LARK:
        with foreign_errors(lambda exc: _not_valid(grammar, str(exc))):
            return LLMatcher.grammar_from_lark(as_lark(grammar.source))
    try:
        schema = json.loads(grammar.source)
        if not isinstance(schema, dict):
            raise ValueError("it must be an object")
        return LLMatcher.grammar_from_json_schema(guided_schema(schema))
    except ValueError as exc:
        raise _not_valid(grammar, str(exc)) from exc
