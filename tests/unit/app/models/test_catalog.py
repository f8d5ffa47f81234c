"""Which models there are, and how each one is."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from app.models.catalog import Catalog
from shared import names
from shared.errors import InvalidModel, ModelFailed
from shared.model_spec import ModelSpec
from shared.registry import operations, records
from shared.registry.directory import Directory
from shared.settings.fields import Settings
from shared.settings.model_settings import ModelSettings
from shared.wire import codec
from shared.wire.records import Capability, ModelState, ReplicaState
from tests.support.registry_records import make_node, make_replica, make_spec


class _Service:
    def __init__(self, server: redis.Redis) -> None:
        self.redis = server
        self.directory = Directory(server)
        self.configure()

    def configure(self, *models: ModelSettings) -> None:
        self.catalog = Catalog(Settings(models=list(models)), self.directory)

    def remember(self, spec: ModelSpec) -> None:
        self.redis.hset(names.MODELS, spec.name, codec.encode(spec))

    def begin_load(self, model: str = "m") -> None:
        operations.begin_load(
            self.redis,
            make_spec(model),
            replicas=1,
            nodes=["n"],
            deadline_at=4e9,
            is_on_demand=False,
        )

    def begin_unload(self, model: str = "m") -> None:
        operations.begin_unload(
            self.redis, model, grace_s=9.0, is_draining=True, is_forgotten=True, num_nodes=1
        )

    def fail(self) -> None:
        failure = operations.failure_of(ModelFailed("broken"), 30.0)
        self.redis.hset(names.FAILURES, "m", codec.encode(failure))

    def replica(self, state: ReplicaState, model: str = "m") -> None:
        record = make_replica(f"{model}-{state}", model, state)
        records.announce(self.redis, record)
        self.redis.persist(names.replica_key(record.id))  # it would be gone before a slow test ends

    def node(self, *models: str) -> None:
        """A node that keeps these models running."""
        records.announce_node(self.redis, make_node(models=list(models)))
        self.redis.persist(names.node_key("n"))

    def state(self) -> ModelState:
        self.directory.refresh()
        return self.catalog.state("m")


@pytest.fixture
def service(server: redis.Redis) -> _Service:
    return _Service(server)


def _configured(name: str = "m", **fields: Any) -> ModelSettings:
    return ModelSettings(name=name, path=f"{name}.gguf", **fields)


def test_configured_models_come_first_and_each_one_once(service: _Service) -> None:
    service.configure(_configured("z"), _configured("y"))
    service.replica(ReplicaState.READY, "running")
    service.replica(ReplicaState.READY, "z")
    service.remember(make_spec("remembered"))
    service.remember(make_spec("running"))
    service.begin_load("coming")
    service.begin_unload("going")
    service.directory.refresh()
    assert service.catalog.names() == ["z", "y", "coming", "remembered", "running"]


def test_a_request_without_a_model_is_for_the_first_that_generates(service: _Service) -> None:
    assert service.catalog.first_generating() is None
    service.remember(make_spec("others"))
    embedder = make_replica("r-1", "found", ReplicaState.READY, capabilities=[Capability.EMBEDDING])
    records.announce(service.redis, embedder)
    service.configure(_configured("told", task="embed"), _configured("found"))
    service.directory.refresh()
    assert service.catalog.first_generating() == "others"
    service.configure(_configured("told", task="embed"), _configured("z"), _configured("a"))
    assert service.catalog.first_generating() == "z"


@pytest.mark.parametrize(
    "appear",
    [
        lambda service: service.configure(_configured()),
        lambda service: service.remember(make_spec()),
        lambda service: service.begin_load(),
        lambda service: service.replica(ReplicaState.DRAINING),
    ],
    ids=["configured", "loaded", "coming", "running"],
)
def test_a_model_is_known_the_moment_that_it_is_there(
    service: _Service, appear: Callable[[_Service], None], forward: Callable[[float], None]
) -> None:
    service.directory.refresh()
    assert not service.catalog.is_known("m")
    appear(service)
    forward(1)
    assert service.catalog.is_known("m")


@pytest.mark.usefixtures("forward")
def test_unknown_models_do_not_make_the_registry_be_read_each_time(service: _Service) -> None:
    service.directory.refresh()
    service.remember(make_spec())
    assert not service.catalog.is_known("m")


def test_only_a_model_that_is_not_configured_leaves_for_good(service: _Service) -> None:
    service.directory.refresh()
    assert not service.catalog.is_leaving("m")
    service.begin_unload()
    service.directory.refresh()
    assert service.catalog.is_leaving("m") and not service.catalog.is_configured("m")
    service.configure(_configured())
    assert not service.catalog.is_leaving("m") and service.catalog.is_configured("m")


def test_the_settings_say_how_to_load_a_model_before_what_was_loaded(
    service: _Service, tmp_path: Path
) -> None:
    template = tmp_path / "chat.jinja"
    template.write_text("{{ messages }}")
    service.remember(make_spec(slots=9))
    service.directory.refresh()
    assert service.catalog.spec("m") == service.catalog.bare_spec("m") == make_spec(slots=9)
    service.configure(_configured(chat_template=str(template), slots=2))
    spec, outline = service.catalog.spec("m"), service.catalog.bare_spec("m")
    assert spec is not None and outline is not None
    assert (spec.slots, spec.chat_template, spec.is_configured) == (2, "{{ messages }}", True)
    assert (outline.slots, outline.chat_template) == (2, None)


def test_an_outline_needs_no_template_that_can_be_read(service: _Service, tmp_path: Path) -> None:
    service.configure(_configured(chat_template=str(tmp_path / "missing.jinja")))
    assert service.catalog.bare_spec("m") is not None
    with pytest.raises(InvalidModel):
        service.catalog.spec("m")


def test_a_model_that_nobody_knows_has_no_spec(service: _Service) -> None:
    assert service.catalog.spec("m") is None
    assert service.catalog.bare_spec("m") is None


# -- states ----------------------------------------------------------------------------------


def test_a_model_with_a_replica_that_serves_is_ready_whatever_else_comes(service: _Service) -> None:
    service.fail()
    service.begin_load()
    service.replica(ReplicaState.LOADING)
    service.replica(ReplicaState.READY)
    assert service.state() is ModelState.READY


def test_a_model_that_is_being_unloaded_is_so_while_it_still_serves(service: _Service) -> None:
    service.replica(ReplicaState.READY)
    service.begin_unload()
    assert service.state() is ModelState.UNLOADING


@pytest.mark.parametrize(
    "begin",
    [
        lambda service: service.replica(ReplicaState.LOADING),
        lambda service: service.begin_load(),
        lambda service: service.node("m"),
    ],
    ids=["a replica loads", "a load is under way", "a node keeps it running"],
)
def test_a_model_on_its_way_is_loading_whatever_failed_before(
    service: _Service, begin: Callable[[_Service], None]
) -> None:
    service.fail()
    service.replica(ReplicaState.DRAINING)
    begin(service)
    assert service.state() is ModelState.LOADING


def test_a_model_whose_last_replica_drains_is_unloading(service: _Service) -> None:
    service.fail()
    service.replica(ReplicaState.DRAINING)
    assert service.state() is ModelState.UNLOADING


def test_a_model_that_could_not_be_loaded_has_failed(service: _Service) -> None:
    service.fail()
    assert service.state() is ModelState.FAILED


def test_a_model_without_anything_is_unloaded(service: _Service) -> None:
    assert service.state() is ModelState.UNLOADED
