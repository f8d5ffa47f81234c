"""Which error a client sees for an exception."""

import logging

import pytest
import redis
from kombu.exceptions import OperationalError

from app.errors import from_exception
from shared.errors import InternalError, InvalidRequest, QueueUnavailable, StorageFull


def _from_kombu(cause: Exception) -> OperationalError:
    wrapped = OperationalError(str(cause))
    wrapped.__cause__ = cause
    return wrapped


@pytest.mark.parametrize(
    ("exc", "kind"),
    [
        (redis.ConnectionError("away"), QueueUnavailable),
        (_from_kombu(redis.ConnectionError("away")), QueueUnavailable),
        (redis.OutOfMemoryError("full"), StorageFull),
        (_from_kombu(redis.OutOfMemoryError("full")), StorageFull),
        (redis.ResponseError("MISCONF Errors writing to the AOF file: x"), StorageFull),
        (redis.ResponseError("Command # 1 (PING) caused error: MISCONF Errors"), StorageFull),
        (_from_kombu(redis.ResponseError("MISCONF Errors")), StorageFull),
        (redis.ResponseError("wrong type"), QueueUnavailable),
    ],
    ids=["redis", "kombu", "redis-full", "kombu-full", "disk", "pipe-disk", "kombu-disk", "other"],
)
def test_what_redis_and_kombu_raise_is_worth_another_try(
    exc: Exception, kind: type[Exception]
) -> None:
    assert type(from_exception(exc)) is kind


def test_an_error_of_our_own_stays() -> None:
    error = InvalidRequest("no")
    assert from_exception(error) is error


def test_anything_else_is_logged_with_its_traceback_and_not_shown(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.ERROR, "app.errors"):
        error = from_exception(ValueError("a secret detail"))
    assert type(error) is InternalError
    assert "secret" not in str(error)
    (record,) = caplog.records
    assert record.exc_info is not None
