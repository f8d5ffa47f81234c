"""Writes that a full Redis takes all the same: what lets accepted work end, and so frees memory.

At `maxmemory` Redis refuses every command that may make its data grow, except in scripts that are
flagged for it (Redis 7.0, Valkey). New requests are not written this way: they are refused.
"""

from typing import TYPE_CHECKING, Any

import redis

if TYPE_CHECKING:
    from redis.client import Pipeline

FLAGS = "#!lua flags=allow-oom\n"
"""The first line of a script that is to run on a full Redis."""
_CALL = FLAGS + "return redis.call(ARGV[1], KEYS[1], unpack(ARGV, 2))"

Argument = bytes | str | int | float


def script_call(command: str, key: str, *arguments: Argument) -> tuple[Argument, ...]:
    """The words of a command that runs another one, whose first argument is a key."""
    return ("EVAL", _CALL, 1, key, command, *arguments)


def write(client: "redis.Redis | Pipeline", command: str, key: str, *arguments: Argument) -> Any:
    """Run a command. Its reply is the server's own, not yet put into Python's terms. Raises
    redis.RedisError."""
    return client.execute_command(*script_call(command, key, *arguments))  # type: ignore[no-untyped-call]
