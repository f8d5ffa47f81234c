"""The engine loop: admission in order, routing, cancelling, failing."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from shared.errors import EngineError, InvalidRequest, RequestCancelled
from tests.support.loop_sink import Sink, make_run
from tests.support.scripted_engine import ScriptedEngine
from worker.engines.base import EngineFatal
from worker.replica.attempt import AttemptEvent, JobDropped, JobEnded, JobStarted
from worker.replica.engine_loop import EngineLoop
from worker.sequence import StepResult


@contextmanager
def _loop(engine: ScriptedEngine) -> Iterator[tuple[EngineLoop, Sink]]:
    sink = Sink()
    loop = EngineLoop(engine, sink.emit)
    yield loop, sink
    loop.stop()


def test_a_job_starts_streams_and_ends_with_its_count() -> None:
    with _loop(ScriptedEngine(2, ["a", "b", "c"])) as (loop, sink):
        loop.start()
        run = make_run("j")
        loop.submit(run)
        sink.wait_for_ends(1)
        items = sink.of("j")
    assert isinstance(items[0], JobStarted)
    assert sink.text("j") == "abc"
    assert isinstance(items[-1], JobEnded)
    assert (items[-1].usage.prompt_tokens, items[-1].usage.completion_tokens) == (3, 3)
    assert run.outcome == "finished"


@pytest.mark.parametrize(
    ("num_prompt_tokens", "first"), [(256, [JobStarted, StepResult]), (257, [JobStarted])]
)
def test_the_start_of_a_short_prompt_is_published_with_its_first_token(
    num_prompt_tokens: int, first: list[type]
) -> None:
    emissions: list[list[AttemptEvent]] = []
    sink = Sink()

    def emit(events: list[AttemptEvent], *, is_urgent: bool = True) -> None:
        emissions.append(events)
        sink.emit(events, is_urgent=is_urgent)

    loop = EngineLoop(ScriptedEngine(1, ["a", "b"]), emit)
    loop.submit(make_run("j", prompt=[1] * num_prompt_tokens))
    loop.start()
    sink.wait_for_ends(1)
    loop.stop()
    assert [type(item) for _, item in emissions[0]] == first


def test_a_job_whose_first_step_fails_has_started() -> None:
    engine = ScriptedEngine(1, [EngineError("broken")])
    with _loop(engine) as (loop, sink):
        loop.submit(make_run("j"))
        loop.start()
        sink.wait_for_ends(1)
    assert [type(item) for item in sink.of("j")] == [JobStarted, JobDropped]


def test_only_further_tokens_may_wait_for_the_publisher() -> None:
    engine = ScriptedEngine(3, ["a", "b", "c", "d"])
    with _loop(engine) as (loop, sink):
        loop.submit(make_run("j", num_choices=2))
        engine.scripts["bad"] = ["x", "y", InvalidRequest("its own fault")]
        loop.submit(make_run("bad"))
        loop.start()
        sink.wait_for_ends(2)
    texts = [item.text for _, item in sink.urgent if isinstance(item, StepResult)]
    assert "".join(sorted(texts)) == "aaccddx", "the second step can wait, all others cannot"
    assert {type(item) for _, item in sink.urgent} == {StepResult, JobStarted, JobDropped, JobEnded}


def test_more_sequences_than_slots_wait_in_the_order_of_their_jobs() -> None:
    engine = ScriptedEngine(2, ["x"])
    with _loop(engine) as (loop, sink):
        for name in ("a", "b"):
            loop.submit(make_run(name, num_choices=3))
        loop.start()
        sink.wait_for_ends(2)
    assert engine.submitted == [("a", 0), ("a", 1), ("a", 2), ("b", 0), ("b", 1), ("b", 2)]
    ended = next(i for i in sink.of("a") if isinstance(i, JobEnded))
    assert ended.usage.prompt_tokens == 3, "a prompt is counted once, however many choices"
    assert ended.usage.completion_tokens == 3


def test_cancelling_frees_running_and_waiting_sequences() -> None:
    engine = ScriptedEngine(1, ["x"] * 1000)
    with _loop(engine) as (loop, sink):
        run = make_run("j", num_choices=3)
        loop.submit(run)
        loop.cancel("j", RequestCancelled("no"))
        loop.cancel("unknown", RequestCancelled("no"))
        loop.start()
        sink.wait_for_ends(1)
        assert engine.free_slots == 1
        assert loop.num_waiting == 0
    assert run.outcome == "request_cancelled"


def test_a_failed_step_fails_the_active_jobs_and_the_next_job_runs() -> None:
    engine = ScriptedEngine(2, ["a", EngineError("boom")])
    with _loop(engine) as (loop, sink):
        loop.start()
        loop.submit(make_run("bad"))
        sink.wait_for_ends(1)
        engine._script = ["fine"]
        loop.submit(make_run("good"))
        sink.wait_for_ends(1)
    dropped = sink.of("bad")[-1]
    assert isinstance(dropped, JobDropped)
    assert dropped.error.message == "boom"
    assert sink.text("good") == "fine"


def test_a_failed_step_leaves_the_jobs_that_only_wait() -> None:
    engine = ScriptedEngine(1, [EngineError("boom")])
    engine.scripts["waiting"] = ["fine"]
    with _loop(engine) as (loop, sink):
        loop.submit(make_run("bad"))
        loop.submit(make_run("waiting"))
        loop.start()
        sink.wait_for_ends(2)
    assert isinstance(sink.of("bad")[-1], JobDropped)
    assert sink.text("waiting") == "fine"


def test_a_job_that_the_engine_refuses_fails_alone_and_before_it_starts() -> None:
    engine = ScriptedEngine(2, ["x", "y"])
    engine.refused["bad"] = InvalidRequest("never")
    with _loop(engine) as (loop, sink):
        for name in ("a", "bad", "b"):
            loop.submit(make_run(name))
        loop.start()
        sink.wait_for_ends(3)
    assert [type(item) for item in sink.of("bad")] == [JobDropped]
    assert sink.text("a") == sink.text("b") == "xy"


def test_a_sequence_that_fails_in_a_step_takes_its_job_along_and_no_other() -> None:
    engine = ScriptedEngine(3, ["x", InvalidRequest("its own fault"), "y"])
    with _loop(engine) as (loop, sink):
        loop.submit(make_run("bad", num_choices=2))
        engine.scripts["good"] = ["fine"]
        loop.submit(make_run("good"))
        loop.start()
        sink.wait_for_ends(2)
        assert engine.free_slots == 3
    dropped = sink.of("bad")[-1]
    assert isinstance(dropped, JobDropped)
    assert dropped.error.message == "its own fault"
    assert sink.text("bad") == "x"
    assert sink.text("good") == "fine"


def test_a_job_that_cannot_be_admitted_waits_and_is_not_overtaken() -> None:
    engine = ScriptedEngine(2, ["x"])
    engine.too_large = {"large"}
    with _loop(engine) as (loop, sink):
        for name in ("small", "large", "last"):
            loop.submit(make_run(name))
        loop.start()
        sink.wait_for_ends(1)
        assert engine.submitted == [("small", 0)]
        engine.too_large.clear()
        loop.cancel("unknown", RequestCancelled("wakes the loop"))
        sink.wait_for_ends(2)
    assert engine.submitted == [("small", 0), ("large", 0), ("last", 0)]


def test_an_engine_that_cannot_go_on_ends_the_loop_and_says_why() -> None:
    engine = ScriptedEngine(1, [EngineFatal("CUDA error: device-side assert")])
    with _loop(engine) as (loop, sink):
        loop.submit(make_run("running"))
        loop.submit(make_run("waiting"))
        loop.start()
        sink.wait_for_ends(2)
        loop.stop()
    assert loop.is_wedged
    assert "device-side assert" in loop.fatal_reason
    dropped = sink.of("waiting")[-1]
    assert isinstance(dropped, JobDropped)
    assert "device-side assert" in dropped.error.message


def test_stopping_drops_what_still_runs() -> None:
    engine = ScriptedEngine(1, ["x"] * 100000)
    with _loop(engine) as (loop, sink):
        run = make_run("j")
        loop.submit(run)
        loop.start()
        loop.stop()
        sink.wait_for_ends(1)
    assert run.outcome == "engine_error"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_loop_that_dies_says_so_and_drops_its_jobs() -> None:
    engine = ScriptedEngine(1, [])  # an empty script: IndexError, a bug of the engine
    with _loop(engine) as (loop, sink):
        loop.start()
        loop.submit(make_run("j"))
        sink.wait_for_ends(1)
        assert loop.is_wedged


class _Panic(BaseException):
    """Like pyo3's: no Exception."""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_panic_ends_the_loop_like_any_other_error(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ScriptedEngine(1, ["x"])

    def panic() -> None:
        raise _Panic("index out of bounds")

    monkeypatch.setattr(engine, "step", panic)
    with _loop(engine) as (loop, sink):
        loop.start()
        loop.submit(make_run("j"))
        sink.wait_for_ends(1)
        loop.stop()
    assert loop.is_wedged, "a replica without its loop must end"


def test_a_cancel_that_fails_does_not_keep_other_jobs_from_their_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = ScriptedEngine(2, ["x"] * 100000)

    def fail(_: tuple[str, int]) -> None:
        raise AssertionError("odd")

    monkeypatch.setattr(engine, "cancel", fail)
    with _loop(engine) as (loop, sink):
        for name in ("a", "b", "c"):
            loop.submit(make_run(name))
        loop.start()
        loop.stop()
        sink.wait_for_ends(3)
    assert all(isinstance(sink.of(name)[-1], JobDropped) for name in "abc")


def test_the_poison_requests_of_a_lost_engine_are_kept() -> None:
    engine = ScriptedEngine(1, [EngineFatal("CUDA error", {"f": 2})])
    with _loop(engine) as (loop, sink):
        loop.submit(make_run("j"))
        loop.start()
        sink.wait_for_ends(1)
        loop.stop()
    assert loop.poison == {"f": 2}
