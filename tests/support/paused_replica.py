"""Processes that stand still or go slowly for a while, and a model whose replica stands still: what
is sent meanwhile waits in its queue."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from shared.registry import records
from shared.wire.records import ReplicaRecord, ReplicaState
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


_RUN_S, _PERIOD_S = 0.005, 0.1


@contextmanager
def slowed(*pids: int) -> Iterator[None]:
    """The processes stand still for most of the time within, and run as ever after its end.

    A short stream takes seconds then, and little processor time: it does not end before the test
    has done what it is to do in mid-stream. Not to be used around `stopped` of the same processes.
    """
    with _slowed(lambda: pids):
        yield


@contextmanager
def slowed_model(service: Service, model: str) -> Iterator[None]:
    """Slow down all replicas of a model that are ready, those that come meanwhile, too."""
    client = service.redis
    with _slowed(lambda: [r.pid for r in records.read(client) if _is_ready(r, model)]):
        yield


def _is_ready(record: ReplicaRecord, model: str) -> bool:
    return record.model == model and record.state is ReplicaState.READY


@contextmanager
def _slowed(find: Callable[[], Iterable[int]]) -> Iterator[None]:
    is_over = threading.Event()

    def pace() -> None:
        while not is_over.is_set():
            with contextlib.suppress(ProcessLookupError), stopped(*find()):
                is_over.wait(_PERIOD_S - _RUN_S)
            is_over.wait(_RUN_S)

    thread = threading.Thread(target=pace)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


@contextmanager
def paused(service: Service, model: str) -> Iterator[None]:
    """Stop the model's replica. It may have asked for one more message before."""
    pids = [record.pid for record in records.read(service.redis) if record.model == model]
    with stopped(*pids):
        yield
