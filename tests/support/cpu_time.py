"""The CPU time of a call, for bounds of how it grows.

For four times the input linear code takes four times as long, quadratic code sixteen times.
"""

import gc
import time
from collections.abc import Callable


def cpu_s(call: Callable[[], object]) -> float:
    """The least of several calls, without garbage collection, which grows with the heap of the
    test run."""

    def once() -> float:
        gc.disable()
        started_s = time.thread_time()
        try:
            call()
            return time.thread_time() - started_s
        finally:
            gc.enable()

    return min(once() for _ in range(5))
