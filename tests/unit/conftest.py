"""Fixtures of the unit tests."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from shared.clock import clock
from shared.version import VERSION
from tests.support import fake_service
from tests.support.cli_answers import FAILED, MODEL, NODE
from tests.support.fake_service import FakeService, Reply

if TYPE_CHECKING:
    from tests.support.fake_exllamav2 import World


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
    from tests.support import fake_exllamav2  # torch: other tests do without

    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
        monkeypatch.setenv(name, "")  # so that what a load sets is undone
        monkeypatch.delenv(name)
    with fake_exllamav2.installed() as world:
        yield world


@pytest.fixture
def client(redis_socket: str) -> Iterator[redis.Redis]:
    """A client of an empty Redis as the processes make one: RESP2."""
    with redis.Redis(unix_socket_path=redis_socket, protocol=2) as client:
        yield client


@pytest.fixture
def absent(tmp_path: Path) -> redis.Redis:
    """A client of a Redis that does not run."""
    return redis.Redis(
        unix_socket_path=str(tmp_path / "absent.sock"), retry=Retry(NoBackoff(), retries=0)
    )


@pytest.fixture(autouse=True)
def _clock_of_the_host() -> None:
    """What the test before measured of its Redis' clock is gone."""
    clock.__init__()  # type: ignore[misc]


@pytest.fixture
def forward(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Stops the monotonic clock, but for the seconds by which it is put forward."""
    now = [time.monotonic()]

    def put_forward(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return put_forward
