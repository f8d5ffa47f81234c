"""What each step of an operation and of a process leaves in Redis, and for how long; and each use
of a key.

The functions are the real ones, with the default settings, against a real server.
"""

from pathlib import Path

import msgspec
import pytest
import redis

from app.api.health import readyz
from app.auth.authenticator import Authenticator
from app.events.hub import Hub
from app.models.last_used import LastUsed
from shared.api_keys import Scope
from shared.api_keys import create as create_key
from shared.errors import LlmisError, ModelFailed
from shared.model_spec import ModelSpec
from shared.names import REPLICA_INDEX
from shared.registry.directory import Directory
from shared.registry.operations import (
    begin_load,
    begin_unload,
    count_down,
    failure_of,
    read_load,
    read_unload,
    rewrite,
)
from shared.registry.records import announce, announce_node
from shared.registry.running_operation import RunningOperation
from shared.settings.fields import Settings
from shared.wire.operations import OperationKind
from shared.wire.records import Assignment, NodeRecord, ReplicaRecord, StopOrder
from tests.contract.job_examples import REPLICAS
from tests.contract.lifecycle_examples import MESSAGES
from tests.contract.redis_state import assert_state_after
from tests.support import web_app
from worker.agent.agent import Agent
from worker.agent.managed_replica import ManagedReplica
from worker.agent.replicas import Replicas


def _settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=str(tmp_path), node_name="n")


# -- processes and operations --------------------------------------------------------------------


def test_records(server: redis.Redis) -> None:
    record, node = REPLICAS["replica-full"], MESSAGES["node-full"]
    assert isinstance(record, ReplicaRecord)
    assert isinstance(node, NodeRecord)

    def step() -> None:
        announce(server, record)
        announce_node(server, node)

    assert_state_after(server, "ttl/records.json", step)
    assert server.smembers(REPLICA_INDEX) == {record.id.encode()}


@pytest.mark.parametrize("end", ["begun", "handed-on", "finished", "failed"])
def test_a_load(server: redis.Redis, end: str) -> None:
    spec = MESSAGES["model-full"]
    assert isinstance(spec, ModelSpec)

    def step() -> None:
        operation_id, is_new = begin_load(
            server, spec, replicas=1, nodes=["n"], deadline_at=1.0, is_on_demand=False
        )
        assert is_new
        operation = RunningOperation(server, OperationKind.LOAD, operation_id, "m")
        if end == "handed-on":
            command = read_load(server, operation_id)
            assert command is not None
            rewrite(server, msgspec.structs.replace(command, nodes=["o"]))
            operation.report("spawning")
            assert operation.renew()
        elif end == "finished":
            assert operation.finish_load(spec)
        elif end == "failed":
            operation.fail(failure_of(ModelFailed("no"), 60.0))

    assert_state_after(server, f"ttl/load-{end}.json", step)


def test_an_unload(server: redis.Redis) -> None:
    def step() -> None:
        operation_id, is_new = begin_unload(
            server, "m", grace_s=1.0, is_draining=True, is_forgotten=True, num_nodes=2
        )
        command = read_unload(server, operation_id)
        assert is_new
        assert command is not None
        assert not count_down(server, command)

    assert_state_after(server, "ttl/unload.json", step)


def test_a_replica_that_is_let_go(server: redis.Redis, tmp_path: Path) -> None:
    assignment = MESSAGES["assignment-full"]
    assert isinstance(assignment, Assignment)
    fleet = Replicas(_settings(tmp_path), server)
    replica = ManagedReplica(assignment, tmp_path / "replica.log")
    assert_state_after(
        server, "ttl/let-go.json", lambda: fleet.stop(replica, StopOrder(10.5, "stop"))
    )


def test_an_agent_that_takes_its_name(server: redis.Redis, tmp_path: Path) -> None:
    """Its record is there before its first heartbeat, and goes as fast."""
    agent = Agent(_settings(tmp_path), server)
    assert_state_after(server, "ttl/agent-name.json", agent._claim_name)


# -- keys, guesses, probes -----------------------------------------------------------------------


def test_api_keys(server: redis.Redis) -> None:
    assert_state_after(
        server, "ttl/keys.json", lambda: create_key(server, "ann", Scope.USER, expires_at=1e12)
    )


def test_keys_that_do_not_hold(server: redis.Redis) -> None:
    def step() -> None:
        directory = Directory(server)
        directory.refresh()
        authenticator = Authenticator(Settings(auth=True), server, directory)
        for address in ("192.0.2.7", "2001:db8::1", "no address"):
            with pytest.raises(LlmisError):
                authenticator.identify("sk-wrong", address)

    assert_state_after(server, "ttl/guesses.json", step)


def test_last_use_of_models(server: redis.Redis) -> None:
    def step() -> None:
        usage = LastUsed(server)
        usage.note("m")
        usage.flush()

    assert_state_after(server, "ttl/last-used.json", step)


def test_the_probe_of_readiness(server: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    app = web_app.made()
    services = app.extensions["llmis"]
    monkeypatch.setattr(services, "client", server, raising=False)
    monkeypatch.setattr(services, "hub", Hub(server), raising=False)
    monkeypatch.setattr(services, "directory", Directory(server), raising=False)
    catalog = type("Catalog", (), {"names": lambda _: []})()
    monkeypatch.setattr(services, "catalog", catalog, raising=False)

    def step() -> None:
        with app.test_request_context("/readyz"):
            assert readyz().status_code == 503

    assert_state_after(server, "ttl/probe.json", step)
