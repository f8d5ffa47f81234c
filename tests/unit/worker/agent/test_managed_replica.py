"""What an agent concludes from the way a replica ended. The processes are real and small."""

import os
import signal
import sys
from pathlib import Path

import psutil
import pytest

from shared.model_spec import ModelSpec
from shared.wire.records import Assignment
from tests.conftest import wait_for
from worker.agent import managed_replica
from worker.agent.managed_replica import MAX_FAILURES, ManagedReplica, find_processes

_SPEC = ModelSpec(name="m", path="m.gguf")


@pytest.fixture
def replica(tmp_path: Path) -> ManagedReplica:
    assignment = Assignment(id="m@here-1", node="here", spec=_SPEC, memory_bytes=10)
    return ManagedReplica(assignment, tmp_path / "replica.log")


def _end_with(replica: ManagedReplica, code: str) -> None:
    """Let a process end that runs `code` in the replica's place."""
    with replica.log_path.open("ab") as log:
        replica.process = psutil.Popen([sys.executable, "-c", code], stdout=log, stderr=log)
    replica.process.wait(60)
    assert not replica.is_alive


def test_its_own_last_words_are_the_reason_and_end_the_tries(replica: ManagedReplica) -> None:
    _end_with(replica, "import sys; print('noise\\nllmis replica: no file'); sys.exit(1)")
    replica.fail()
    assert replica.error == "no file"
    assert replica.is_given_up


def test_a_signal_is_named_and_tried_again(replica: ManagedReplica) -> None:
    _end_with(replica, "import os; os.kill(os.getpid(), 9)")
    waits = []
    for count in range(1, MAX_FAILURES + 1):
        replica.fail()
        assert "SIGKILL" in replica.error
        assert replica.is_given_up is (count == MAX_FAILURES)
        assert replica.restart_at is not None
        waits.append(replica.restart_at)
    assert waits == sorted(waits)


def test_a_replica_that_found_no_redis_is_not_given_up(replica: ManagedReplica) -> None:
    _end_with(replica, "import sys; sys.exit(75)")
    for _ in range(2 * MAX_FAILURES):
        replica.fail()
        assert not replica.is_given_up
        assert replica.restart_at is not None


def test_who_was_ready_for_long_starts_counting_anew(
    replica: ManagedReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(managed_replica, "STABLE_S", -1.0)
    _end_with(replica, "import os; os.kill(os.getpid(), 9)")
    for _ in range(2 * MAX_FAILURES):
        replica.ready_at = 0.0
        replica.fail()
        assert not replica.is_given_up


def test_each_start_has_an_id_of_its_own(replica: ManagedReplica) -> None:
    first, second = replica.renewed().replica_id, replica.renewed().replica_id
    assert first.startswith("m@here-1-")
    assert first != second


def test_only_replicas_of_this_node_and_service_are_found(tmp_path: Path) -> None:
    """So that no agent stops what it did not start."""
    (tmp_path / "worker").mkdir()
    (tmp_path / "worker" / "replica.py").write_text("import signal\nsignal.pause()\n")
    process = psutil.Popen(
        [sys.executable, "-m", "worker.replica", "m@mine-ab12cd", "m@mine-ab12cd-1"],
        cwd=tmp_path,
        env=os.environ | {"REDIS_URL": "redis://mine"},
    )
    try:
        found = wait_for(lambda: find_processes("mine", "redis://mine"), "it is found")
        assert {name: p.pid for name, p in found.items()} == {"m@mine-ab12cd": process.pid}
        assert find_processes("mine", "redis://other") == {}
        assert find_processes("other", "redis://mine") == {}
        assert find_processes("ine", "redis://mine") == {}
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(60)
