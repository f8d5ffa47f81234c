"""When a child that has ended is started again."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cli.service.supervisor import Child, stop

_HEALTHY_S, _QUICK_S = 6.0, 1.0


@pytest.fixture
def child(tmp_path: Path, forward: Callable[[float], None]) -> Iterator[Child]:
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    child = Child("child", command, tmp_path / "child.log", os.environ)
    child.start()
    yield child
    stop([child], 10)


def _end(child: Child) -> float:
    """Kill the child; the seconds after which it is to be started again."""
    assert child.process is not None
    os.kill(child.process.pid, signal.SIGKILL)
    child.process.wait(60)
    report = child.watch()
    assert report is not None and "SIGKILL" in report
    return float(report.rpartition(" in ")[2].removesuffix(" s"))


def _back_off_s(child: Child, forward: Callable[[float], None], ran_s: float) -> float:
    forward(ran_s)
    wait_s = _end(child)
    forward(wait_s - 0.01)
    assert child.watch() is None and not child.is_running
    forward(0.02)
    assert child.watch() is None and child.is_running
    return wait_s


def test_a_healthy_child_is_back_at_once_however_often_it_is_killed(
    child: Child, forward: Callable[[float], None]
) -> None:
    waits = [_back_off_s(child, forward, _HEALTHY_S) for _ in range(8)]
    assert waits == [waits[0]] * 8
    assert waits[0] < 0.5


def test_a_child_that_cannot_start_is_started_ever_less_often(
    child: Child, forward: Callable[[float], None]
) -> None:
    waits = [_back_off_s(child, forward, _QUICK_S) for _ in range(10)]
    assert waits[:5] == [waits[0] * 2**n for n in range(5)]
    assert waits[-1] == 30.0


def test_a_healthy_run_ends_the_back_off(child: Child, forward: Callable[[float], None]) -> None:
    first = _back_off_s(child, forward, _QUICK_S)
    assert _back_off_s(child, forward, _QUICK_S) > first
    assert _back_off_s(child, forward, _HEALTHY_S) == first


def test_a_running_child_is_left_alone(child: Child) -> None:
    assert child.is_running
    assert child.watch() is None
