"""Kombu's Redis transport, for workers that outlive their Redis."""

from typing import Any

import redis
from kombu.transport import TRANSPORT_ALIASES
from kombu.transport import redis as kombu_redis


class Channel(kombu_redis.Channel):
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
