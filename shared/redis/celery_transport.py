"""Kombu's Redis transport, for workers that outlive a full Redis, and one that is killed.

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

    def _connparams(self, *arguments: Any, **options: Any) -> Any:
        """Raise redis.ConnectionError when the channel has been closed.

        When Redis dies under running jobs, kombu closes the channel and then acknowledges or puts
        back their messages on it. Its own AttributeError would end the worker with all that it
        runs; this one it logs. The jobs go on, and a second delivery of them finds their claim.
        """
        if self.connection is None or self.connection.client is None:
            raise redis.ConnectionError("The connection to the broker is closed.")
        return super()._connparams(*arguments, **options)  # type: ignore[no-untyped-call]


class Transport(kombu_redis.Transport):
    Channel = Channel


def register() -> None:
    """Let the URLs of Redis mean this transport."""
    for scheme in ("redis", "rediss"):
        TRANSPORT_ALIASES[scheme] = f"{__name__}:Transport"
