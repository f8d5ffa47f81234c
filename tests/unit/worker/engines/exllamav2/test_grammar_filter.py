"""ExLlamaV2: completions that match a schema, an expression or a grammar, with llguidance."""

import json
import re
from pathlib import Path
from zlib import crc32

import pytest
import torch
from llguidance import LLTokenizer

from shared.errors import EngineError, InvalidRequest
from shared.wire.events import FinishReason
from shared.wire.job import Grammar, GrammarKind, Sampling
from tests.support import exl2_folder
from tests.support.exl2_engine import make_engine, run_all
from tests.support.exl2_folder import END, VOCAB, ids
from tests.support.fake_exllamav2 import Job, World
from tests.support.loop_sink import make_run
from worker.engines.exllamav2.grammar_filter import mask
from worker.engines.exllamav2.model.vocabulary import TokenizerJsonVocabulary
from worker.grammar.compiler import GrammarCompiler
from worker.grammar.constraint import CompiledGrammar, Constraint
from worker.sequence import Sequence, Speculation

SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"name": {"enum": ["ab", "cd"]}, "size": {"type": "integer", "maximum": 9}},
        "required": ["name", "size"],
        "additionalProperties": False,
    }
)
GRAMMARS = {
    "schema": Grammar(GrammarKind.JSON_SCHEMA, SCHEMA),
    "regex": Grammar(GrammarKind.REGEX, r"[a-c]{2,5}-[0-9]{2}"),
    "lark": Grammar(GrammarKind.LARK, 'start: "x" ("y" | "z")+ "!"'),
}


def _noise(job: Job) -> torch.Tensor:
    """A model that says anything."""
    generator = torch.Generator().manual_seed(len(job.ids) * 7919 + crc32(job.job_id.encode()))
    return torch.randn(VOCAB, generator=generator) * 3


@pytest.mark.parametrize("speculation", [None, Speculation(num_tokens=3)])
@pytest.mark.parametrize("kind", GRAMMARS)
def test_whatever_the_model_says_the_text_matches(
    exl2: World, tmp_path: Path, kind: str, speculation: Speculation | None
) -> None:
    exl2.logits = _noise
    engine = make_engine(tmp_path, slots=8, speculation=speculation)
    names = [f"j{i}" for i in range(6)]
    options = {"grammar": GRAMMARS[kind], "max_tokens": 300}
    sink = run_all(engine, *(make_run(name, **options) for name in names), make_run("free"))
    for name in names:
        assert sink.finish_reason(name) is FinishReason.STOP
        text = sink.text(name)
        if kind == "schema":
            value = json.loads(text)
            assert value["name"] in ("ab", "cd") and value["size"] <= 9
        else:
            pattern = {"regex": r"[a-c]{2,5}-[0-9]{2}", "lark": r"x[yz]+!"}[kind]
            assert re.fullmatch(pattern, text)


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        (Grammar(GrammarKind.JSON_SCHEMA, "{bad"), "schema is not valid"),
        (Grammar(GrammarKind.JSON_SCHEMA, "[1]"), "must be an object"),
        (Grammar(GrammarKind.JSON_SCHEMA, '{"type": 5}'), "type must be"),
        (Grammar(GrammarKind.JSON_SCHEMA, '{"type": "object", "minProperties": "x"}'), "."),
        (Grammar(GrammarKind.REGEX, "(a"), "unclosed group"),
        (Grammar(GrammarKind.LARK, "start: nothing"), "unknown name"),
    ],
)
def test_a_bad_grammar_is_refused_before_the_loop(
    exl2: World, tmp_path: Path, grammar: Grammar, reason: str
) -> None:
    engine = make_engine(tmp_path)
    with pytest.raises(InvalidRequest, match=reason) as caught:
        engine.check(Sequence(("j", 0), [5], 5, Sampling(), grammar=grammar))
    assert caught.value.param == "response_format"
    assert "<state>" not in caught.value.message


def test_a_grammar_cannot_end_where_end_tokens_are_ignored(exl2: World, tmp_path: Path) -> None:
    sequence = Sequence(("j", 0), [5], 5, Sampling(), grammar=GRAMMARS["regex"], ignore_eos=True)
    with pytest.raises(InvalidRequest, match="ignore_eos"):
        make_engine(tmp_path).check(sequence)


def test_jobs_that_share_a_grammar_do_not_share_its_state(exl2: World, tmp_path: Path) -> None:
    grammar = Grammar(GrammarKind.REGEX, "abc")
    sink = run_all(make_engine(tmp_path), make_run("j", num_choices=3, grammar=grammar))
    assert [sink.text("j", i) for i in range(3)] == ["abc"] * 3


def test_logprobs_do_not_see_the_grammar(exl2: World, tmp_path: Path) -> None:
    exl2.logits = lambda job: torch.zeros(VOCAB)
    engine = make_engine(tmp_path)
    run = make_run("j", grammar=Grammar(GrammarKind.REGEX, "a"), logprobs=3)
    sink = run_all(engine, run)
    entry = next(entry for step in sink.steps("j") for entry in step.logprobs)
    assert entry.chosen.logprob == pytest.approx(entry.top[0].logprob)
    assert len(entry.top) == 3


def test_a_grammar_that_breaks_down_fails_its_job_alone(
    exl2: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Constraint.accept

    def break_down(self: Constraint, token: int) -> None:
        before(self, token)
        self.error = EngineError("The grammar could not be followed: too complex")

    monkeypatch.setattr(Constraint, "accept", break_down)
    monkeypatch.setattr(Constraint, "probe", lambda _: None)
    exl2.texts["plain"] = ids("fine")
    engine = make_engine(tmp_path)
    sink = run_all(
        engine,
        make_run("bad", grammar=GRAMMARS["regex"], max_tokens=50),
        make_run("plain", max_tokens=4),
    )
    assert "too complex" in sink.error("bad").message
    assert sink.text("plain") == "fine"
    assert engine.free_slots == 4


@pytest.fixture
def compiler(tmp_path: Path) -> GrammarCompiler:
    source = (exl2_folder.write(tmp_path) / "tokenizer.json").read_text()
    return GrammarCompiler(lambda: LLTokenizer(source, eos_token=[2, 4]), [2, 4])


def _constraint(compiler: GrammarCompiler, expression: str) -> Constraint:
    grammar = Grammar(GrammarKind.REGEX, expression)
    return Constraint(compiler.compiled(grammar))


def test_the_mask_allows_what_may_come_and_at_the_end_the_end_tokens(
    compiler: GrammarCompiler,
) -> None:
    constraint = _constraint(compiler, "ab?")
    a, b = ids("ab")

    def allowed() -> set[int]:
        constraint.compute_mask()
        row = mask(constraint, torch.zeros(VOCAB))
        return set(torch.nonzero(row == 0).flatten().tolist())

    constraint.begin()
    assert allowed() == {a}
    constraint.accept(a)
    assert allowed() == {b, 2, 4}
    constraint.accept(b)
    assert allowed() == {2, 4}
    constraint.accept(2)
    constraint.accept(2)
    assert allowed() == {2, 4}, "asked once more than there is to say: no exception"
    assert constraint.error is None
    constraint.begin()
    assert allowed() == {a}


def test_a_token_against_the_grammar_is_an_error_and_no_exception(
    compiler: GrammarCompiler,
) -> None:
    constraint = _constraint(compiler, "ab")
    constraint.begin()
    constraint.accept(ids("z")[0])
    assert constraint.error is not None
    constraint.compute_mask()
    assert torch.equal(mask(constraint, torch.zeros(VOCAB)), torch.zeros(VOCAB))


def test_a_panic_in_the_grammar_is_an_error_and_no_exception(compiler: GrammarCompiler) -> None:
    class PanicError(BaseException):
        """Like pyo3's."""

    class Matcher:
        def deep_copy(self) -> "Matcher":
            return self

        def is_stopped(self) -> bool:
            return False

        def unsafe_compute_mask_ptr(self, *_: int) -> None:
            raise PanicError("index out of bounds")

        consume_token = unsafe_compute_mask_ptr

    for panics in (Constraint.compute_mask, lambda c: c.accept(5)):
        compiled = CompiledGrammar(Matcher(), VOCAB, "guided_regex")  # type: ignore[arg-type]
        constraint = Constraint(compiled)
        panics(constraint)
        assert isinstance(constraint.error, EngineError)
        assert "out of bounds" in constraint.error.message


def test_a_text_whose_grammar_failed_at_its_last_token_is_not_reported_as_correct(
    exl2: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_down(self: Constraint) -> None:
        self.error = EngineError("The grammar could not be followed: too complex")

    monkeypatch.setattr(Constraint, "compute_mask", break_down)
    monkeypatch.setattr(Constraint, "probe", lambda _: None)
    exl2.texts["bad"] = [END]
    sink = run_all(make_engine(tmp_path), make_run("bad", grammar=GRAMMARS["regex"]))
    assert "too complex" in sink.error("bad").message


def test_the_loop_compiles_no_grammar(
    exl2: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(tmp_path)
    sequence = Sequence(("j", 0), [5], 5, Sampling(), grammar=GRAMMARS["schema"])
    engine.check(sequence)
    monkeypatch.delattr(GrammarCompiler, "_compile")
    monkeypatch.delattr(GrammarCompiler, "compiled")
    engine.submit(sequence)


def test_a_model_whose_tokens_llguidance_cannot_read_loads(
    exl2: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: TokenizerJsonVocabulary) -> LLTokenizer:
        raise ValueError("unsupported tokenizer")

    monkeypatch.setattr(TokenizerJsonVocabulary, "new_llguidance_tokenizer", fail)
    engine = make_engine(tmp_path)
    sequence = Sequence(("j", 0), [5], 5, Sampling(), grammar=GRAMMARS["regex"])
    with pytest.raises(InvalidRequest) as caught:
        engine.check(sequence)
    assert caught.value.param == "response_format"
    assert run_all(engine, make_run("j")).end("j")
