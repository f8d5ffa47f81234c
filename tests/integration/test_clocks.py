"""Hosts whose clocks are wrong, or are set while requests run: nothing goes by them."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from shared import names
from tests.conftest import ROOT, TEST_FILES, Service, running_service, wait_for
from tests.support.admin_client import Completion, admin, load, model
from tests.support.counter_model import expected_text
from tests.support.metrics_page import Page
from tests.support.paused_replica import paused
from tests.support.shifted_clock import ShiftedClock, can_shift

pytestmark = pytest.mark.skipif(not can_shift, reason="needs gcc")
_NUM_TOKENS = 14_000
"""Takes longer than several heartbeats."""
_SETTINGS = "max_queue_s = 150\n"


@contextmanager
def _second_agent(service: Service, folder: Path, clock: ShiftedClock) -> Iterator[None]:
    """An agent of a node of its own, on a host with that clock."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("LLMIS_")}
    environment |= clock.environment | {
        "REDIS_URL": (service.data_dir / "redis.url").read_text().strip(),
        "LLMIS_NODE_NAME": "second",
        "LLMIS_MODELS_DIR": str(TEST_FILES / "models"),
        "LLMIS_DATA_DIR": str(folder),
        "LLMIS_MAX_QUEUE_S": "150",
    }
    command = [sys.executable, "-m", "worker.agent"]
    with (folder / "agent.out").open("wb") as log:
        agent = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
    try:
        wait_for(lambda: "second" in _nodes(service), "it has joined")
        yield
    finally:
        agent.terminate()
        agent.wait(60)


def _nodes(service: Service) -> dict[str, Any]:
    return {node["id"]: node for node in admin(service, "/nodes")[1]["data"]}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running_service(tmp_path_factory.mktemp("clocks"), extra=_SETTINGS) as running:
        yield running


@pytest.mark.parametrize("shift_s", [40, 700, -700])
def test_an_agent_with_a_wrong_clock_serves_like_any_other(
    service: Service, tmp_path: Path, shift_s: int
) -> None:
    clock = ShiftedClock(tmp_path, shift_s)
    name, began_at = f"there{shift_s}", time.time()

    def is_since(at: float) -> bool:
        return began_at - 2 <= at <= time.time() + 2

    with _second_agent(service, tmp_path, clock):
        assert load(service, name, node="second", slots=2)[0] == 200
        streams = [Completion(service, name, 200, start) for start in range(4)]
        assert [s.read().text for s in streams] == [expected_text(n, 200) for n in range(4)]
        times = ("llmis_request_queue_time_seconds", "llmis_stream_lag_seconds")
        page = wait_for(lambda: _counted(service, times[0], name, 4), "they are counted")
        for metric in times:
            assert page.value(f"{metric}_count", model=name) >= 4
            assert 0 <= page.value(f"{metric}_sum", model=name) < 30
        node = _nodes(service)["second"]
        assert node["clock_ahead_s"] == pytest.approx(shift_s, abs=1)
        assert 0 < node["uptime_s"] <= time.time() - began_at + 2
        (replica,) = model(service, name)["replicas"]
        assert 0 < replica["uptime_s"] <= time.time() - began_at + 2
        assert is_since(replica["started_at"])
        log = (tmp_path / "agent.out").read_text().splitlines()
        logged = json.loads([line for line in log if line.startswith("{")][-1])["ts"]
        assert is_since(datetime.fromisoformat(logged).timestamp())
        lines = _doctor(service)
    direction = "ahead of" if shift_s > 0 else "behind"
    assert any(
        line.startswith("warning  clock of node second:") and f"s {direction} that" in line
        for line in lines
    ), lines
    assert any(line.startswith("ok       clock of this host") for line in lines)


def _counted(service: Service, metric: str, name: str, number: int) -> Page | None:
    page = Page.of(service)
    return page if page.value(f"{metric}_count", model=name) == number else None


def _doctor(service: Service) -> list[str]:
    environment = os.environ | {
        "LLMIS_CONFIG": str(service.data_dir / "llmis.toml"),
        "LLMIS_DATA_DIR": str(service.data_dir),
        "REDIS_URL": (service.data_dir / "redis.url").read_text().strip(),
    }
    command = [sys.executable, "-m", "cli", "doctor"]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    return result.stdout.splitlines()


def _check_a_step_in_mid_request(
    service: Service, name: str, clock: ShiftedClock, shift_s: int
) -> None:
    """One request runs and one waits."""
    running = Completion(service, name, _NUM_TOKENS).read(1)
    with ThreadPoolExecutor(1) as pool:
        num_jobs = _num_jobs(service)
        with paused(service, name):
            second = pool.submit(Completion, service, name, 50, 9)
            wait_for(lambda: _num_jobs(service) > num_jobs, "it waits")
            clock.step_to(shift_s)
        running.read()
        assert (running.error, running.text) == (None, expected_text(5, _NUM_TOKENS))
        waiting = second.result(60).read()
        assert (waiting.error, waiting.text) == (None, expected_text(9, 50))


def _num_jobs(service: Service) -> int:
    return len(list(service.redis.scan_iter(names.readers_key("*"))))


@pytest.mark.parametrize("shift_s", [700, -700])
def test_the_clock_of_a_replicas_host_is_set_in_mid_request(
    service: Service, tmp_path: Path, shift_s: int
) -> None:
    clock, name = ShiftedClock(tmp_path), f"set{shift_s}"
    with _second_agent(service, tmp_path, clock):
        assert load(service, name, node="second", slots=1, context_length=16384)[0] == 200
        _check_a_step_in_mid_request(service, name, clock, shift_s)


@pytest.mark.parametrize("shift_s", [500, -500])
def test_the_clock_of_the_only_host_is_set_in_mid_request(tmp_path: Path, shift_s: int) -> None:
    """Redis' own, too: beyond the deadline, but not beyond the time that Redis keeps answers."""
    clock, settings = ShiftedClock(tmp_path), _SETTINGS + "request_timeout_s = 200\n"
    with running_service(tmp_path, extra=settings, environ=clock.environment) as service:
        assert load(service, "long", slots=1, context_length=16384)[0] == 200
        _check_a_step_in_mid_request(service, "long", clock, shift_s)
        later = Completion(service, "counter", 20).read()
        assert (later.error, later.text) == (None, expected_text(5, 20))
