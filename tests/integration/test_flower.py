"""Flower beside a service whose replicas come and go."""

import base64
import http.client
import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from cli.service import processes
from shared.registry import records
from shared.settings.fields import Settings
from tests.conftest import ROOT, Service, free_port, wait_for
from tests.support.admin_client import load, unload
from tests.support.sse_reader import Answer


@pytest.fixture
def flower_port(service: Service, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A Flower that forgets workers after a second."""
    monkeypatch.setattr(processes, "_PURGE_S", 1)
    with _running_flower(service) as port:
        yield port


@contextmanager
def _running_flower(service: Service) -> Iterator[int]:
    port = free_port()
    config = {"LLMIS_CONFIG": str(service.data_dir / "llmis.toml")}
    url = {"REDIS_URL": (service.data_dir / "redis.url").read_text().strip()}
    process = subprocess.Popen(
        processes.flower(Settings(flower_port=port)), cwd=ROOT, env={**os.environ, **config, **url}
    )
    try:
        wait_for(lambda: _get(port, "/healthcheck"), "Flower answers", 60)
        yield port
    finally:
        process.terminate()
        process.wait(30)


def _get(port: int, path: str) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", path)
        return connection.getresponse().read().decode()
    except OSError:
        return ""
    finally:
        connection.close()


def _listed(port: int) -> set[str]:
    return {worker["hostname"] for worker in json.loads(_get(port, "/workers?json=1"))["data"]}


def _measured(port: int) -> set[str]:
    return set(re.findall(r'worker="([^"]+)"', _get(port, "/metrics")))


def test_flower_forgets_replicas_that_are_gone(service: Service, flower_port: int) -> None:
    def replica() -> str | None:
        found = [r.id for r in records.read(service.redis) if r.model == "gone"]
        return found[0] if len(found) == 1 else None

    assert load(service, "gone")[0] == 200
    first = replica()
    assert first is not None
    wait_for(lambda: first in _listed(flower_port), "Flower lists the replica", 60)
    wait_for(lambda: first in _measured(flower_port), "Flower measures the replica", 60)
    service.kill("worker.replica", first)
    wait_for(lambda: replica() not in (None, first), "the next replica runs", 60)
    wait_for(lambda: first not in _listed(flower_port), "the dead one is not listed", 60)
    wait_for(lambda: first not in _measured(flower_port), "the dead one has no metrics", 60)
    wait_for(
        lambda: replica() in _listed(flower_port) & _measured(flower_port),
        "the next one is listed and measured",
    )
    unload(service, "gone", mode="now")


def _events_of_a_request(service: Service) -> tuple[str, set[str]]:
    """Ask for an answer. Returns its id, and the types of the events that the replica sends, up to
    its second heartbeat after the answer: by then all events of the task are there."""
    with service.redis.pubsub() as listener:
        listener.psubscribe("*celeryev*")
        body = {"model": "counter", "prompt": "5", "max_tokens": 5, "stream": True}
        answer = Answer(service, "completions", body).read()
        answered_at, num_beats = time.time(), 0
        types: set[str] = set()
        while num_beats < 2:
            message = listener.get_message(timeout=60)
            assert message is not None, "replicas send heartbeats"
            if message["type"] != "pmessage":
                continue
            sent = json.loads(base64.b64decode(json.loads(message["data"])["body"]))
            for event in sent if isinstance(sent, list) else [sent]:
                if event["hostname"].startswith("counter@"):
                    types.add(event["type"])
                    is_beat = event["type"] == "worker-heartbeat"
                    num_beats += is_beat and event["timestamp"] > answered_at
    return answer.request_id, types


def test_task_events_begin_and_end_with_flower(own_service: Service) -> None:
    def are_off() -> bool:
        return _events_of_a_request(own_service)[1] == {"worker-heartbeat"}

    wait_for(are_off, "without Flower there are no task events")
    with _running_flower(own_service) as port:
        wait_for(lambda: not are_off(), "Flower has asked for them")
        task_id, types = _events_of_a_request(own_service)
        assert types >= {"task-received", "task-started", "task-succeeded"}
        wait_for(lambda: "SUCCESS" in _get(port, f"/task/{task_id}"), "Flower shows the task")
    wait_for(are_off, "they end after Flower")
