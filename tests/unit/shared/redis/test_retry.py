"""What is called again while Redis is away, and when that ends."""

import time
from collections.abc import Callable

import pytest
import redis
from kombu.exceptions import OperationalError

from shared.redis.retry import TRANSIENT_ERRORS, retry_forever, retry_until


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The only element is the time; sleeping moves it."""
    now = [1000.0]

    def sleep(duration_s: float) -> None:
        now[0] += duration_s

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "sleep", sleep)
    return now


def _failing(*errors: Exception) -> Callable[[], str]:
    """Raises one error a call, then returns."""
    left = list(errors)

    def call() -> str:
        if left:
            raise left.pop(0)
        return "done"

    return call


def test_a_call_is_repeated_until_redis_answers_and_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    errors = [error("away") for error in TRANSIENT_ERRORS]
    assert retry_forever(_failing(*errors), "a claim") == "done"
    assert [record.message for record in caplog.records] == ["a claim waits for Redis: away"]


def test_a_full_disk_is_waited_for_by_what_must_not_end() -> None:
    full = redis.ResponseError("MISCONF Errors writing to the AOF file: No space left on device")
    assert retry_forever(_failing(full, full), "a claim") == "done"
    with pytest.raises(redis.ResponseError):
        retry_until(_failing(full), 2000.0, lambda _: None)


def test_what_redis_refuses_is_not_repeated() -> None:
    for retry in (
        lambda call: retry_forever(call, "a claim"),
        lambda call: retry_until(call, 2000.0, lambda _: None),
    ):
        with pytest.raises(redis.ResponseError):
            retry(_failing(redis.ResponseError("wrong type")))


def test_each_failure_waits_for_redis_for_what_is_left(clock: list[float]) -> None:
    waited: list[float] = []
    errors = redis.ConnectionError("cut"), redis.TimeoutError("slow"), OperationalError("cut")

    def wait(limit_s: float) -> None:
        waited.append(limit_s)
        clock[0] += 1

    assert retry_until(_failing(*errors), 1060.0, wait) == "done"
    assert waited[0] == 60.0
    assert len(waited) == 3
    assert waited == sorted(waited, reverse=True)


def test_after_the_deadline_there_is_one_more_attempt(clock: list[float]) -> None:
    attempts: list[float] = []

    def call() -> None:
        attempts.append(clock[0])
        raise redis.ConnectionError(f"attempt {len(attempts)}")

    def wait(limit_s: float) -> None:
        clock[0] += limit_s

    with pytest.raises(redis.ConnectionError, match="attempt 2"):
        retry_until(call, 1005.0, wait)
    assert attempts[0] == 1000.0
    assert attempts[1] >= 1005.0


def test_a_full_redis_is_an_answer_to_a_request() -> None:
    with pytest.raises(redis.OutOfMemoryError):
        retry_until(_failing(redis.OutOfMemoryError("full")), 2000.0, lambda _: None)
