"""ExLlamaV2: text, ends, counts, cancelling, choices, through the real engine loop."""

from pathlib import Path

import pytest

from shared.errors import RequestCancelled
from shared.wire.events import FinishReason
from shared.wire.job import Sampling
from tests.support.exl2_engine import make_engine, run_all, running
from tests.support.exl2_folder import END, IM_END, IM_START, ids, word
from tests.support.fake_exllamav2 import World
from tests.support.loop_sink import make_run
from worker.sequence import Speculation


@pytest.fixture(params=[None, Speculation(num_tokens=3)], ids=["plain", "speculating"])
def speculation(request: pytest.FixtureRequest) -> Speculation | None:
    """With guesses a step gives several tokens; nothing else may change."""
    found: Speculation | None = request.param
    return found


def test_text_streams_and_an_end_token_ends_it(
    exl2: World, tmp_path: Path, speculation: Speculation | None
) -> None:
    exl2.texts["j"] = [word("Hello"), word("Ġworld"), *ids("!"), END]
    sink = run_all(make_engine(tmp_path, speculation=speculation), make_run("j", max_tokens=50))
    assert sink.text("j") == "Hello world!"
    assert sink.finish_reason("j") is FinishReason.STOP
    assert sink.end("j").usage.completion_tokens == 4, "the end token counts"


@pytest.mark.parametrize("max_tokens", [1, 2, 5])
def test_exactly_as_many_tokens_as_asked_for(
    exl2: World, tmp_path: Path, speculation: Speculation | None, max_tokens: int
) -> None:
    exl2.texts["j"] = ids("a" * 40)
    engine = make_engine(tmp_path, speculation=speculation)
    sink = run_all(engine, make_run("j", max_tokens=max_tokens))
    assert sink.text("j") == "a" * max_tokens
    assert sink.finish_reason("j") is FinishReason.LENGTH
    assert engine.free_slots == 4


@pytest.mark.parametrize(
    "tokens",
    [
        [*ids("before"), word("ST"), word("OP"), *ids("after")],
        [*ids("before"), *ids("S"), *ids("T"), word("OP"), *ids("after")],
        [*ids("befor"), *ids("e"), *ids("STOPafter")],
    ],
)
def test_a_stop_string_over_several_tokens_ends_the_text_before_it(
    exl2: World, tmp_path: Path, speculation: Speculation | None, tokens: list[int]
) -> None:
    exl2.texts["j"] = tokens
    engine = make_engine(tmp_path, speculation=speculation)
    sink = run_all(engine, make_run("j", max_tokens=60, stop=["STOP"]))
    assert sink.text("j") == "before"
    assert sink.finish_reason("j") is FinishReason.STOP
    assert engine.free_slots == 4
    assert not exl2.generators[0].active_jobs, "the generator does not go on in secret"


def test_the_beginning_of_a_stop_string_is_shown_when_the_text_ends_there(
    exl2: World, tmp_path: Path
) -> None:
    exl2.texts["j"] = [*ids("a"), word("ST"), END]
    sink = run_all(make_engine(tmp_path), make_run("j", max_tokens=60, stop=["STOP"]))
    assert sink.text("j") == "aST"


def test_a_character_over_several_tokens_comes_whole(
    exl2: World, tmp_path: Path, speculation: Speculation | None
) -> None:
    exl2.texts["j"] = [*ids("a🙂é"), *ids("b"), END]
    sink = run_all(make_engine(tmp_path, speculation=speculation), make_run("j", max_tokens=60))
    assert sink.text("j") == "a🙂éb"
    assert all("�" not in step.text for step in sink.steps("j"))
    assert sink.tokens("j") == [*ids("a🙂éb"), END], "what was held back is counted too"


def test_half_a_character_at_the_end_is_not_lost(exl2: World, tmp_path: Path) -> None:
    exl2.texts["j"] = [*ids("a"), *ids("🙂")[:2], IM_END]
    sink = run_all(make_engine(tmp_path), make_run("j", max_tokens=60))
    assert sink.text("j") == "a�"
    assert sink.end("j").usage.completion_tokens == 4


def test_end_tokens_are_ignored_when_asked(exl2: World, tmp_path: Path) -> None:
    exl2.texts["j"] = [*ids("a"), END, *ids("b"), IM_END, *ids("cdefgh")]
    sink = run_all(make_engine(tmp_path), make_run("j", max_tokens=6, ignore_eos=True))
    assert sink.text("j") == "abcd"
    assert sink.finish_reason("j") is FinishReason.LENGTH


def test_no_end_token_before_min_tokens(exl2: World, tmp_path: Path) -> None:
    exl2.texts["j"] = [END] * 10
    sink = run_all(make_engine(tmp_path), make_run("j", max_tokens=10, min_tokens=4))
    assert len(sink.tokens("j")) == 5
    assert END not in sink.tokens("j")[:4]


def test_prefill_is_reported_and_cached_tokens_are_counted(exl2: World, tmp_path: Path) -> None:
    engine = make_engine(tmp_path)
    prompt = ids("p" * 1000)
    first = run_all(engine, make_run("a", prompt=prompt))
    assert first.end("a").usage.cached_tokens == 0
    assert [s.prefilled_tokens for s in first.steps("a")][-1] == 1000
    again = run_all(engine, make_run("b", prompt=prompt))
    assert again.end("b").usage.cached_tokens == 768, "three full pages; the last is computed"
    assert again.end("b").usage.prompt_tokens == 1000


def test_a_prompt_of_one_token(
    exl2: World, tmp_path: Path, speculation: Speculation | None
) -> None:
    """The guesser by n-grams does not bear it: it gets its turn once there is more."""
    exl2.texts["j"] = ids("abcdefgh")
    engine = make_engine(tmp_path, speculation=speculation)
    sink = run_all(engine, make_run("j", prompt=[1], max_tokens=8))
    assert sink.text("j") == "abcdefgh"
    assert exl2.num_iterations == (4 if speculation else 8)


def test_choices_have_seeds_of_their_own_and_a_choice_that_ends_frees_its_slot(
    exl2: World, tmp_path: Path
) -> None:
    exl2.texts["j"] = ids("ab")
    run = make_run("j", num_choices=3)
    for i, sequence in enumerate(run.sequences):
        sequence.sampling = Sampling(seed=40 + i)
    sink = run_all(make_engine(tmp_path, slots=2), run)
    assert [job.seed for job in exl2.jobs] == [40, 41, 42]
    assert [sink.text("j", i) for i in range(3)] == ["ab"] * 3
    assert sink.end("j").usage.prompt_tokens == 3, "the prompt is counted once"


def test_cancelling_in_every_stage(exl2: World, tmp_path: Path) -> None:
    for job_id in ("running", "reading", "queued"):
        exl2.texts[job_id] = ids("x" * 5000)
    engine = make_engine(tmp_path, slots=2, context_length=8192)
    with running(engine) as (loop, sink):
        loop.submit(make_run("running", max_tokens=4000))
        loop.submit(make_run("reading", prompt=ids("y" * 6000)))
        loop.submit(make_run("queued"))
        loop.start()
        sink.wait_for_text("running")
        for job_id in ("queued", "reading", "running"):
            loop.cancel(job_id, RequestCancelled("no"))
        sink.wait_for_ends(3)
        assert engine.free_slots == 2
        assert not exl2.generators[0].active_jobs
        assert not exl2.generators[0].pending_jobs
        exl2.texts["next"] = ids("fine")
        loop.submit(make_run("next"))
        sink.wait_for_ends(1)
    assert sink.text("next") == "fine"
    assert not sink.steps("queued")


def test_many_streams_do_not_mix(
    exl2: World, tmp_path: Path, speculation: Speculation | None
) -> None:
    names = [f"job{i}" for i in range(20)]
    for name in names:
        exl2.texts[name] = [*ids(f"this is {name}"), END]
    engine = make_engine(tmp_path, slots=8, speculation=speculation)
    sink = run_all(engine, *(make_run(name, max_tokens=50) for name in names))
    assert [sink.text(name) for name in names] == [f"this is {name}" for name in names]


def test_a_byte_that_is_no_character_holds_nothing_back(exl2: World, tmp_path: Path) -> None:
    lone = ids("🙂")[1]
    exl2.texts["j"] = [*ids("a"), lone, *ids("bcdefSTOPxyz" + "z" * 60)]
    sink = run_all(make_engine(tmp_path), make_run("j", max_tokens=60, stop=["STOP"]))
    assert sink.text("j") == "a�bcdef"
    assert len(sink.tokens("j")) == 11, "the stop string is seen when it comes"
    assert max(len(step.token_ids) for step in sink.steps("j")) == 1


def test_control_tokens_that_are_shown_give_their_text(exl2: World, tmp_path: Path) -> None:
    exl2.texts["j"] = [*ids("a"), IM_START, *ids("b"), END]
    engine = make_engine(tmp_path)
    assert run_all(engine, make_run("j", max_tokens=60)).text("j") == "ab"
    shown = make_run("j", max_tokens=60, shown_tokens=frozenset({IM_START}), logprobs=0)
    sink = run_all(engine, shown)
    assert sink.text("j") == "a<|im_start|>b"
    entries = [entry for step in sink.steps("j") for entry in step.logprobs]
    assert [entry.chosen.piece for entry in entries] == [b"a", b"<|im_start|>", b"b", b""]
