"""The loop that repeats a step."""

import logging
from collections.abc import Callable

import pytest

from shared.periodic import run_periodically


class _Stopped(BaseException):
    """Ends the loop, as no Exception does."""


def _pauses_until_stop(num_pauses: int) -> tuple[list[float], Callable[[float], None]]:
    """A sleep that records its arguments and ends the loop with its last one."""
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == num_pauses:
            raise _Stopped

    return pauses, sleep


def test_the_step_runs_before_each_pause() -> None:
    ran: list[int] = []
    pauses, sleep = _pauses_until_stop(3)
    with pytest.raises(_Stopped):
        run_periodically(lambda: ran.append(len(pauses)), 0.5, "the beat", sleep=sleep)
    assert ran == [0, 1, 2]
    assert pauses == [0.5, 0.5, 0.5]


def test_a_failed_step_is_logged_with_its_traceback_and_repeated(
    caplog: pytest.LogCaptureFixture,
) -> None:
    outcomes = iter([ValueError("odd record"), None])
    ran: list[str] = []

    def step() -> None:
        outcome = next(outcomes)
        if outcome is not None:
            raise outcome
        ran.append("again")

    _, sleep = _pauses_until_stop(2)
    with caplog.at_level(logging.ERROR, "shared.periodic"), pytest.raises(_Stopped):
        run_periodically(step, 0.5, "the beat", sleep=sleep)
    assert ran == ["again"]
    (record,) = caplog.records
    assert "the beat" in record.getMessage()
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], ValueError)
