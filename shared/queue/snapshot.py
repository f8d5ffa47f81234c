"""A model's queue at one moment: lengths, the positions of waiting messages, and their jobs."""

import re
from bisect import bisect_right
from typing import NamedTuple

import redis

from shared import names
from shared.redis.connection import payload_bytes

_TASK_ID = re.compile(rb'"id": ?"([^"]+)"')


def queued_jobs(client: "redis.Redis", model: str) -> frozenset[str]:
    """Read the ids of the jobs whose messages are in a model's queue. Transfers about 1 KB for
    each message. Raises redis.RedisError."""
    pipe = client.pipeline(transaction=False)
    for key in names.priority_lists(model):
        pipe.lrange(key, 0, -1)
    queued = [payload_bytes(message) for part in pipe.execute() for message in part]
    matches = (_TASK_ID.search(message) for message in queued)
    return frozenset(match[1].decode() for match in matches if match)


class QueuePosition(NamedTuple):
    """The place of a waiting message: what `QueueSnapshot.position` and `leave` find it by."""

    place: int
    tag: int
    number: int


class QueueSnapshot(NamedTuple):
    """A queue at one moment."""

    lengths: list[int]
    """Of each list."""
    orders: list[list[QueuePosition]]
    """Of each list: some messages, the next one first, among them the next 64."""
    indexes: list[list[int]]
    """How many messages of its list are before each of them."""
    oldest_at: float | None = None
    """Unix time at which the oldest request among these messages was made. It is the oldest of
    all, unless the next 64 of its list belong to as many other keys."""

    @classmethod
    def of(cls, reply: list[list[int]]) -> "QueueSnapshot":
        """Decode the reply of snapshot.lua."""
        orders = [
            [QueuePosition(place, *pair) for pair in zip(found[3::3], found[4::3], strict=True)]
            for place, found in enumerate(reply, 1)
        ]
        made_ms = [found[1] for found in reply if found[1]]
        return cls(
            [found[0] for found in reply],
            orders,
            [found[2::3] for found in reply],
            min(made_ms) / 1000 if made_ms else None,
        )

    def position(self, order: QueuePosition) -> int | None:
        """How many messages are before this one; None = it does not wait any more. Exact among the
        next 64 of its list, and within a hundredth of the list's length behind them."""
        orders, indexes = self.orders[order.place - 1], self.indexes[order.place - 1]
        after = bisect_right(orders, order)
        if after == 0:
            return None
        exact = orders[after - 1] == order
        ahead = sum(self.lengths[: order.place - 1])
        return ahead + indexes[after - 1] + (0 if exact else 1)
