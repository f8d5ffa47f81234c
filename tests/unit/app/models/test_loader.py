"""Which loads and unloads begin, for whom, on which nodes; and what a request is told."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent
import pytest
import redis
from kombu.exceptions import OperationalError

from app.models.catalog import Catalog
from app.models.loader import Loader
from shared import names
from shared.errors import (
    Conflict,
    InsufficientMemory,
    LlmisError,
    ModelFailed,
    ModelNotFound,
    ModelUnloaded,
    NoNode,
)
from shared.model_spec import ModelSpec
from shared.registry import operations, records
from shared.registry.directory import Directory
from shared.registry.running_operation import RunningOperation
from shared.settings.fields import Settings
from shared.settings.model_settings import ModelSettings
from shared.wire import codec
from shared.wire.operations import Failure, LoadCommand, OperationKind
from shared.wire.records import ReplicaState
from tests.support.registry_records import make_node, make_replica, make_spec

LOAD, UNLOAD = OperationKind.LOAD, OperationKind.UNLOAD


class _Sent:
    """Stands in for Celery: keeps what was sent."""

    def __init__(self) -> None:
        self.tasks: list[tuple[str, list[str], str]] = []
        self.error: Exception | None = None

    def send_task(self, task: str, *, args: list[str], queue: str, **_: Any) -> None:
        error, self.error = self.error, None
        if error is not None:
            raise error
        self.tasks.append((task, args, queue))


class _Directory(Directory):
    """Something happens with each refresh."""

    def __init__(self, client: redis.Redis) -> None:
        super().__init__(client)
        self.happens: list[Callable[[], Any]] = []

    def refresh(self) -> None:
        if self.happens:
            self.happens.pop(0)()
        super().refresh()


class _Service:
    def __init__(self, server: redis.Redis) -> None:
        self.redis = server
        self.sent = _Sent()
        self.directory = _Directory(server)
        self.configure()

    def configure(self, *models: ModelSettings) -> None:
        """The models of the settings."""
        settings = Settings(models=list(models))
        self.catalog = Catalog(settings, self.directory)
        self.loader = Loader(settings, self.redis, self.sent, self.directory, self.catalog)  # type: ignore[arg-type]

    def node(self, node: str = "n", *free_bytes: int, models: list[str] | None = None) -> None:
        records.announce_node(self.redis, make_node(node, *free_bytes, models=models))
        self.redis.persist(names.node_key(node))  # it would be gone before a slow test ends
        self.directory.refresh()

    def replica(self, state: ReplicaState = ReplicaState.READY) -> None:
        records.announce(self.redis, make_replica(state=state))
        self.redis.persist(names.replica_key("r"))
        self.directory.refresh()

    def remember(self, spec: ModelSpec) -> None:
        """A model that was loaded at run time."""
        self.redis.hset(names.MODELS, spec.name, codec.encode(spec))
        self.directory.refresh()

    def fail(self, error: LlmisError, retry_s: float = 20.0) -> None:
        failure = operations.failure_of(error, retry_s)
        self.redis.hset(names.FAILURES, "m", codec.encode(failure))
        self.directory.refresh()

    def command(self, operation_id: str) -> LoadCommand:
        command = operations.read_load(self.redis, operation_id)
        assert command is not None
        return command

    def failure(self) -> Failure | None:
        self.directory.refresh()
        return self.directory.failure("m")

    def begin_unload(self) -> str:
        return operations.begin_unload(
            self.redis, "m", grace_s=9.0, is_draining=True, is_forgotten=True, num_nodes=1
        )[0]


@pytest.fixture
def service(server: redis.Redis) -> _Service:
    return _Service(server)


def _configured(name: str = "m", **fields: Any) -> ModelSettings:
    return ModelSettings(name=name, path=f"{name}.gguf", **fields)


# -- load ------------------------------------------------------------------------------------


def test_a_load_is_sent_to_the_node_with_most_free_memory_on_one_device(service: _Service) -> None:
    service.node("many", 60, 60)
    service.node("big", 10, 100)
    service.node("small", 5)
    operation_id = service.loader.load(make_spec(), replicas=3)
    assert service.sent.tasks == [(names.LOAD_TASK, [operation_id], "node.big")]
    command = service.command(operation_id)
    assert (command.nodes, command.replicas) == (["big", "many", "small"], 3)
    assert (command.node, command.is_on_demand, command.replaces) == (None, False, "")


def test_a_load_for_one_node_goes_nowhere_else(service: _Service) -> None:
    service.node("big", 100)
    service.node("small", 5)
    command = service.command(service.loader.load(make_spec(), node="small"))
    assert (command.nodes, command.node) == (["small"], "small")


def test_a_load_without_a_live_node_is_refused(service: _Service) -> None:
    with pytest.raises(NoNode, match="No node is alive"):
        service.loader.load(make_spec())
    service.node("n")
    with pytest.raises(NoNode, match="The node 'other' is not alive"):
        service.loader.load(make_spec(), node="other")
    assert not operations.is_under_way(service.redis, LOAD, "m")


def test_a_load_of_a_request_may_wait_until_its_deadline(service: _Service) -> None:
    service.node()
    command = service.command(service.loader.load(make_spec(), deadline_at=4e9))
    assert (command.deadline_at, command.is_on_demand) == (4e9, True)


def test_a_load_is_refused_while_its_model_is_being_unloaded(service: _Service) -> None:
    service.node()
    service.begin_unload()
    with pytest.raises(Conflict, match="being unloaded"):
        service.loader.load(make_spec())
    assert service.sent.tasks == []


def test_a_load_of_a_request_begins_while_its_model_is_being_unloaded(service: _Service) -> None:
    service.node()
    service.begin_unload()
    service.loader.load(make_spec(), deadline_at=4e9)
    assert len(service.sent.tasks) == 1


def test_the_same_load_is_joined_and_sent_once(service: _Service) -> None:
    service.node()
    first = service.loader.load(make_spec(), replicas=2)
    assert service.loader.load(make_spec(), replicas=2) == first
    assert len(service.sent.tasks) == 1


@pytest.mark.parametrize(
    "other",
    [{"spec": make_spec(slots=9)}, {"replicas": 2}, {"node": "n2"}],
    ids=["spec", "replicas", "node"],
)
def test_a_load_that_is_under_way_is_not_joined_by_one_that_differs(
    service: _Service, other: dict[str, Any]
) -> None:
    service.node("n1", 100)
    service.node("n2", 5)
    service.loader.load(make_spec())
    with pytest.raises(Conflict, match="with other settings"):
        service.loader.load(**{"spec": make_spec(), **other})
    assert len(service.sent.tasks) == 1


def test_a_load_for_one_node_is_joined_by_one_for_any(service: _Service) -> None:
    service.node()
    first = service.loader.load(make_spec(), node="n")
    assert service.loader.load(make_spec(), node="n") == first
    assert service.loader.load(make_spec()) == first


def test_a_request_joins_a_load_with_whatever_settings(service: _Service) -> None:
    service.node()
    first = service.loader.load(make_spec(), replicas=2)
    assert service.loader.load(make_spec(slots=9), deadline_at=4e9) == first


# -- unload, restart -------------------------------------------------------------------------


def test_an_unload_is_sent_to_every_node_and_forgets_the_model(service: _Service) -> None:
    service.node("a")
    service.node("b")
    service.remember(make_spec())
    service.fail(ModelFailed("broken"))
    operation_id = service.loader.unload("m", is_now=False, grace_s=7.0)
    assert service.sent.tasks == [
        (names.UNLOAD_TASK, [operation_id], "node.a"),
        (names.UNLOAD_TASK, [operation_id], "node.b"),
    ]
    command = operations.read_unload(service.redis, operation_id)
    assert command is not None
    assert (command.grace_s, command.is_draining, command.is_forgotten) == (7.0, True, True)
    assert command.num_nodes == 2
    assert service.failure() is None and service.directory.specs() == {}


@pytest.mark.parametrize(
    ("is_configured", "is_now", "expected"),
    [
        (False, True, (0.0, False, True)),
        (True, False, (7.0, False, False)),
        (True, True, (0.0, False, False)),
    ],
)
def test_what_waits_is_served_before_only_if_it_is_not_served_after(
    service: _Service, is_configured: bool, is_now: bool, expected: tuple[float, bool, bool]
) -> None:
    """The requests that wait for a configured model load it again."""
    if is_configured:
        service.configure(_configured())
    service.node()
    command = operations.read_unload(
        service.redis, service.loader.unload("m", is_now=is_now, grace_s=7.0)
    )
    assert command is not None
    assert (command.grace_s, command.is_draining, command.is_forgotten) == expected


def test_an_unload_that_is_under_way_is_joined_and_forgets_nothing(service: _Service) -> None:
    service.node()
    first = service.begin_unload()
    service.remember(make_spec())
    assert service.loader.unload("m", is_now=False, grace_s=7.0) == first
    assert service.sent.tasks == []
    assert service.redis.hexists(names.MODELS, "m")


def test_an_unload_without_a_live_node_is_refused(service: _Service) -> None:
    with pytest.raises(NoNode):
        service.loader.unload("m", is_now=True, grace_s=0.0)


def test_a_restart_is_a_load_on_the_replicas_own_node_in_its_place(service: _Service) -> None:
    service.remember(make_spec())
    operation_id = service.loader.restart(make_replica("r9", node="far"))
    assert service.sent.tasks == [(names.LOAD_TASK, [operation_id], "node.far")]
    command = service.command(operation_id)
    assert (command.node, command.nodes, command.replicas) == ("far", ["far"], 1)
    assert (command.replaces, command.is_on_demand) == ("r9", False)


def test_a_replica_is_not_restarted_while_its_model_is_being_loaded(service: _Service) -> None:
    service.node()
    service.remember(make_spec())
    service.loader.load(make_spec())
    with pytest.raises(Conflict, match="loaded or restarted already"):
        service.loader.restart(make_replica())
    assert len(service.sent.tasks) == 1


def test_a_replica_of_a_forgotten_model_is_not_restarted(service: _Service) -> None:
    with pytest.raises(ModelNotFound):
        service.loader.restart(make_replica())


def test_a_restart_of_an_agent_names_no_operation(service: _Service) -> None:
    service.loader.restart_agent("n")
    assert service.sent.tasks == [(names.RESTART_AGENT_TASK, [], "node.n")]


# -- check -----------------------------------------------------------------------------------


def test_a_model_without_a_failure_may_be_asked_for(service: _Service) -> None:
    service.loader.check("m")


def test_a_failed_load_is_told_without_its_details(service: _Service) -> None:
    """Paths and parameters are the operator's business."""
    service.fail(ModelFailed("/secret/path is broken"))
    with pytest.raises(ModelFailed) as caught:
        service.loader.check("m")
    assert "secret" not in caught.value.message
    assert caught.value.retry_after_s is not None and 1 <= caught.value.retry_after_s <= 20


def test_want_of_room_is_told_as_it_is(service: _Service) -> None:
    service.fail(InsufficientMemory("4 GiB are missing"))
    with pytest.raises(InsufficientMemory, match="4 GiB are missing"):
        service.loader.check("m")


def test_a_failure_that_is_nearly_over_asks_for_one_second(
    service: _Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.fail(ModelFailed("broken"))
    failure = service.failure()
    assert failure is not None
    nearly = failure.retry_at - 0.4
    monkeypatch.setattr(time, "time", lambda: nearly)
    with pytest.raises(ModelFailed) as caught:
        service.loader.check("m")
    assert caught.value.retry_after_s == 1


def test_a_failure_that_is_over_keeps_no_request_away(service: _Service) -> None:
    service.fail(ModelFailed("broken"), retry_s=-1.0)
    service.loader.check("m")


def test_a_replica_that_was_given_up_does_not_hide_the_others(service: _Service) -> None:
    service.fail(ModelFailed("broken"))
    service.replica(ReplicaState.LOADING)
    service.loader.check("m")


def test_a_replica_that_only_drains_does_not_excuse_a_failure(service: _Service) -> None:
    service.fail(ModelFailed("broken"))
    service.replica(ReplicaState.DRAINING)
    with pytest.raises(ModelFailed):
        service.loader.check("m")


def test_a_model_that_a_node_keeps_running_may_be_asked_for(service: _Service) -> None:
    service.fail(ModelFailed("broken"))
    service.node(models=["m"])
    service.loader.check("m")


# -- ensure ----------------------------------------------------------------------------------


def test_a_request_for_an_unloaded_model_begins_its_load(service: _Service) -> None:
    service.configure(_configured())
    service.node()
    progress = service.loader.ensure("m", 4e9)
    assert progress is not None and (progress.kind, progress.stage) == (LOAD, "checking")
    assert service.command(progress.id).deadline_at == 4e9
    assert service.sent.tasks == [(names.LOAD_TASK, [progress.id], "node.n")]


def test_a_request_waits_for_the_load_that_is_under_way(service: _Service) -> None:
    service.configure(_configured())
    service.node()
    operation_id = service.loader.load(make_spec())
    RunningOperation(service.redis, LOAD, operation_id, "m").report("spawning")
    service.directory.refresh()
    progress = service.loader.ensure("m", 4e9)
    assert progress is not None and (progress.id, progress.stage) == (operation_id, "spawning")
    assert len(service.sent.tasks) == 1


def test_a_replica_that_is_started_again_is_waited_for_without_a_load(service: _Service) -> None:
    service.configure(_configured())
    service.node(models=["m"])
    assert service.loader.ensure("m", 4e9) is None
    assert service.sent.tasks == []


def test_a_model_that_failed_a_moment_ago_is_not_loaded_by_a_request(service: _Service) -> None:
    service.configure(_configured())
    service.node()
    service.fail(ModelFailed("broken"))
    with pytest.raises(ModelFailed):
        service.loader.ensure("m", 4e9)
    assert service.sent.tasks == []


def test_a_model_that_nobody_can_load_was_unloaded(service: _Service) -> None:
    service.node()
    with pytest.raises(ModelUnloaded):
        service.loader.ensure("m", 4e9)


def test_a_template_that_cannot_be_read_is_logged_and_not_told(
    service: _Service, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    missing = str(tmp_path / "missing.jinja")
    service.configure(_configured(chat_template=missing))
    service.node()
    with pytest.raises(ModelFailed) as caught:
        service.loader.ensure("m", 4e9)
    assert "missing.jinja" not in caught.value.message
    assert missing in caplog.text


def test_a_node_that_is_away_is_waited_for(service: _Service) -> None:
    service.configure(_configured())
    assert service.loader.ensure("m", 4e9) is None


# -- preload ---------------------------------------------------------------------------------


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is waited for happens with the next refresh."""
    monkeypatch.setattr(gevent, "sleep", lambda _: None)


@pytest.mark.usefixtures("no_pause")
class TestPreload:
    def test_models_that_want_it_are_loaded_once(self, service: _Service) -> None:
        service.configure(_configured("a"), _configured("b"), _configured("c", preload=False))
        service.node()
        service.loader.preload()
        loads = [service.command(args[0]).spec.name for _, args, _ in service.sent.tasks]
        assert loads == ["a", "b"]

    def test_a_node_is_waited_for(self, service: _Service) -> None:
        service.configure(_configured())
        node = make_node()
        service.directory.happens = [
            lambda: None,
            lambda: records.announce_node(service.redis, node),
        ]
        service.loader.preload()
        assert len(service.sent.tasks) == 1

    def test_a_node_is_not_waited_for_beyond_patience(
        self, service: _Service, forward: Callable[[float], None]
    ) -> None:
        service.configure(_configured())
        service.directory.happens = [lambda: None, lambda: forward(1000)]
        service.loader.preload()
        assert service.directory.happens == [] and service.sent.tasks == []

    @pytest.mark.parametrize("state", [ReplicaState.READY, ReplicaState.LOADING])
    def test_a_model_that_has_a_replica_is_left_alone(
        self, service: _Service, state: ReplicaState
    ) -> None:
        service.configure(_configured())
        service.node()
        service.replica(state)
        service.loader.preload()
        assert service.sent.tasks == []

    def test_a_model_that_a_node_keeps_running_is_left_alone(self, service: _Service) -> None:
        service.configure(_configured())
        service.node(models=["m"])
        service.loader.preload()
        assert service.sent.tasks == []

    def test_a_redis_that_is_away_is_waited_for(
        self, service: _Service, caplog: pytest.LogCaptureFixture
    ) -> None:
        def away() -> None:
            raise redis.ConnectionError("away")

        service.configure(_configured())
        service.node()
        service.directory.happens = [away]
        service.loader.preload()
        assert len(service.sent.tasks) == 1
        assert "preloading waits: away" in caplog.text

    def test_a_broker_that_is_away_is_waited_for(self, service: _Service) -> None:
        """The load has its lock already, and no message: it is begun again when that is gone."""
        service.configure(_configured())
        service.node()
        service.sent.error = OperationalError("away")
        lock = names.operation_lock_key(LOAD, "m")
        service.directory.happens = [lambda: None, lambda: service.redis.delete(lock)]
        service.loader.preload()
        assert len(service.sent.tasks) == 1

    def test_a_model_that_cannot_be_loaded_is_not_tried_again(
        self, service: _Service, caplog: pytest.LogCaptureFixture, tmp_path: Path
    ) -> None:
        broken = _configured("broken", chat_template=str(tmp_path / "missing.jinja"))
        service.configure(broken, _configured())
        service.node()
        service.loader.preload()
        (task,) = service.sent.tasks
        assert service.command(task[1][0]).spec.name == "m"
        assert caplog.text.count("broken is not preloaded") == 1
