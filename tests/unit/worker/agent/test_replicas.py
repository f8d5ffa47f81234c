"""The replicas of a node: started, stopped, placed, adopted. Redis and the processes are real."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from msgspec import structs

from shared import names
from shared.errors import ModelFailed
from shared.model_spec import ModelSpec
from shared.registry import records
from shared.wire import codec
from shared.wire.operations import Failure
from shared.wire.records import Assignment, StopOrder
from tests.support import agent_node
from worker.agent import adoption
from worker.agent.devices import RAM, DeviceMemory
from worker.agent.replicas import Replicas

_SPEC = ModelSpec(name="m", path="m.gguf", engine="llamacpp")
_KEY = names.assignments_key("here")


@pytest.fixture
def replicas(
    tmp_path: Path, redis_socket: str, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Replicas]:
    agent_node.work_in(tmp_path, monkeypatch)
    made = Replicas(agent_node.settings(tmp_path, redis_socket), client)
    yield made
    agent_node.kill_all(made)


def _assignment(replicas: Replicas, number: int = 1, **fields: Any) -> Assignment:
    values = {"id": f"m@here-{number}", "replica_id": f"m@here-{number}-a", "spec": _SPEC} | fields
    return Assignment(node=replicas.node, memory_bytes=100, **values)


@pytest.fixture
def left(replicas: Replicas) -> Iterator[list[subprocess.Popen]]:
    """Processes of an earlier agent; they are killed at the end."""
    processes: list[subprocess.Popen] = []
    yield processes
    for process in processes:
        process.kill()
        process.wait(10)


def _leave(
    left: list[subprocess.Popen], replicas: Replicas, assignment: Assignment
) -> subprocess.Popen:
    """Start a process as an earlier agent would have."""
    command = [sys.executable, "-m", "worker.replica", assignment.id, assignment.replica_id]
    environment = dict(os.environ) | {"REDIS_URL": replicas.settings.redis_url}
    left.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE))
    assert left[-1].stdout is not None and left[-1].stdout.readline() == b"up\n"
    return left[-1]


# -- start and stop ------------------------------------------------------------------------------


def test_a_start_writes_the_assignment_and_runs_the_process(
    replicas: Replicas, client: redis.Redis
) -> None:
    replica = replicas.start(_SPEC, 100)
    assert replica.is_alive and replicas.get(replica.id) is replica
    written = codec.decode(client.hget(_KEY, replica.id), Assignment)
    assert written == replica.assignment and written.memory_bytes == 100
    assert replicas.find(written.replica_id) is replica
    assert replicas.replicas_of("m") == [replica] and replicas.replicas_of("other") == []


def test_replicas_of_one_model_have_logs_of_their_own(replicas: Replicas) -> None:
    paths = [replicas.start(_SPEC, 0).log_path.name for _ in range(3)]
    assert paths == ["replica-m.log", "replica-m-2.log", "replica-m-3.log"]


def test_a_process_that_cannot_be_started_is_no_replica(
    replicas: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    with pytest.raises(ModelFailed, match="could not be started"):
        replicas.start(_SPEC, 100)
    assert replicas.all() == []


def test_a_stop_leaves_its_order_and_takes_the_assignment_away(
    replicas: Replicas, client: redis.Redis
) -> None:
    replica = replicas.start(_SPEC, 100)
    order = StopOrder(5.0, "The model was unloaded.")
    replicas.stop(replica, order)
    key = names.stop_key(replica.assignment.replica_id)
    assert codec.decode(client.get(key), StopOrder) == order
    assert client.ttl(key) > order.grace_s
    assert not client.hexists(_KEY, replica.id)
    assert replicas.replicas_of("m") == [] and replicas.replicas_of("m", with_leaving=True) == [
        replica
    ]
    replicas.wait_for_exit(60)
    assert not replica.is_alive
    replicas.remove(replica)
    assert replicas.all() == [] and replica.exit_fd is None


def test_only_what_was_loaded_at_run_time_comes_back_with_the_next_agent(
    replicas: Replicas, client: redis.Redis
) -> None:
    loaded = replicas.start(_SPEC, 0)
    configured = replicas.start(structs.replace(_SPEC, name="c", is_configured=True), 0)
    replicas.stop_all()
    assert not loaded.is_alive and not configured.is_alive
    assert set(client.hgetall(_KEY)) == {loaded.id.encode()}


@pytest.mark.parametrize(
    ("spec", "is_kept"), [(_SPEC, False), (structs.replace(_SPEC, is_configured=True), True)]
)
def test_a_failure_is_kept_for_models_that_requests_may_name(
    replicas: Replicas, client: redis.Redis, spec: ModelSpec, is_kept: bool
) -> None:
    replica = replicas.start(spec, 0)
    replica.error = "no file"
    replicas.abandon(replica, 60.0)
    assert replicas.all() == [] and not client.hexists(_KEY, replica.id)
    failure = codec.decode(client.hget(names.FAILURES, "m"), Failure)
    assert (failure.message if failure else None) == ("no file" if is_kept else None)


def test_lost_assignments_are_written_again_but_not_those_of_leaving_replicas(
    replicas: Replicas, client: redis.Redis
) -> None:
    stays, goes = replicas.start(_SPEC, 0), replicas.start(_SPEC, 0)
    replicas.stop(goes, StopOrder(5.0, ""))
    client.delete(_KEY)
    replicas.rewrite_assignments()
    assert set(client.hgetall(_KEY)) == {stays.id.encode()}


# -- placement -----------------------------------------------------------------------------------


def test_the_limits_of_ram_and_of_two_gpus(tmp_path: Path, client: redis.Redis) -> None:
    settings = agent_node.settings(tmp_path, "", memory_limit_bytes=10, memory_reserve_bytes=1)
    replicas = Replicas(settings, client)
    ram = replicas.limits([DeviceMemory(RAM, "x86_64", 1000, 500)])
    assert (ram.available_bytes, ram.memory_limit_bytes) == (500, 10)
    gpus = replicas.limits([DeviceMemory(f"cuda:{i}", "gpu", 1000, 300) for i in range(2)])
    assert (gpus.available_bytes, gpus.memory_limit_bytes, gpus.reserve_bytes) == (600, 0, 2)


def test_a_replica_on_another_device_counts_without_memory(replicas: Replicas) -> None:
    present = [DeviceMemory(RAM, "x86_64", 1000, 500), DeviceMemory("cuda:0", "gpu", 1000, 300)]
    replica = replicas.start(_SPEC, 100)
    (occupant,) = replicas.occupants()
    assert (occupant.id, occupant.estimated_bytes) == (replica.id, 100)
    assert replicas.occupants_beside(_SPEC, [occupant], present) == [occupant]
    on_gpu = structs.replace(_SPEC, engine="exllamav2")
    (elsewhere,) = replicas.occupants_beside(on_gpu, [occupant], present)
    assert (elsewhere.estimated_bytes, elsewhere.resident_bytes) == (0, 0)


def test_what_keeps_a_replica_from_being_idle(replicas: Replicas, client: redis.Redis) -> None:
    replica = replicas.start(_SPEC, 100)
    assert not replicas.is_idle(replica), "it is not ready"
    records.announce(client, agent_node.record(replica))
    replicas.refresh()
    assert replicas.is_idle(replica)
    client.rpush(names.priority_lists("m")[0], b"job")
    assert not replicas.is_idle(replica), "a job waits"
    client.delete(*names.priority_lists("m"))
    records.announce(client, agent_node.record(replica, busy_slots=1))
    replicas.refresh()
    assert not replicas.is_idle(replica), "a job runs"
    records.announce(client, agent_node.record(replica))
    replicas.refresh()
    replica.is_stopping = True
    assert not replicas.is_idle(replica), "it stops"


def test_becoming_ready_and_running_jobs_count_as_use(replicas: Replicas) -> None:
    replica = replicas.start(_SPEC, 100)
    replica.ready_at = time.monotonic() - 100
    now = time.time()
    assert now - 101 < replicas.used_at(replica, {}) < now - 99
    assert replicas.used_at(replica, {"m": now - 50}) == now - 50
    replica.busy_at = now - 10
    assert replicas.used_at(replica, {"m": now - 50}) == now - 10


# -- adoption ------------------------------------------------------------------------------------


def test_a_running_replica_is_adopted_and_a_dead_one_reported(
    replicas: Replicas, client: redis.Redis, left: list[subprocess.Popen]
) -> None:
    alive = _assignment(replicas)
    dead = _assignment(replicas, 2, spec=structs.replace(_SPEC, name="d"))
    for assignment in (alive, dead):
        client.hset(_KEY, assignment.id, codec.encode(assignment))
    client.sadd(names.REPLICA_INDEX, dead.replica_id)
    process = _leave(left, replicas, alive)
    assert adoption.adopt_replicas(replicas) == [dead.spec]
    (replica,) = replicas.all()
    assert replica.assignment == alive and replica.is_alive and not replica.is_stopping
    assert replica.process is not None and replica.process.pid == process.pid
    assert set(client.hgetall(_KEY)) == {alive.id.encode()}
    assert not client.sismember(names.REPLICA_INDEX, dead.replica_id)
    # The agent may have died before the load registered its model.
    assert codec.decode(client.hget(names.MODELS, "m"), ModelSpec) == _SPEC


def test_an_adopted_configured_model_is_not_registered(
    replicas: Replicas, client: redis.Redis, left: list[subprocess.Popen]
) -> None:
    assignment = _assignment(replicas, spec=structs.replace(_SPEC, is_configured=True))
    client.hset(_KEY, assignment.id, codec.encode(assignment))
    _leave(left, replicas, assignment)
    assert adoption.adopt_replicas(replicas) == []
    assert not client.hexists(names.MODELS, "m")


def test_a_replica_without_an_assignment_is_stopped(
    replicas: Replicas, client: redis.Redis, left: list[subprocess.Popen]
) -> None:
    assignment = _assignment(replicas)
    order = codec.encode(StopOrder(1000.0, "The model was unloaded."))
    client.set(names.stop_key(assignment.replica_id), order)
    process = _leave(left, replicas, assignment)
    assert adoption.adopt_replicas(replicas) == []
    (replica,) = replicas.all()
    assert replica.is_stopping and replica.kill_at > time.monotonic() + 900
    assert process.wait(10) == -signal.SIGTERM


def test_replicas_of_other_nodes_and_services_are_left_alone(
    replicas: Replicas, left: list[subprocess.Popen]
) -> None:
    _leave(left, replicas, structs.replace(_assignment(replicas), id="m@there-1"))
    other = Replicas(
        structs.replace(replicas.settings, redis_url="redis://elsewhere"), replicas.client
    )
    _leave(left, other, _assignment(replicas))
    assert adoption.adopt_replicas(replicas) == [] and replicas.all() == []


def test_an_undecodable_assignment_is_dropped(replicas: Replicas, client: redis.Redis) -> None:
    client.hset(_KEY, "m@here-1", b"\xff")
    assert adoption.adopt_replicas(replicas) == []
    assert not client.hgetall(_KEY)
