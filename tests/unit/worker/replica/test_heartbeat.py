"""The heartbeat: a replica whose threads are dead ends."""

import queue
import sys
import threading
from typing import Any

import pytest
import redis

from shared import logs
from shared.settings.fields import Settings
from shared.wire.records import ReplicaRecord
from tests.support.loop_sink import Sink, make_run
from tests.support.registry_records import make_replica
from tests.support.scripted_engine import ScriptedEngine
from worker.replica import heartbeat as heartbeat_module
from worker.replica.attempt import JobStarted
from worker.replica.engine_loop import EngineLoop
from worker.replica.heartbeat import Heartbeat
from worker.replica.publisher import Publisher

_RECORD = make_replica()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
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
        Settings(max_step_gap_s=0),
        take_turns=lambda: None,
        on_wedged=has_ended.set,
    )
    publisher.start()
    heartbeat.start()
    publisher.emit([(make_run("j"), JobStarted(1))])
    assert has_ended.wait(60)
    heartbeat.stop()


def test_a_denylist_that_cannot_be_read_does_not_keep_the_record_from_being_announced(
    server: redis.Redis,
) -> None:
    class Denylist:
        num_reads = 0
        has_failed = threading.Event()

        def refresh(self) -> None:
            self.num_reads += 1
            if self.num_reads == 2:
                self.has_failed.set()
            raise MemoryError

    denylist: Any = Denylist()
    announced: list[int] = []

    def record() -> ReplicaRecord:
        announced.append(denylist.num_reads)
        return _RECORD

    heartbeat = Heartbeat(
        server,
        record,
        Publisher(server, job_ttl_s=10, request_timeout_s=10),
        Settings(),
        take_turns=lambda: None,
        on_wedged=lambda: None,
        denylist=denylist,
    )
    heartbeat.start()
    assert denylist.has_failed.wait(60)
    num_announced = len(announced)
    heartbeat.stop()
    assert num_announced >= 3, "once at the start, and with every beat"


def test_what_ends_a_thread_is_logged_even_if_it_exits(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Foreign code may exit: a step of the engine, a codec."""
    monkeypatch.setattr(threading, "excepthook", logs._log_thread_end)
    loop = EngineLoop(ScriptedEngine(1, ["x"]), Sink().emit)
    monkeypatch.setattr(loop, "_drain_inbox", lambda: sys.exit("boom"))
    loop.start()
    loop._thread.join(60)
    assert loop.is_wedged
    assert "engine-loop died" in caplog.text


def test_work_that_is_not_taken_ages() -> None:
    """Threads that were never started stand still, too."""
    loop = EngineLoop(ScriptedEngine(1, ["x"]), Sink().emit)
    publisher = Publisher(redis.Redis(), job_ttl_s=10, request_timeout_s=10)
    assert (loop.step_age_s, publisher.age_s) == (0.0, 0.0), "idle is not stalled"
    loop.submit(make_run("j"))
    publisher.emit([(make_run("j"), JobStarted(1))])
    assert loop.step_age_s > 0.0
    assert publisher.age_s > 0.0


def test_a_record_that_has_changed_is_written_before_the_next_beat(
    server: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat_module, "_LOADING_BEAT_S", 3600.0)
    written: queue.SimpleQueue[int] = queue.SimpleQueue()

    def record() -> ReplicaRecord:
        written.put(threading.get_ident())
        return _RECORD

    heartbeat = Heartbeat(
        server,
        record,
        Publisher(server, job_ttl_s=10, request_timeout_s=10),
        Settings(),
        take_turns=lambda: None,
        on_wedged=lambda: None,
    )
    heartbeat.start()
    assert written.get(timeout=60) == threading.get_ident()
    heartbeat.announce_soon()
    assert written.get(timeout=60) != threading.get_ident(), "not in the thread that asks"
    heartbeat.stop()
