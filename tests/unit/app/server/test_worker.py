"""When a web process begins to stop by itself."""

import os
from types import SimpleNamespace
from typing import Any

import pytest

from app.server.worker import WebWorker


@pytest.mark.parametrize(("ppid", "is_alive"), [(os.getppid(), True), (-1, False)])
def test_a_process_whose_master_is_gone_drains_and_does_not_exit_at_once(
    ppid: int, is_alive: bool
) -> None:
    beats: list[None] = []
    worker: Any = WebWorker.__new__(WebWorker)
    worker.tmp = SimpleNamespace(notify=lambda: beats.append(None))
    worker.ppid, worker.alive = ppid, True
    worker.notify()
    worker.notify()
    assert worker.alive is is_alive
    assert len(beats) == 2
