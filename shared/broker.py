"""Kombu's Redis transport, with writes that a full Redis takes.

A worker that pops a message must note it down, or the message is lost, and one that connects again
must bind its queues. What is new is refused before, when the web tier writes the job.
"""

from typing import Any

import redis
from kombu.transport import TRANSPORT_ALIASES
from kombu.transport import redis as kombu_redis

from shared import essential

_WRITES = {"HSET", "LPUSH", "RPUSH", "SADD", "SET", "ZADD"}


def _as_essential(words: tuple[Any, ...]) -> tuple[Any, ...]:
    return essential.script_call(*words) if words[0] in _WRITES else words


class _Pipeline(redis.client.Pipeline):
    def execute_command(self, *words: Any, **options: Any) -> Any:
        return super().execute_command(*_as_essential(words), **options)  # type: ignore[no-untyped-call]


class _Client(redis.Redis):
    def execute_command(self, *words: Any, **options: Any) -> Any:
        return super().execute_command(*_as_essential(words), **options)  # type: ignore[no-untyped-call]

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> _Pipeline:
        return _Pipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)

    def register_script(self, script: Any) -> Any:
        return super().register_script(essential.FLAGS + script)


class Channel(kombu_redis.Channel):
    def _get_client(self) -> type[_Client]:
        return _Client


class Transport(kombu_redis.Transport):
    Channel = Channel


def register() -> None:
    """Let the URLs of Redis mean this transport."""
    for scheme in ("redis", "rediss"):
        TRANSPORT_ALIASES[scheme] = f"{__name__}:Transport"
