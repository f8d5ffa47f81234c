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
from shared.registry import records
from tests.conftest import ROOT, TEST_FILES, Service, running_service, wait_for
from tests.support.admin_client import Completion, admin, load, model
from tests.support.counter_model import expected_text
from tests.support.jobs import is_finished
from tests.support.metrics_page import Page
from tests.support.paused_replica import paused, slowed
from tests.support.shifted_clock import ShiftedClock, can_shift

pytestmark = pytest.mark.skipif(not can_shift, reason="needs gcc")
_NUM_TOKENS = 4000
"""Takes a slowed replica longer than several heartbeats."""
_NUM_HEARTBEATS = 3
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
    folder = tmp_path_factory.mktemp("clocks")
    with running_service(folder, small=False, extra=_SETTINGS) as running:
        yield running


@pytest.mark.parametrize("shift_s", [700, -700])
def test_a_host_with_a_wrong_clock_serves_like_any_other_and_when_it_is_set(
    service: Service, tmp_path: Path, shift_s: int
) -> None:
    clock, name = ShiftedClock(tmp_path, shift_s), f"there{shift_s}"
    with _second_agent(service, tmp_path, clock):
        _check_an_agent_with_a_wrong_clock(service, tmp_path / "agent.out", name, shift_s)
        _check_a_step_in_mid_request(service, name, clock, 0)


def _check_an_agent_with_a_wrong_clock(
    service: Service, agent_log: Path, name: str, shift_s: int
) -> None:
    began_at = time.time()

    def is_since(at: float) -> bool:
        return began_at - 2 <= at <= time.time() + 2

    assert load(service, name, node="second", slots=1, context_length=4096)[0] == 200
    streams = [Completion(service, name, 200, start) for start in range(4)]
    assert [s.read().text for s in streams] == [expected_text(n, 200) for n in range(4)]
    times = ("llmis_request_queue_time_seconds", "llmis_stream_lag_seconds")
    page = wait_for(lambda: _counted(service, times[0], name, 4), "they are counted")
    for metric in times:
        assert page.value(f"{metric}_count", model=name) >= 4
        assert 0 <= page.value(f"{metric}_sum", model=name) < 30
    node = _nodes(service)["second"]
    assert node["clock_ahead_s"] == pytest.approx(shift_s, abs=1)
    assert 0 < node["uptime_s"] <= 60
    (replica,) = model(service, name)["replicas"]
    assert 0 < replica["uptime_s"] <= time.time() - began_at + 2
    assert is_since(replica["started_at"])
    log = agent_log.read_text().splitlines()
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
    (pid,) = [record.pid for record in records.read(service.redis) if record.model == name]
    with ThreadPoolExecutor(1) as pool:
        with slowed(pid):
            running = Completion(service, name, _NUM_TOKENS).read(1)
        num_jobs = _num_jobs(service)
        with paused(service, name):
            second = pool.submit(Completion, service, name, 50, 9)
            wait_for(lambda: _num_jobs(service) > num_jobs, "it waits")
            clock.step_to(shift_s)
        with slowed(pid):
            _wait_for_heartbeats(service, name)
            assert not is_finished(service.redis, running.request_id), "it runs after the step"
        running.read()
        assert (running.error, running.text) == (None, expected_text(5, _NUM_TOKENS))
        waiting = second.result(60).read()
        assert (waiting.error, waiting.text) == (None, expected_text(9, 50))


def _num_jobs(service: Service) -> int:
    return len(list(service.redis.scan_iter(names.readers_key("*"))))


def _wait_for_heartbeats(service: Service, name: str) -> None:
    """Wait until a busy replica has written its record several times."""
    seen = set()

    def has_written() -> bool:
        seen.update(r.steps for r in records.read(service.redis) if r.model == name)
        return len(seen) > _NUM_HEARTBEATS

    wait_for(has_written, "several heartbeats")


def test_the_clock_of_the_only_host_is_set_in_mid_request(tmp_path: Path) -> None:
    """Redis' own, too: beyond the deadline, but not beyond the time that Redis keeps answers. And
    back again."""
    clock, settings = ShiftedClock(tmp_path), _SETTINGS + "request_timeout_s = 200\n"
    environ = clock.environment
    with running_service(tmp_path, small=False, extra=settings, environ=environ) as service:
        assert load(service, "long", slots=1, context_length=4096)[0] == 200
        for shift_s in (500, 0):
            _check_a_step_in_mid_request(service, "long", clock, shift_s)
            later = Completion(service, "counter", 20).read()
            assert (later.error, later.text) == (None, expected_text(5, 20))
