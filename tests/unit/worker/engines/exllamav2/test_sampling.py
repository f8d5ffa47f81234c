"""ExLlamaV2: sampling with OpenAI's meaning, and log probabilities."""

import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from shared.errors import InvalidRequest
from shared.wire.job import Sampling
from tests.support.exl2_engine import make_engine, run_all
from tests.support.exl2_folder import END, VOCAB, ids, word
from tests.support.fake_exllamav2 import Job, Settings, World
from tests.support.loop_sink import make_run
from worker.engines.exllamav2 import running_sequence
from worker.engines.exllamav2.sampling import new_settings
from worker.sequence import Sequence, Speculation

A, B, C = ids("abc")


def _row(**logits: float) -> torch.Tensor:
    row = torch.full((VOCAB,), -20.0)
    for char, value in logits.items():
        row[ids(char)[0]] = value
    return row


def _settings(sampling: Sampling) -> Settings:
    made: Settings = new_settings(Settings, sampling, VOCAB)
    return made


def test_nothing_asked_for_leaves_the_distribution_as_it_is() -> None:
    made = _settings(Sampling())
    neutral = {
        "token_repetition_penalty": 1.0,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "temp_exponent": 1.0,
        "token_repetition_range": 0,
        "mirostat_tau": 1.5,
        "mirostat_eta": 0.1,
        "post_sampling_hooks": [],
    }
    for f in fields(Settings):
        assert getattr(made, f.name) == neutral.get(f.name, 0) or not getattr(made, f.name), f.name


@pytest.mark.parametrize(
    "sampling",
    [Sampling(temperature=0.0), Sampling(top_k=1), Sampling(top_p=0.0), Sampling(min_p=1.0)],
)
def test_what_means_the_best_token_is_greedy(
    exl2: World, tmp_path: Path, sampling: Sampling
) -> None:
    """The sampler takes top_p = 0 and min_p = 1 to be off."""
    exl2.logits = lambda job: _row(a=1.0, b=1.2, c=1.1)
    sink = run_all(make_engine(tmp_path), make_run("j", max_tokens=30, sampling=sampling))
    assert sink.text("j") == "b" * 30


def test_each_job_has_settings_of_its_own(exl2: World, tmp_path: Path) -> None:
    run_all(make_engine(tmp_path), make_run("j", num_choices=2))
    assert exl2.jobs[0].gen_settings is not exl2.jobs[1].gen_settings


def test_a_seed_repeats_a_text_and_another_does_not(exl2: World, tmp_path: Path) -> None:
    exl2.logits = lambda job: _row(a=1.0, b=1.0, c=1.0)
    engine = make_engine(tmp_path)

    def text(seed: int | None) -> str:
        run = make_run("j", max_tokens=40, sampling=Sampling(seed=seed))
        return run_all(engine, run).text("j")

    assert text(7) == text(7)
    assert len({text(7), text(8), text(None), text(None)}) == 4


def test_truncation_and_temperature_reach_the_sampler() -> None:
    made = _settings(Sampling(temperature=0.7, top_p=0.9, top_k=40, min_p=0.05))
    assert (made.temperature, made.top_p, made.top_k, made.min_p) == (0.7, 0.9, 40, 0.05)


def test_logit_bias_bans_and_forces(exl2: World, tmp_path: Path) -> None:
    exl2.logits = lambda job: _row(a=5.0, b=1.0, c=0.0)
    engine = make_engine(tmp_path)
    for bias, expected in (({A: -100.0}, "b"), ({C: 100.0}, "c"), ({A: -1.0}, "a")):
        sampling = Sampling(temperature=0.0, logit_bias=bias)
        sink = run_all(engine, make_run("j", max_tokens=5, sampling=sampling))
        assert sink.text("j") == expected * 5


@pytest.mark.parametrize("speculation", [None, Speculation(num_tokens=3)])
def test_penalties_count_the_output_and_not_the_prompt(
    exl2: World, tmp_path: Path, speculation: Speculation | None
) -> None:
    """Also when one step draws several tokens: the range grows with each of them."""
    exl2.logits = lambda job: _row(a=1.2, b=1.1, c=1.0)
    engine = make_engine(tmp_path, speculation=speculation)
    sampling = Sampling(temperature=0.0, presence_penalty=1.0)
    sink = run_all(engine, make_run("j", prompt=[A] * 50, max_tokens=4, sampling=sampling))
    assert sink.text("j") == "abca", "each once, then the best again"
    sampling = Sampling(temperature=0.0, frequency_penalty=0.15)
    sink = run_all(engine, make_run("k", prompt=[A] * 50, max_tokens=6, sampling=sampling))
    assert sink.text("k") == "abacba", "counted from zero: 50 in the prompt do not matter"


# -- log probabilities -----------------------------------------------------------------------


def test_logprobs_are_of_the_untouched_distribution(exl2: World, tmp_path: Path) -> None:
    """Whatever the sampler does to it: temperature, truncation, bias and penalties."""
    row = _row(a=2.0, b=1.0, c=0.0)
    exl2.logits = lambda job: row
    sampling = Sampling(
        temperature=0.2, top_k=2, logit_bias={B: 50.0}, presence_penalty=0.5, frequency_penalty=0.5
    )
    run = make_run("j", max_tokens=3, sampling=sampling, logprobs=2)
    sink = run_all(make_engine(tmp_path), run)
    expected = torch.log_softmax(row[: VOCAB - 86], -1)  # the padding of the vocabulary is no part
    found = [entry for step in sink.steps("j") for entry in step.logprobs]
    assert sink.text("j") == "bbb"
    assert len(found) == 3
    for entry in found:
        assert entry.chosen.token_id == B
        assert entry.chosen.logprob == pytest.approx(float(expected[B]), abs=1e-5)
        assert [(t.token_id, t.piece) for t in entry.top] == [(A, b"a"), (B, b"b")]
        assert entry.top[0].logprob == pytest.approx(float(expected[A]), abs=1e-5)


def test_the_padding_of_the_vocabulary_has_no_probability(exl2: World, tmp_path: Path) -> None:
    exl2.logits = lambda job: torch.zeros(VOCAB)
    engine = make_engine(tmp_path)
    sink = run_all(engine, make_run("j", max_tokens=1, logprobs=0))
    entry = sink.steps("j")[-1].logprobs[0]
    assert entry.chosen.logprob == pytest.approx(-math.log(engine.vocab_size), abs=1e-5)
    assert entry.top == []


@pytest.mark.parametrize("speculation", [None, Speculation(num_tokens=3)])
def test_every_token_has_its_logprobs_whatever_is_held_back(
    exl2: World, tmp_path: Path, speculation: Speculation | None
) -> None:
    exl2.texts["j"] = [*ids("a🙂"), word("Hello"), *ids("é"), 2]
    engine = make_engine(tmp_path, speculation=speculation)
    sink = run_all(engine, make_run("j", max_tokens=50, logprobs=1))
    pairs: list[tuple[int, Any]] = []
    for step in sink.steps("j"):
        assert len(step.token_ids) == len(step.logprobs)
        pairs += zip(step.token_ids, step.logprobs, strict=True)
    assert [token for token, _ in pairs] == [entry.chosen.token_id for _, entry in pairs]
    assert b"".join(entry.chosen.piece for _, entry in pairs) == "a🙂Helloé".encode()


def test_the_end_token_has_logprobs_too(exl2: World, tmp_path: Path) -> None:
    exl2.texts["j"] = [A, END]
    sink = run_all(make_engine(tmp_path), make_run("j", max_tokens=50, logprobs=1))
    entries = [entry for step in sink.steps("j") for entry in step.logprobs]
    assert [entry.chosen.token_id for entry in entries] == sink.tokens("j") == [A, END]
    assert [entry.is_end for entry in entries] == [False, True]
    end = entries[1]
    assert (end.chosen.piece, end.chosen.name) == (b"", b"</s>")
    assert end.top[0] == end.chosen
    ignoring = make_run("j", max_tokens=2, logprobs=0, ignore_eos=True)
    sink = run_all(make_engine(tmp_path), ignoring)
    assert not any(entry.is_end for step in sink.steps("j") for entry in step.logprobs)


def test_nobody_pays_for_logprobs_that_were_not_asked_for(
    exl2: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(running_sequence, "raw_logits")
    assert run_all(make_engine(tmp_path), make_run("j")).end("j")


def test_too_many_alternatives_are_refused(exl2: World, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="0 to 20"):
        make_engine(tmp_path).check(Sequence(("j", 0), [5], 5, Sampling(), logprobs=21))


def test_the_repetition_penalty_is_of_the_completion_alone(exl2: World, tmp_path: Path) -> None:
    exl2.logits = lambda job: _row(a=2.0, b=1.5, c=1.2)
    engine = make_engine(tmp_path)
    penalty = Sampling(temperature=0.0, repetition_penalty=1.5)
    sink = run_all(engine, make_run("j", prompt=ids("aaab"), max_tokens=4, sampling=penalty))
    assert sink.text("j") == "abaa", "2.0, then 1.5, then 2.0 / 1.5 > 1.2 however often"


def test_penalties_add_up(exl2: World, tmp_path: Path) -> None:
    exl2.logits = lambda job: _row(a=2.0, b=1.5, c=1.2)
    both = Sampling(temperature=0.0, repetition_penalty=1.5, presence_penalty=0.5)
    sink = run_all(make_engine(tmp_path), make_run("j", max_tokens=3, sampling=both))
    assert sink.text("j") == "abc", "2.0 / 1.5 - 0.5 < 1.2"


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_numbers_that_are_none_end_their_sequence_alone(
    exl2: World, tmp_path: Path, temperature: float
) -> None:
    def logits(job: Job) -> torch.Tensor:
        row = _row(a=1.0)
        if job.job_id == "bad" and job.new_tokens == 2:
            row[7] = math.nan
        return row

    exl2.logits = logits
    engine = make_engine(tmp_path)
    sampling = Sampling(temperature=temperature)
    sink = run_all(engine, make_run("bad", sampling=sampling), make_run("fine"))
    assert "NaN" in sink.error("bad").message
    assert sink.text("bad") == "aa"
    assert sink.text("fine") == "aaaaa"
    assert len(exl2.generators) == 1


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"max_tokens": 0}, "max_tokens"), ({"prompt_logprobs": True, "logprobs": 1}, "echo")],
)
def test_what_the_generator_cannot_do_is_refused(
    exl2: World, tmp_path: Path, fields: dict[str, Any], param: str
) -> None:
    options = {"prompt": [5], "max_tokens": 5, "sampling": Sampling()} | fields
    with pytest.raises(InvalidRequest, match=r"[Tt]his model's engine (must|has no)") as e:
        make_engine(tmp_path).check(Sequence(("j", 0), **options))
    assert e.value.param == param
