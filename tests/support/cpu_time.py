"""The CPU time of calls, for bounds of how it grows.

For four times the input linear code takes four times as long, quadratic code sixteen times.
"""

import gc
import time
from collections.abc import Callable

_NUM_TRIES = 5


def is_linear(small: Callable[[], object], large: Callable[[], object]) -> bool:
    """Whether `large`, a call with four times the input of `small`, takes at most eight times as
    long: the least of several tries of each. `large` is not tried again once it was that fast."""
    bound_s = 8 * min(_cpu_s(small) for _ in range(_NUM_TRIES))
    return any(_cpu_s(large) <= bound_s for _ in range(_NUM_TRIES))


def _cpu_s(call: Callable[[], object]) -> float:
    """Without garbage collection, which grows with the heap of the test run."""
    gc.disable()
    started_s = time.thread_time()
    try:
        call()
        return time.thread_time() - started_s
    finally:
        gc.enable()
