"""Processes that stand still for a while, and a model whose replica does: what is sent meanwhile
waits in its queue."""

import contextlib
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from shared.registry import records
from tests.conftest import Service


@contextmanager
def stopped(*pids: int) -> Iterator[None]:
    """The processes stand still within. Those that have not died by its end go on then.

    A replica's record expires after two seconds, and its agent kills it after fifteen.
    """
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


@contextmanager
def paused(service: Service, model: str) -> Iterator[None]:
    """Stop the model's replica. It may have asked for one more message before."""
    pids = [record.pid for record in records.read(service.redis) if record.model == model]
    with stopped(*pids):
        yield
