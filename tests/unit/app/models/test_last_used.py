"""When each model was asked for last."""

import time
from collections.abc import Callable
from typing import Any

import pytest
import redis

from app.models.last_used import LastUsed
from shared import names
from shared.registry import records


def test_what_was_noted_is_written_at_once_for_all_models(server: redis.Redis) -> None:
    usage = LastUsed(server)
    before = time.time()
    for model in ("a", "b"):
        usage.note(model)
    assert records.read_used_at(server) == {}, "a request pays for no round trip"
    usage.flush()
    used_at = records.read_used_at(server)
    assert sorted(used_at) == ["a", "b"]
    assert all(before <= at <= time.time() for at in used_at.values())


def test_what_was_written_is_not_written_again(server: redis.Redis) -> None:
    usage = LastUsed(server)
    usage.note("m")
    usage.flush()
    server.delete(names.LAST_USED)
    usage.flush()
    assert records.read_used_at(server) == {}


def test_a_later_request_to_another_web_process_is_not_put_back(server: redis.Redis) -> None:
    later = time.time() + 1000
    server.zadd(names.LAST_USED, {"m": later})
    usage = LastUsed(server)
    usage.note("m")
    usage.flush()
    assert records.read_used_at(server) == {"m": later}


def test_redis_is_not_asked_when_nothing_was_noted(absent: redis.Redis) -> None:
    LastUsed(absent).flush()


class _Interrupted(redis.Redis):
    """Goes away in the middle of a command, once; requests come meanwhile."""

    def interrupt(self, meanwhile: Callable[[], None]) -> None:
        self._meanwhile: Callable[[], None] | None = meanwhile

    def execute_command(self, *args: Any, **options: Any) -> Any:
        if self._meanwhile is not None:
            self._meanwhile()
            self._meanwhile = None
            raise redis.ConnectionError("away")
        return super().execute_command(*args, **options)  # type: ignore[no-untyped-call]


def test_what_could_not_be_written_is_written_later(
    server: redis.Redis, redis_socket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([1.0, 2.0, 3.0])
    monkeypatch.setattr(time, "time", lambda: next(times))
    client = _Interrupted(unix_socket_path=redis_socket)
    client.interrupt(lambda: usage.note("a"))
    usage = LastUsed(client)
    usage.note("a")
    usage.note("b")
    with pytest.raises(redis.ConnectionError):
        usage.flush()
    usage.flush()
    assert records.read_used_at(server) == {"a": 3.0, "b": 2.0}
