"""A model whose replica stands still for a while: what is sent meanwhile waits in its queue."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from shared import registry
from tests.conftest import Service


@contextmanager
def paused(service: Service, model: str) -> Iterator[None]:
    """Stop the model's replica. It may have asked for one more message before."""
    pids = [record.pid for record in registry.read(service.redis) if record.model == model]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
