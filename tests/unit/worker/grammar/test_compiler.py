"""Grammars of completions: compiled once, copied for every sequence, refused with a reason."""

import json
import os
import resource
import signal
import time
from collections.abc import Iterator

import psutil
import pytest
from llguidance import LLMatcher, LLTokenizer

from shared.errors import InvalidRequest
from shared.wire.job import Grammar, GrammarKind
from tests.support import hostile_grammars
from tests.support.exl2_folder import ids, make_tokenizer
from worker.grammar import compiler as grammar_module
from worker.grammar.compiler import GrammarCompiler
from worker.grammar.constraint import CompiledGrammar, Constraint, new_matcher

AB = Grammar(GrammarKind.REGEX, "ab")


@pytest.fixture(scope="module", autouse=True)
def patience() -> Iterator[None]:
    """The CPU time of a trial ends it here, however few seconds of each minute it gets."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("worker.grammar.trial._TRIAL_S", 120.0)
        yield


def _new_tokenizer() -> LLTokenizer:
    return LLTokenizer(make_tokenizer().to_str(), eos_token=[2, 4])


@pytest.fixture(scope="module")
def shared_compiler() -> GrammarCompiler:
    """For tests that leave it as it was: its process takes a while to start."""
    return GrammarCompiler(_new_tokenizer, [2, 4])


@pytest.fixture
def compiler() -> GrammarCompiler:
    return GrammarCompiler(_new_tokenizer, [2, 4])


def _matches(matcher: LLMatcher, text: str) -> bool:
    return matcher.deep_copy().validate_tokens(ids(text)) == len(ids(text))


def test_every_constraint_is_at_the_start_of_the_text(compiler: GrammarCompiler) -> None:
    compiled = compiler.compiled(AB)
    for _ in range(2):
        constraint = Constraint(compiled)
        constraint.begin()
        for token in ids("ab"):
            constraint.accept(token)
        assert constraint.error is None
    assert _matches(compiled.matcher, "ab")


def test_a_grammar_that_is_kept_is_not_compiled_again(compiler: GrammarCompiler) -> None:
    first = compiler.compiled(AB)
    for i in range(100):
        compiler.compiled(Grammar(GrammarKind.REGEX, f"ab{i}"))
    assert compiler.compiled(AB) is first


def test_grammars_are_kept_by_their_memory(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammar_module, "_MAX_KEPT_BYTES", 4 << 20)
    first = compiler.compiled(AB)
    compiler.compiled(Grammar(GrammarKind.REGEX, "cd"))
    assert compiler.compiled(AB) is first
    first.num_tokens = 1000  # its lexer grew with every text
    compiler.compiled(Grammar(GrammarKind.REGEX, "ef"))
    assert compiler.compiled(AB) is not first
    assert compiler.compiled(hostile_grammars.TAKEN["references"]).num_bytes > 4 << 20
    assert compiler.compiled(AB) is not first


def test_a_grammar_that_failed_is_compiled_afresh(compiler: GrammarCompiler) -> None:
    first = compiler.compiled(AB)
    Constraint(first).accept(ids("z")[0])
    assert first.has_failed
    assert compiler.compiled(AB) is not first


@pytest.mark.parametrize(
    ("kind", "source", "reason"),
    [
        (GrammarKind.JSON_SCHEMA, "{bad", "JSON schema is not valid: "),
        (GrammarKind.JSON_SCHEMA, f'{{"const": {2**64}}}', "JSON schema is not valid"),
        (GrammarKind.JSON_SCHEMA, '{"type": 5}', "JSON schema is not valid"),
        (GrammarKind.REGEX, "(a", "regular expression is not valid"),
        (GrammarKind.LARK, "start: nothing", "grammar is not valid"),
    ],
)
def test_a_bad_grammar_names_the_field(
    shared_compiler: GrammarCompiler, kind: GrammarKind, source: str, reason: str
) -> None:
    with pytest.raises(InvalidRequest, match=reason) as caught:
        shared_compiler.compiled(Grammar(kind, source, "guided_x"))
    assert caught.value.param == "guided_x"


def test_a_class_of_an_expression_is_one_of_ascii(shared_compiler: GrammarCompiler) -> None:
    compiled = shared_compiler.compiled(Grammar(GrammarKind.REGEX, r"\d\w"))
    assert _matches(compiled.matcher, "5a")
    for text in ("٣a", "\U0001fbf0a", "5é"):
        assert not _matches(compiled.matcher, text)


@pytest.mark.parametrize(
    "source", ["?start: e\ne: /[0-9]/", "%import common.DIGIT\n!start: DIGIT", "root ::= [0-9]"]
)
def test_a_grammar_may_be_lark_or_gbnf(shared_compiler: GrammarCompiler, source: str) -> None:
    matcher = shared_compiler.compiled(Grammar(GrammarKind.LARK, source)).matcher
    assert _matches(matcher, "5") and not _matches(matcher, "a")


@pytest.mark.parametrize("name", hostile_grammars.REFUSED)
def test_a_hostile_grammar_is_refused_in_time(shared_compiler: GrammarCompiler, name: str) -> None:
    grammar = hostile_grammars.REFUSED[name]
    assert shared_compiler.compiled(AB)  # with a process for the trial
    before_s = _cpu_s(shared_compiler)
    with pytest.raises(InvalidRequest) as caught:
        shared_compiler.compiled(grammar)
    assert caught.value.param == grammar.param
    assert _cpu_s(shared_compiler) - before_s < 12
    assert shared_compiler.compiled(AB)


def _cpu_s(compiler: GrammarCompiler) -> float:
    """CPU time of this thread, of the process for the trials, and of those that have died."""
    died = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = time.thread_time() + died.ru_utime + died.ru_stime
    process = compiler._trial and compiler._trial._process
    if process and process.poll() is None:
        times = psutil.Process(process.pid).cpu_times()
        seconds += times.user + times.system
    return seconds


@pytest.mark.parametrize("name", hostile_grammars.TAKEN)
def test_a_deep_grammar_does_no_harm(shared_compiler: GrammarCompiler, name: str) -> None:
    compiled = shared_compiler.compiled(hostile_grammars.TAKEN[name])
    constraint = Constraint(compiled)
    constraint.compute_mask()
    assert constraint.error is None


def test_a_grammar_that_kills_the_process_that_tries_it_is_refused(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler.compiled(AB)
    assert compiler._trial is not None
    process = compiler._trial._process
    assert process is not None
    os.kill(process.pid, signal.SIGSTOP)  # as good as a grammar that takes for ever
    monkeypatch.setattr("worker.grammar.trial._TRIAL_S", 0.2)
    with pytest.raises(InvalidRequest, match="too much memory or time") as caught:
        compiler.compiled(Grammar(GrammarKind.REGEX, "x", "guided_regex"))
    assert caught.value.param == "guided_regex"
    monkeypatch.undo()
    assert compiler.compiled(Grammar(GrammarKind.REGEX, "x", "guided_regex"))


def test_a_process_that_died_between_grammars_is_replaced(compiler: GrammarCompiler) -> None:
    compiler.compiled(AB)
    assert compiler._trial is not None
    process = compiler._trial._process
    assert process is not None
    process.kill()
    process.wait()
    assert compiler.compiled(Grammar(GrammarKind.REGEX, "x"))


def test_what_a_grammar_names_of_the_vocabulary_is_there_on_trial(
    shared_compiler: GrammarCompiler,
) -> None:
    source = "start: <[4]> <|im_end|> <[0-261]>"
    assert shared_compiler.compiled(Grammar(GrammarKind.LARK, source))


def test_a_grammar_that_is_slow_to_follow_ends_its_sequence_alone(
    shared_compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = shared_compiler.compiled(Grammar(GrammarKind.REGEX, "[ab]{100}", "guided_regex"))
    monkeypatch.setattr("worker.grammar.constraint._CALL_S", -0.02)
    constraint = Constraint(compiled)
    constraint.begin()
    for token in ids("ababababab"):
        constraint.compute_mask()
        constraint.accept(token)
    assert isinstance(constraint.error, InvalidRequest)
    assert constraint.error.param == "guided_regex"
    assert "too long" in constraint.error.message


def test_a_grammar_that_gets_too_complex_is_the_clients_fault() -> None:
    tokenizer = _new_tokenizer()
    source = LLMatcher.grammar_from_json_schema(hostile_grammars.many_properties(600))
    compiled = CompiledGrammar(new_matcher(tokenizer, source), tokenizer.vocab_size, "guided_json")
    constraint = Constraint(compiled)
    constraint.begin()
    for token in ids('{"'):
        constraint.accept(token)
    assert isinstance(constraint.error, InvalidRequest)
    assert constraint.error.param == "guided_json"
    assert "items" in constraint.error.message


def test_white_space_is_limited(shared_compiler: GrammarCompiler) -> None:
    schema = json.dumps({"type": "array"})
    matcher = shared_compiler.compiled(Grammar(GrammarKind.JSON_SCHEMA, schema)).matcher
    assert _matches(matcher, "[ 1 ,\n\n  2 ]")
    assert not _matches(matcher, "[ 1,   2 ]")


def test_without_an_end_token_there_is_no_grammar() -> None:
    with pytest.raises(InvalidRequest, match="no end token"):
        GrammarCompiler(_new_tokenizer, []).compiled(AB)


def test_a_vocabulary_unknown_to_llguidance_serves_all_but_grammars() -> None:
    def new_tokenizer() -> LLTokenizer:
        return LLTokenizer('{"model": "none"}')

    compiler = GrammarCompiler(new_tokenizer, [2])
    for _ in range(2):
        with pytest.raises(InvalidRequest, match="this model's vocabulary") as caught:
            compiler.compiled(AB)
        assert caught.value.param == "response_format"
