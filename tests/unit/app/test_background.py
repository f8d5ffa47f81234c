"""What a web process does with every beat."""

import redis

from app.factory import take_steps
from app.sight import Sight


def test_a_step_that_fails_does_not_keep_the_others_from_theirs() -> None:
    done: list[str] = []

    def fails() -> None:
        raise ValueError("an undecodable key")

    sight = Sight()
    take_steps([lambda: done.append("first"), fails, lambda: done.append("last")], sight)
    assert done == ["first", "last"]
    assert sight.is_clear


def test_the_others_do_not_ask_a_redis_that_is_away() -> None:
    done: list[str] = []

    def fails() -> None:
        raise redis.ConnectionError("away")

    sight = Sight()
    take_steps([lambda: done.append("first"), fails, lambda: done.append("last")], sight)
    assert done == ["first"]
    assert not sight.is_clear
