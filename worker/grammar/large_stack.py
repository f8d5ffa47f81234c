"""A call on a thread whose stack is large: for native code that recurses."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from shared.errors import EngineError

_T = TypeVar("_T")
_lock = threading.Lock()


def on_large_stack(stack_bytes: int, call: Callable[[], _T]) -> _T:
    """Return what the call returns. One at a time; the stack is given back at the end.

    Raises EngineError for whatever the call raises."""
    future: Future[_T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as exc:  # a panic in Rust is no Exception
            future.set_exception(exc)

    with _lock:
        before = threading.stack_size(stack_bytes)
        try:
            thread = threading.Thread(target=run, name="large-stack")
            thread.start()
        finally:
            threading.stack_size(before)
        thread.join()
    failure = future.exception()
    if failure is not None:
        raise EngineError(f"The grammar could not be compiled: {failure!r}") from failure
    return future.result()
