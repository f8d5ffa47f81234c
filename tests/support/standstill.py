"""Stops one thread of another process, while its other threads run on: as a hung driver does."""

import contextlib
import ctypes
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

_PTRACE_CONT = 7
_PTRACE_SEIZE = 0x4206
_PTRACE_INTERRUPT = 0x4207
_WALL = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


def thread_id(pid: int, name: str) -> int:
    """The thread of a process that the system knows by `name`."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        if (task / "comm").read_text().strip() == name:
            return int(task.name)
    raise LookupError(f"process {pid} has no thread {name!r}")


@contextlib.contextmanager
def standing_still(
    pid: int, name: str, do_others_run: Callable[[], bool] = lambda: True
) -> Iterator[None]:
    """Hold a thread. It does not go on: its process is to be killed within.

    A thread that is caught with Python's global lock in its hand stops all others; then it is let
    go and caught again. Raises OSError where tracing is not permitted.
    """
    tid = thread_id(pid, name)
    _trace(_PTRACE_SEIZE, tid)
    while True:
        _trace(_PTRACE_INTERRUPT, tid)
        os.waitpid(tid, _WALL)
        if do_others_run():
            break
        _trace(_PTRACE_CONT, tid)
        time.sleep(random.uniform(0.001, 0.005))
    # Somebody has to take note of the thread's end, or the process stays a zombie.
    reaper = threading.Thread(target=_reap, args=(tid,))
    reaper.start()
    yield
    reaper.join()


def _trace(request: int, tid: int) -> None:
    if _libc.ptrace(request, tid, None, None) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"ptrace: {os.strerror(number)}")


def _reap(tid: int) -> None:
    while True:
        _, status = os.waitpid(tid, _WALL)
        if os.WIFSIGNALED(status) or os.WIFEXITED(status):
            return
