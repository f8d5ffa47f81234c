"""What an agent loads when it starts, after one that was killed with its replicas."""

from pathlib import Path
from typing import Any

import pytest
import redis

from shared import names
from shared.clock import clock
from shared.model_spec import ModelSpec
from shared.registry import operations
from shared.wire import codec
from shared.wire.operations import LoadCommand
from shared.wire.records import Assignment
from tests.support import agent_node
from worker.agent import __main__ as main
from worker.agent import tasks
from worker.agent.adoption import adopt_replicas
from worker.agent.agent import Agent
from worker.agent.managed_replica import ManagedReplica

_SPEC = ModelSpec(name="m", path="m.gguf")


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids of the loads that were sent to the node's queue."""
    ids: list[str] = []
    monkeypatch.setattr(tasks.load_model, "apply_async", lambda args, queue: ids.extend(args))
    return ids


@pytest.fixture
def agent(tmp_path: Path, redis_socket: str, client: redis.Redis) -> Agent:
    """An agent whose predecessor died with two replicas of the model."""
    client.hset(names.MODELS, "m", codec.encode(_SPEC))
    for number in (1, 2):
        dead = Assignment(
            id=f"m@here-{number}", node="here", spec=_SPEC, memory_bytes=1, replica_id=str(number)
        )
        client.hset(names.assignments_key("here"), dead.id, codec.encode(dead))
    agent = Agent(agent_node.settings(tmp_path, redis_socket), client)
    agent._dead = adopt_replicas(agent.replicas)
    return agent


def _begin(agent: Agent, **fields: Any) -> str:
    """A load that is under way when the agent starts."""
    values = {"replicas": 1, "nodes": ["there"], "deadline_at": 0.0, "is_on_demand": True}
    operation_id, is_new = operations.begin_load(
        agent.client, _SPEC, **{**values, "deadline_at": clock.now() + 60, **fields}
    )
    assert is_new
    return operation_id


def _command(agent: Agent, operation_id: str) -> LoadCommand:
    command = operations.read_load(agent.client, operation_id)
    assert command is not None
    return command


def test_the_replicas_that_died_are_loaded_again(agent: Agent, sent: list[str]) -> None:
    main._reload(agent)
    (operation_id,) = sent
    command = _command(agent, operation_id)
    assert (command.replicas, command.nodes) == (2, ["here"])


def test_a_replica_without_a_record_counts_beside_those_that_died(
    agent: Agent, sent: list[str], tmp_path: Path
) -> None:
    adopted = Assignment(id="m@here-3", node="here", spec=_SPEC, memory_bytes=1, replica_id="3")
    agent.replicas.add(ManagedReplica(adopted, tmp_path / "3.log"))
    main._reload(agent)
    assert _command(agent, sent[0]).replicas == 3


@pytest.mark.parametrize("nodes", [["here"], ["there", "here"]])
def test_a_load_that_a_request_began_meanwhile_starts_them_all(
    agent: Agent, sent: list[str], nodes: list[str]
) -> None:
    operation_id = _begin(agent, nodes=nodes)
    main._reload(agent)
    assert sent == ([operation_id] if nodes[0] == "here" else [])
    assert _command(agent, operation_id).replicas == 2


def test_a_restart_of_a_replica_that_died_becomes_a_load(agent: Agent, sent: list[str]) -> None:
    operation_id = _begin(agent, nodes=["here"], node="here", replaces="1")
    main._reload(agent)
    command = _command(agent, operation_id)
    assert (command.replicas, command.replaces) == (2, "")


def test_a_load_for_another_node_stays_as_it_is_and_the_loss_is_logged(
    agent: Agent, sent: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    operation_id = _begin(agent, node="there")
    main._reload(agent)
    assert sent == [] and _command(agent, operation_id).replicas == 1
    assert "2 replicas of m were lost: it has another load" in caplog.text
