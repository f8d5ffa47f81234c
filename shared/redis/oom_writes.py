"""Writes that pass on a full Redis: those that let accepted work end, and so free memory.

At `maxmemory` Redis refuses every command that may grow its data, except in scripts that are
flagged for it (Redis 7.0, Valkey). New requests are not written this way: they are refused.
"""

from typing import Any

import redis

from shared.redis.client import Client

ALLOW_OOM = "#!lua flags=allow-oom\n"
"""The first line of a script that runs on a full Redis."""
_WRITE_AT_OOM = ALLOW_OOM + "return redis.call(ARGV[1], KEYS[1], unpack(ARGV, 2))"
_GROWING = frozenset({"HSET", "LPUSH", "RPUSH", "SADD", "SET", "ZADD"})
"""Commands that are wrapped: those in use that Redis refuses when it is full."""


def _at_oom(words: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same command, wrapped if need be. The reply is then the server's own: SET gives b"OK"."""
    if words[0] not in _GROWING:
        return words
    return ("EVAL", _WRITE_AT_OOM, 1, words[1], words[0], *words[2:])


class AtOomPipeline(redis.client.Pipeline):
    def execute_command(self, *words: Any, **options: Any) -> Any:
        return super().execute_command(*_at_oom(words), **options)  # type: ignore[no-untyped-call]


class AtOomClient(Client):
    """A client whose writes pass on a full Redis."""

    def execute_command(self, *words: Any, **options: Any) -> Any:
        return super().execute_command(*_at_oom(words), **options)

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> AtOomPipeline:
        return AtOomPipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)
