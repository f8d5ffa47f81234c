"""A job whose engine gives it no more tokens, and the turns that come with each heartbeat."""

import time
from types import SimpleNamespace
from typing import Any

import redis

from shared.errors import EngineError
from shared.registry import records
from shared.settings.fields import Settings
from tests.conftest import wait_for
from tests.support.loop_sink import Sink, make_run
from tests.support.scripted_engine import ScriptedEngine
from worker.replica import heartbeat
from worker.replica.engine_loop import EngineLoop
from worker.replica.heartbeat import Heartbeat
from worker.replica.publisher import Publisher
from worker.sequence import StepResult

_GAP_S = 100.0
"""Longer than any pause of a busy machine."""


class _Deaf(ScriptedEngine):
    """Gives one token to the sequence of the job `stuck`, and no more."""

    def step(self) -> list[StepResult]:
        time.sleep(0.001)
        return [
            result
            for result in super().step()
            if result.key[0] != "stuck" or result.text == "first"
        ]


def test_a_job_without_tokens_ends_and_frees_its_slot(redis_socket: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(records, "announce", lambda *_: None)
    monkeypatch.setattr(records, "withdraw", lambda *_: None)
    monkeypatch.setattr(heartbeat, "BEAT_S", 0.05)
    client = redis.Redis(unix_socket_path=redis_socket)
    engine, sink, turns = _Deaf(2, ["first", *["x"] * 100_000]), Sink(), []
    loop = EngineLoop(engine, sink.emit)
    heart = Heartbeat(
        client,
        lambda: SimpleNamespace(id="r"),  # type: ignore[arg-type, return-value]
        Publisher(client, job_ttl_s=10, request_timeout_s=10),
        Settings(max_step_gap_s=_GAP_S),
        take_turns=lambda: turns.append(1),
        on_wedged=lambda: None,
    )
    stuck, lively = make_run("stuck"), make_run("lively")
    for run in (stuck, lively):
        loop.submit(run)
    loop.start()
    heart.supervise(loop)
    heart.start()
    try:
        wait_for(lambda: stuck.last_token_at and lively.last_token_at, "both have a token")
        stuck.last_token_at -= 2 * _GAP_S
        wait_for(lambda: stuck.outcome, "the stuck job ends")
        assert stuck.outcome == EngineError.code
        assert not lively.outcome
        assert engine.free_slots == 1
        assert turns
    finally:
        heart.stop()
        loop.stop()


def test_jobs_that_wait_for_their_first_token_are_left_alone() -> None:
    run: Any = make_run("waits")
    heart: Any = Heartbeat.__new__(Heartbeat)
    heart._settings = SimpleNamespace(max_step_gap_s=1.0)
    assert not heart._is_stuck(run, 0.0)
    run.last_token_at = time.monotonic() - 2
    assert heart._is_stuck(run, 0.0)
    assert not heart._is_stuck(run, 1.5), "the engine makes no steps: that is its agent's business"
    heart._settings.max_step_gap_s = 0.0
    assert not heart._is_stuck(run, 0.0)
