"""Flower beside a service whose replicas come and go."""

import http.client
import json
import os
import re
import subprocess
from collections.abc import Iterator

import pytest

from cli.service import processes
from shared.registry import records
from shared.settings.fields import Settings
from tests.conftest import ROOT, Service, free_port, wait_for
from tests.support.admin_client import load, unload


@pytest.fixture
def flower_port(service: Service, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A Flower that forgets workers after a second."""
    monkeypatch.setattr(processes, "_PURGE_S", 1)
    port = free_port()
    config = {"LLMIS_CONFIG": str(service.data_dir / "llmis.toml")}
    url = {"REDIS_URL": (service.data_dir / "redis.url").read_text().strip()}
    process = subprocess.Popen(
        processes.flower(Settings(flower_port=port)), cwd=ROOT, env={**os.environ, **config, **url}
    )
    wait_for(lambda: _get(port, "/healthcheck"), "Flower answers", 60)
    yield port
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
