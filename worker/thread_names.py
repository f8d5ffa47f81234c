"""Names that operators see: `ps -L`, `top -H` and `/proc/PID/task/*/comm` know what runs."""

import ctypes
import threading

_PR_SET_NAME = 15
_libc = ctypes.CDLL(None)


def name_this_thread() -> None:
    """Give the system the name that Python has for the calling thread; it keeps 15 bytes."""
    _libc.prctl(_PR_SET_NAME, threading.current_thread().name.encode())
