"""What a process's copy of the registry is worth."""

from collections.abc import Callable

import pytest
import redis

from shared.registry.directory import Directory


def _directory(client: redis.Redis) -> Directory:
    made = Directory(client)
    made.refresh()
    return made


def _fails(*_args: object) -> None:
    raise redis.ConnectionError("away")


def test_a_copy_that_was_never_read_is_not_fresh(client: redis.Redis) -> None:
    directory = Directory(client)
    assert (directory.is_fresh, directory.is_reachable) == (False, False)


def test_after_a_failed_refresh_the_copy_is_still_fresh_but_redis_not_reachable(
    client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = _directory(client)
    assert (directory.is_fresh, directory.is_reachable) == (True, True)
    with monkeypatch.context() as patched:
        patched.setattr(directory, "_read", _fails)
        with pytest.raises(redis.ConnectionError):
            directory.refresh()
    assert (directory.is_fresh, directory.is_reachable) == (True, False)
    directory.refresh()
    assert directory.is_reachable


def test_a_refresh_that_hangs_makes_the_copy_stale(
    client: redis.Redis, forward: Callable[[float], None]
) -> None:
    directory = _directory(client)
    forward(60)
    assert (directory.is_fresh, directory.is_reachable) == (False, False)
    directory.refresh()
    assert (directory.is_fresh, directory.is_reachable) == (True, True)
