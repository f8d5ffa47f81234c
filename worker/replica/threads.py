"""Threads whose names operators see: in `ps -L`, `top -H` and `/proc/PID/task/*/comm`."""

import ctypes
import threading
from collections.abc import Callable

_PR_SET_NAME = 15
_libc = ctypes.CDLL(None)


def daemon_thread(name: str, run: Callable[[], object]) -> threading.Thread:
    """Make a daemon thread, not yet started. The system keeps 15 bytes of its name."""

    def named() -> None:
        _libc.prctl(_PR_SET_NAME, name.encode())  # Python 3.14 does this by itself
        run()

    return threading.Thread(target=named, name=name, daemon=True)
