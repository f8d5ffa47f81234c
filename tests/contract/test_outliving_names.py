"""Names that outlive a process: they stand in Redis, in command lines of running processes, in
unit files and in settings files, and the next version has to answer to them."""

import os
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import psutil
import pytest
import redis
from celery.worker.consumer import Consumer
from celery.worker.control import Panel
from kombu.transport import TRANSPORT_ALIASES
from kombu.utils.imports import symbol_by_name
from msgspec import NODEFAULT, Struct
from msgspec.structs import fields

import celeryconfig
from app.jobs.dispatcher import new_request_id
from app.models.loader import Loader
from cli.commands.check import _MARKS
from cli.service.processes import agent, flower, web
from shared.api_keys import Scope
from shared.api_keys import create as create_key
from shared.celery_app import app
from shared.model_spec import ModelSpec
from shared.settings.fields import Settings
from shared.settings.load import env_name
from shared.settings.model_settings import ModelSettings, SamplingDefaults
from shared.wire.records import Assignment
from tests.contract.frozen_file import assert_frozen
from tests.contract.lifecycle_examples import MESSAGES
from worker.agent.managed_replica import ManagedReplica, find_processes
from worker.agent.replicas import Replicas
from worker.agent.tasks import load_model
from worker.replica.tasks import generate

# -- Celery --------------------------------------------------------------------------------------


def test_the_tasks_and_commands_of_celery() -> None:
    assert {generate.name, load_model.name} <= set(app.tasks)
    ours = sorted(name for name in app.tasks if not name.startswith("celery."))
    assert_frozen("outliving/celery.json", {"app": app.main, "tasks": ours})
    assert Panel.data["revoke"].__module__.startswith("worker.")


def test_the_settings_of_celery() -> None:
    """But for the address of Redis, which is the service's own, and where its consumer lies."""
    found = {
        name: value
        for name, value in vars(celeryconfig).items()
        if not name.startswith("_") and name not in ("broker_url", "worker_consumer")
    }
    assert_frozen("outliving/celeryconfig.json", found)


def test_the_consumer_that_celery_is_told_of_is_there() -> None:
    consumer = symbol_by_name(celeryconfig.worker_consumer)
    assert issubclass(consumer, Consumer)
    assert consumer is not Consumer


@pytest.mark.parametrize("scheme", ["redis", "rediss"])
def test_the_transport_that_the_urls_of_redis_mean_is_ours(scheme: str) -> None:
    assert symbol_by_name(TRANSPORT_ALIASES[scheme]).__module__.startswith("shared.")


class _Recorder:
    """In place of Celery: keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def send_task(self, name: str, **options: Any) -> None:
        self.sent.append({"task": name, **options})


def test_what_the_web_tier_sends_to_an_agent() -> None:
    recorder = _Recorder()
    loader = Loader(Settings(), None, recorder, None, None)  # type: ignore[arg-type]
    loader.restart_agent("n")
    loader._send(load_model.name, "load-1", "n")
    assert_frozen("outliving/sent_to_agents.json", recorder.sent)


# -- processes -----------------------------------------------------------------------------------


def _words(command: list[str]) -> list[str]:
    assert command[0] == sys.executable
    return command[1:]


def test_the_command_lines_of_processes() -> None:
    found = {"web": web(), "agent": agent(), "flower": flower(Settings())}
    assert_frozen("outliving/argv.json", {name: _words(line) for name, line in found.items()})


def test_health_checks_know_the_processes_by_their_command_lines() -> None:
    lines = {"web": web(), "agent": agent(), "flower": flower(Settings())}
    assert _MARKS.keys() == lines.keys()
    for name, mark in _MARKS.items():
        assert [other for other, line in lines.items() if mark in line] == [name]


@pytest.mark.parametrize(
    "name", ["app.wsgi", "app.gunicorn_conf", "shared.celery_app", "worker.agent.__main__",
             "worker.replica", "cli.__main__"],
)  # fmt: skip
def test_the_modules_in_command_lines_are_there(name: str) -> None:
    assert find_spec(name) is not None


def _assignment() -> Assignment:
    found = MESSAGES["assignment-full"]
    assert isinstance(found, Assignment)
    return found


def _command_of_a_replica(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    started: list[list[str]] = []
    monkeypatch.setattr(psutil, "Popen", lambda command, **_: started.append(command))
    assignment = _assignment()
    ManagedReplica(assignment, tmp_path / "replica.log").start(assignment, {})
    (command,) = started
    return command


def test_the_command_line_of_a_replica(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    command = _command_of_a_replica(monkeypatch, tmp_path)
    assert _words(command) == ["-m", "worker.replica", "m@n-1", "m@n-1-2"]


def test_an_agent_finds_the_replicas_of_an_earlier_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the command line that the agent before it has given them."""

    def process(words: list[str], redis_url: str = "redis://r") -> Any:
        return SimpleNamespace(info={"cmdline": words}, environ=lambda: {"REDIS_URL": redis_url})

    ours = process(["python", "-m", "worker.replica", "m@n-1", "m@n-1-2"])
    others = [
        process(["python", "-m", "worker.replica", "m@other-1", "m@other-1-2"]),
        process(["python", "-m", "worker.replica", "m@n-1", "m@n-1-2"], "redis://other"),
        process(["python", "-m", "worker.agent"]),
    ]
    monkeypatch.setattr(psutil, "process_iter", lambda _: [*others, ours])
    assert find_processes("n", "redis://r") == {"m@n-1": ours}


def test_the_environment_of_a_replica(server: redis.Redis, tmp_path: Path) -> None:
    settings = Settings(data_dir=str(tmp_path), node_name="n", redis_url="redis://r")
    environment = Replicas(settings, server)._environment
    found = {name: environment[name] for name in ("LLMIS_NODE_NAME", "REDIS_URL")}
    assert found == {"LLMIS_NODE_NAME": "n", "REDIS_URL": "redis://r"}
    assert int(environment["LLMIS_AGENT_PID"]) == os.getpid()


# -- ids -----------------------------------------------------------------------------------------


def test_the_ids_that_are_made(
    server: redis.Redis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(psutil, "Popen", lambda *_, **__: None)
    fleet = Replicas(Settings(data_dir=str(tmp_path), node_name="n"), server)
    spec = MESSAGES["model-minimal"]
    assert isinstance(spec, ModelSpec)
    replica = fleet.start(spec, 0)
    key, record = create_key(server, "ann", Scope.USER)
    patterns = {
        new_request_id(): r"req-[0-9a-f]{32}",
        replica.id: r"m@n-[0-9a-f]{6}",
        replica.assignment.replica_id: re.escape(replica.id) + r"-[0-9a-f]{6}",
        key: r"sk-llmis-[A-Za-z0-9_-]{43}",
        record.id: r"key-[0-9a-f]{12}",
        record.shown: re.escape(key[:13]),
    }
    assert [text for text, pattern in patterns.items() if not re.fullmatch(pattern, text)] == []


# -- settings ------------------------------------------------------------------------------------


def _defaults(shape: type[Struct]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field in fields(shape):
        value: Any = field.default
        if field.default_factory is not NODEFAULT:
            value = field.default_factory()
        found[field.name] = "required" if value is NODEFAULT else msgspec.to_builtins(value)
    return found


@pytest.mark.parametrize(
    ("name", "shape"),
    [("settings", Settings), ("model", ModelSettings), ("sampling", SamplingDefaults)],
)
def test_settings_and_their_defaults(name: str, shape: type[Struct]) -> None:
    assert_frozen(f"outliving/defaults_{name}.json", _defaults(shape))


def test_the_environment_variables_of_settings() -> None:
    found = {field.name: env_name(field.name) for field in fields(Settings)}
    assert_frozen("outliving/environment.json", found)
