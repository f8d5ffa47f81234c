"""One load on one node: where it ends, and what it leaves. Redis and the processes are real."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis
from msgspec import structs

from shared import names
from shared.model_spec import ModelSpec
from shared.registry import operations, records
from shared.registry.running_operation import RunningOperation
from shared.wire import codec
from shared.wire.operations import LoadCommand, OperationKind, OperationProgress, OperationState
from tests.conftest import wait_for
from tests.support import agent_node, counter_model
from worker.agent import load as load_module
from worker.agent.agent import Agent
from worker.agent.load import LoadRunner
from worker.agent.managed_replica import ManagedReplica

_SPEC = ModelSpec(name="m", path="m.gguf", context_length=256, slots=1)
_LOCK = names.operation_lock_key(OperationKind.LOAD, "m")


MakeAgent = Callable[..., Agent]


@pytest.fixture
def make_agent(
    tmp_path: Path, redis_socket: str, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> Iterator[MakeAgent]:
    """An agent that was not started: no thread of its own acts on the replicas."""
    agent_node.work_in(tmp_path, monkeypatch)
    monkeypatch.setattr(load_module, "_POLL_S", 0.01)
    monkeypatch.setattr(load_module, "_CHECK_S", 0.0)
    made: list[Agent] = []

    def make(**fields: Any) -> Agent:
        made.append(Agent(agent_node.settings(tmp_path, redis_socket, **fields), client))
        folder = made[-1].settings.models_path
        folder.mkdir(parents=True, exist_ok=True)
        counter_model.write(folder / "m.gguf")
        return made[-1]

    yield make
    for agent in made:
        agent_node.kill_all(agent.replicas)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as running:
        yield running


def _begin(agent: Agent, **fields: Any) -> LoadRunner:
    values = {"spec": _SPEC, "replicas": 1, "nodes": ["here"], "deadline_at": 0.0} | fields
    values.setdefault("is_on_demand", False)
    replaces = values.pop("replaces", "")
    operation_id, is_new = operations.begin_load(agent.client, replaces=replaces, **values)
    assert is_new
    command = operations.read_load(agent.client, operation_id)
    assert command is not None
    operation = RunningOperation(agent.client, OperationKind.LOAD, operation_id, "m")
    return LoadRunner(agent, operation, command)


def _last(agent: Agent, load: LoadRunner) -> OperationProgress:
    return operations.progress(agent.client, load._operation.id, -1)[-1]


def _new_replica(agent: Agent) -> ManagedReplica:
    wait_for(lambda: agent.replicas.replicas_of("m"), "a replica starts")
    return agent.replicas.replicas_of("m")[0]


def _make_ready(agent: Agent, replica: ManagedReplica) -> None:
    records.announce(agent.client, agent_node.record(replica))
    agent.replicas.refresh()


def _end(running: Future[LoadCommand | None]) -> LoadCommand | None:
    return running.result(30)


def test_a_load_ends_when_its_replica_is_ready(
    make_agent: MakeAgent, pool: ThreadPoolExecutor, client: redis.Redis
) -> None:
    agent = make_agent()
    load = _begin(agent)
    running = pool.submit(load.run)
    replica = _new_replica(agent)
    assert replica.assignment.memory_bytes > 0
    assert (replica.assignment.spec.engine, replica.assignment.spec.task) == (
        "llamacpp",
        "generate",
    )
    _make_ready(agent, replica)
    assert _end(running) is None
    assert _last(agent, load).state is OperationState.READY
    assert codec.decode(client.hget(names.MODELS, "m"), ModelSpec) == _SPEC
    assert not client.exists(_LOCK)


def test_the_next_replica_goes_to_the_next_node(
    make_agent: MakeAgent, pool: ThreadPoolExecutor
) -> None:
    agent = make_agent()
    load = _begin(agent, replicas=2, nodes=["here", "there"])
    running = pool.submit(load.run)
    _make_ready(agent, _new_replica(agent))
    following = _end(running)
    assert following is not None and following.nodes == ["there", "here"]
    assert not _last(agent, load).is_ended


def test_a_number_of_replicas_that_is_raised_meanwhile_holds(
    make_agent: MakeAgent, pool: ThreadPoolExecutor
) -> None:
    agent = make_agent()
    load = _begin(agent, nodes=["here", "there"])
    running = pool.submit(load.run)
    replica = _new_replica(agent)
    command = operations.read_load(agent.client, load._operation.id)
    assert command is not None
    operations.rewrite(agent.client, structs.replace(command, replicas=2))
    _make_ready(agent, replica)
    following = _end(running)
    assert following is not None and following.replicas == 2


@pytest.mark.parametrize("nodes", [["here", "there"], ["here"]])
def test_a_node_without_the_weights_passes_the_load_on(
    make_agent: MakeAgent, client: redis.Redis, nodes: list[str]
) -> None:
    agent = make_agent()
    load = _begin(agent, spec=structs.replace(_SPEC, path="none.gguf"), nodes=nodes)
    following = load.run()
    if len(nodes) == 1:
        assert following is None
        assert "there are no weights of 'm'" in _last(agent, load).message
        assert not client.hexists(names.FAILURES, "m"), "it was never a model of the service"
    else:
        assert following is not None and following.nodes == ["there"]
        assert following.refusal is not None and following.refusal.param == "path"
    assert agent.replicas.all() == []


@pytest.mark.parametrize("is_on_demand", [True, False])
def test_a_model_that_does_not_fit(make_agent: MakeAgent, is_on_demand: bool) -> None:
    """Only an operator is told which size would fit: a request cannot choose one."""
    agent = make_agent(memory_limit_bytes=1)
    load = _begin(agent, is_on_demand=is_on_demand)
    assert load.run() is None
    event = _last(agent, load)
    assert event.failure is not None and event.failure.code == "insufficient_memory"
    assert ("No smaller context fits." in event.message) is not is_on_demand


def test_a_request_waits_for_busy_models_until_its_deadline(
    make_agent: MakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_module, "_ROOM_WAIT_S", 0.0)
    agent = make_agent(max_loaded_models=1)
    agent.replicas.start(structs.replace(_SPEC, name="other", path="other.gguf"), 1)
    load = _begin(agent, is_on_demand=True, deadline_at=time.time() + 600)
    following = load.run()
    assert following is not None and (following.nodes, following.no_room_on) == (["here"], [])
    late = structs.replace(following, deadline_at=0.0)
    assert LoadRunner(agent, load._operation, late).run() is None
    assert _last(agent, load).state is OperationState.FAILED


def test_an_idle_model_is_evicted(make_agent: MakeAgent, pool: ThreadPoolExecutor) -> None:
    agent = make_agent(max_loaded_models=1, min_residence_s=0.0)
    old = agent.replicas.start(structs.replace(_SPEC, name="old"), 1)
    _make_ready(agent, old)
    running = pool.submit(_begin(agent).run)
    wait_for(lambda: old.is_stopping, "the idle model stops")
    assert agent.replicas.replicas_of("m") == []
    agent.replicas.remove(old)
    _make_ready(agent, _new_replica(agent))
    assert _end(running) is None


def test_a_cancelled_load_stops_the_replica_it_started(
    make_agent: MakeAgent, pool: ThreadPoolExecutor, client: redis.Redis
) -> None:
    agent = make_agent()
    load = _begin(agent)
    running = pool.submit(load.run)
    replica = _new_replica(agent)
    client.delete(_LOCK)
    assert _end(running) is None
    assert replica.is_stopping
    assert _last(agent, load).message == "The load was cancelled."
    assert not client.hexists(names.MODELS, "m")


def test_a_load_that_lost_its_lock_before_it_began_says_so_once(
    make_agent: MakeAgent, client: redis.Redis
) -> None:
    agent = make_agent()
    load = _begin(agent)
    client.delete(_LOCK)
    assert load.run() is None
    assert "is being unloaded" in _last(agent, load).message
    num_events = client.llen(names.progress_key(load._operation.id))
    assert load.run() is None
    assert client.llen(names.progress_key(load._operation.id)) == num_events


def test_a_replica_that_gives_up_fails_the_load(
    make_agent: MakeAgent, pool: ThreadPoolExecutor, client: redis.Redis
) -> None:
    agent = make_agent()
    load = _begin(agent, spec=structs.replace(_SPEC, is_configured=True))
    client.rpush(names.priority_lists("m")[0], b"job")
    running = pool.submit(load.run)
    replica = _new_replica(agent)
    replica.error, replica.is_unusable, replica.is_given_up = "no tokenizer", True, True
    assert _end(running) is None
    assert _last(agent, load).message == "no tokenizer"
    assert client.hexists(names.FAILURES, "m")
    assert not client.exists(*names.priority_lists("m"))


def test_the_only_replica_is_replaced_by_one_that_is_ready(
    make_agent: MakeAgent, pool: ThreadPoolExecutor
) -> None:
    agent = make_agent()
    old = agent.replicas.start(structs.replace(_SPEC, engine="llamacpp", task="generate"), 1)
    _make_ready(agent, old)
    running = pool.submit(_begin(agent, replaces=old.assignment.replica_id).run)
    wait_for(lambda: len(agent.replicas.replicas_of("m")) == 2, "the second replica starts")
    assert not old.is_stopping
    _make_ready(agent, agent.replicas.replicas_of("m")[1])
    wait_for(lambda: old.is_stopping, "the old replica stops")
    agent.replicas.remove(old)
    assert _end(running) is None
