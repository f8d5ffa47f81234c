"""Runs a call on a thread with a large stack, for native code that recurses."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from shared.errors import EngineError

_T = TypeVar("_T")
_lock = threading.Lock()


def on_large_stack(stack_bytes: int, call: Callable[[], _T]) -> _T:
    """Return the result of the call. One call at a time; its stack is freed at the end. Raises
    EngineError for any exception of the call, and for a Rust panic of llguidance, which is no
    Exception."""
    # stack_size is global: the lock keeps two calls from restoring each other's value.
    with _lock, ThreadPoolExecutor(1, "large-stack") as pool:
        before = threading.stack_size(stack_bytes)
        try:
            future = pool.submit(call)  # starts the thread
        finally:
            threading.stack_size(before)
        failure = future.exception()  # waits
    if failure is not None:
        raise EngineError(f"The grammar could not be compiled: {failure!r}") from failure
    return future.result()
