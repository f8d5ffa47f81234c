"""What a web process does with every beat."""

import pytest
import redis

from app.background import take_steps
from app.models.last_used import LastUsed
from shared.registry import records


def test_a_step_that_fails_does_not_keep_the_others_from_theirs() -> None:
    done: list[str] = []

    def fails() -> None:
        raise ValueError("an undecodable key")

    take_steps([lambda: done.append("first"), fails, lambda: done.append("last")])
    assert done == ["first", "last"]


def test_the_others_do_not_ask_a_redis_that_is_away() -> None:
    done: list[str] = []

    def fails() -> None:
        raise redis.ConnectionError("away")

    take_steps([lambda: done.append("first"), fails, lambda: done.append("last")])
    assert done == ["first"]


def test_a_full_redis_is_no_outage(server: redis.Redis, caplog: pytest.LogCaptureFixture) -> None:
    done: list[str] = []
    last_used = LastUsed(server)
    last_used.note("m")
    server.config_set("maxmemory", 1)
    take_steps([last_used.flush, lambda: done.append("last")])
    assert done == ["last"]
    assert [record.levelname for record in caplog.records if record.levelno > 10] == []
    server.config_set("maxmemory", 0)
    take_steps([last_used.flush])
    assert list(records.read_used_at(server)) == ["m"]
