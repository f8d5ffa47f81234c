"""A call on a large stack: its result, its failures, and the stack size of later threads."""

import threading

import pytest

from shared.errors import EngineError
from worker.grammar.large_stack import on_large_stack

_STACK_BYTES = 64 << 20


class _RustPanic(BaseException):
    """pyo3's PanicException is no Exception either."""


def test_the_result_is_that_of_the_call_on_another_thread() -> None:
    assert on_large_stack(_STACK_BYTES, threading.get_ident) != threading.get_ident()


@pytest.mark.parametrize("error", [ValueError("deep"), _RustPanic("deep")])
def test_a_failure_of_the_call_is_an_engine_error(error: BaseException) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(EngineError, match="deep") as caught:
        on_large_stack(_STACK_BYTES, fail)
    assert caught.value.__cause__ is error


def test_other_threads_keep_their_stack_size_and_none_is_left_behind() -> None:
    before = threading.stack_size()
    on_large_stack(_STACK_BYTES, int)
    assert threading.stack_size() == before
    assert not [thread for thread in threading.enumerate() if "large-stack" in thread.name]
