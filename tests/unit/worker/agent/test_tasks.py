"""What an agent makes of the commands that it gets."""

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import redis

from shared.registry import operations
from shared.wire.operations import LoadCommand
from tests.support.registry_records import make_spec
from worker.agent import tasks


@pytest.fixture
def agent(server: redis.Redis) -> Iterator[Any]:
    agent: Any = SimpleNamespace(client=server, node="n1")
    tasks.set_agent(agent)
    yield agent
    tasks._agent = None


def _begin(server: redis.Redis) -> str:
    nodes = ["n1", "n2"]
    operation_id, _ = operations.begin_load(
        server, make_spec(), replicas=1, nodes=nodes, deadline_at=1e12, is_on_demand=False
    )
    return operation_id


def test_a_load_that_is_delivered_twice_runs_once(
    server: redis.Redis, agent: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[str] = []
    begun, may_end = threading.Event(), threading.Event()

    class Runner:
        def __init__(self, _: Any, operation: Any, __: LoadCommand) -> None:
            self._id = operation.id

        def run(self) -> None:
            runs.append(self._id)
            begun.set()
            assert may_end.wait(60)

    monkeypatch.setattr(tasks, "LoadRunner", Runner)
    operation_id = _begin(server)
    first = threading.Thread(target=tasks.load_model, args=(operation_id,), daemon=True)
    first.start()
    assert begun.wait(60)
    tasks.load_model(operation_id)
    may_end.set()
    first.join(60)
    assert runs == [operation_id]
    tasks.load_model(operation_id)
    assert len(runs) == 2, "a later delivery is judged by the operation's lock"


def test_a_load_that_has_gone_on_to_another_node_is_left_to_it(
    server: redis.Redis, agent: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "LoadRunner", None)
    operation_id = _begin(server)
    command = operations.read_load(server, operation_id)
    assert command is not None
    operations.rewrite(server, msgspec.structs.replace(command, nodes=["n2"]))
    tasks.load_model(operation_id)
    assert operations.is_under_way(server, operations.OperationKind.LOAD, "m")
