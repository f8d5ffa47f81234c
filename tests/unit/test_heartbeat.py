"""The heartbeat: a replica whose threads are dead ends."""

import threading

import pytest
import redis

from shared.messages import ReplicaRecord, ReplicaState
from tests.scripted_engine import ScriptedEngine
from tests.unit.loop_sink import Sink, make_run
from worker.engine_loop import EngineLoop
from worker.heartbeat import Heartbeat
from worker.job_run import JobStarted
from worker.publisher import Publisher

_RECORD = ReplicaRecord(
    id="r", model="m", engine="e", device="cpu", node="n", assignment_id="a", pid=0, versions={},
    state=ReplicaState.READY, stage="ready", fraction=1, slots=1, busy_slots=0,
    waiting_sequences=0, context_length=1, capabilities=[], steps=0, step_age_s=0,
    generated_tokens=0, tokens_per_s=0, memory_bytes=0, mapped_bytes=0, estimated_bytes=0,
    started_at=0,
)  # fmt: skip


def test_a_replica_whose_publisher_died_ends(
    redis_socket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = redis.Redis(unix_socket_path=redis_socket)
    publisher = Publisher(client, job_ttl_s=10, request_timeout_s=10)
    monkeypatch.setattr(publisher, "_append", None)  # a bug: it cannot be called
    has_ended = threading.Event()
    heartbeat = Heartbeat(
        client,
        lambda: _RECORD,
        publisher,
        orphan_grace_s=10,
        job_ttl_s=10,
        max_step_gap_s=0,
        take_turns=lambda: None,
        on_wedged=has_ended.set,
    )
    publisher.start()
    heartbeat.start()
    publisher.emit([(make_run("j"), JobStarted(1))])
    assert has_ended.wait(10)
    heartbeat.stop()


def test_what_nobody_takes_ages() -> None:
    """Threads that never began stand still, too."""
    loop = EngineLoop(ScriptedEngine(1, ["x"]), Sink().emit)
    publisher = Publisher(redis.Redis(), job_ttl_s=10, request_timeout_s=10)
    assert (loop.step_age_s, publisher.age_s) == (0.0, 0.0), "idle is not stalled"
    loop.submit(make_run("j"))
    publisher.emit([(make_run("j"), JobStarted(1))])
    assert loop.step_age_s > 0.0
    assert publisher.age_s > 0.0
