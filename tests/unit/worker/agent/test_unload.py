"""One unload on one node. Redis and the processes are real."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis

from shared import names
from shared.model_spec import ModelSpec
from shared.registry import operations
from shared.registry.running_operation import RunningOperation
from shared.wire import codec
from shared.wire.operations import OperationKind, OperationState
from shared.wire.records import StopOrder
from tests.conftest import wait_for
from tests.support import agent_node
from worker.agent import unload as unloading
from worker.agent.agent import Agent
from worker.agent.managed_replica import ManagedReplica
from worker.agent.unload import UnloadRunner

_SPEC = ModelSpec(name="m", path="m.gguf", engine="llamacpp")
_LOCK = names.operation_lock_key(OperationKind.UNLOAD, "m")
_QUEUE = names.priority_lists("m")[0]


@pytest.fixture
def agent(
    tmp_path: Path, redis_socket: str, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Agent]:
    agent_node.work_in(tmp_path, monkeypatch)
    monkeypatch.setattr(unloading, "_POLL_S", 0.01)
    monkeypatch.setattr(unloading, "_CHECK_S", 0.0)
    monkeypatch.setattr(unloading, "_LATE_REQUESTS_S", 0.0)
    made = Agent(agent_node.settings(tmp_path, redis_socket), client)
    yield made
    agent_node.kill_all(made.replicas)


@pytest.fixture
def replica(agent: Agent) -> ManagedReplica:
    return agent.replicas.start(_SPEC, 1)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as running:
        yield running


def _begin(agent: Agent, **fields: Any) -> UnloadRunner:
    values = {"grace_s": 600.0, "is_draining": False, "is_forgotten": False, "num_nodes": 1}
    operation_id, is_new = operations.begin_unload(agent.client, "m", **(values | fields))
    assert is_new
    command = operations.read_unload(agent.client, operation_id)
    assert command is not None
    operation = RunningOperation(agent.client, OperationKind.UNLOAD, operation_id, "m")
    return UnloadRunner(agent, operation, command)


def _state(unload: UnloadRunner) -> OperationState:
    return operations.progress(unload._agent.client, unload._operation.id, -1)[-1].state


def test_an_unload_ends_when_the_replicas_have_ended(
    agent: Agent, replica: ManagedReplica, pool: ThreadPoolExecutor, client: redis.Redis
) -> None:
    unload = _begin(agent, grace_s=50.0)
    running = pool.submit(unload.run)
    wait_for(lambda: replica.is_stopping, "the replica stops")
    order = codec.decode(client.get(names.stop_key(replica.assignment.replica_id)), StopOrder)
    assert order is not None and 0 < order.grace_s <= 50.0 and not order.hands_over
    assert _state(unload) is OperationState.UNLOADING
    agent.replicas.remove(replica)
    running.result(30)
    assert _state(unload) is OperationState.UNLOADED
    assert not client.exists(_LOCK)


def test_waiting_requests_are_served_first(
    agent: Agent, replica: ManagedReplica, pool: ThreadPoolExecutor, client: redis.Redis
) -> None:
    client.rpush(_QUEUE, b"job")
    unload = _begin(agent, is_draining=True)
    running = pool.submit(unload.run)
    events = names.progress_key(unload._operation.id)
    wait_for(lambda: b"draining" in b"".join(client.lrange(events, 0, -1)), "it drains")
    assert not replica.is_stopping
    client.delete(_QUEUE)
    wait_for(lambda: replica.is_stopping, "the replica stops")
    agent.replicas.remove(replica)
    running.result(30)


def test_a_superseded_unload_ends_without_a_final_event(
    agent: Agent, replica: ManagedReplica, client: redis.Redis
) -> None:
    unload = _begin(agent)
    client.set(_LOCK, "unload-other")
    unload.run()
    assert not replica.is_stopping
    assert _state(unload) is OperationState.UNLOADING
    assert client.get(_LOCK) == b"unload-other"


@pytest.mark.parametrize("is_forgotten", [True, False])
def test_a_forgotten_model_leaves_no_queue(
    agent: Agent, client: redis.Redis, is_forgotten: bool
) -> None:
    client.rpush(_QUEUE, b"job")
    client.zadd(names.LAST_USED, {"m": 1.0})
    _begin(agent, is_forgotten=is_forgotten).run()
    assert client.exists(_QUEUE) == (not is_forgotten)
    assert (client.zscore(names.LAST_USED, "m") is None) is is_forgotten


def test_the_last_node_ends_the_operation(agent: Agent) -> None:
    unload = _begin(agent, num_nodes=2)
    unload.run()
    assert _state(unload) is OperationState.UNLOADING
    unload.run()
    assert _state(unload) is OperationState.UNLOADED
