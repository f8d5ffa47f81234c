"""Kombu's Redis transport, for workers that survive a full Redis and the death of Redis.

A worker that pops a message must note it down, or the message is lost, and one that reconnects
must bind its queues: both are writes that pass on a full Redis. New requests are refused earlier,
when the web tier writes the job.
"""

from typing import Any

import redis
from kombu.transport import TRANSPORT_ALIASES
from kombu.transport import redis as kombu_redis

from shared.clock import clock
from shared.redis.oom_writes import ALLOW_OOM, AtOomClient


class _Client(AtOomClient):
    def register_script(self, script: Any) -> Any:
        return super().register_script(ALLOW_OOM + script)


class Channel(kombu_redis.Channel):
    def _get_client(self) -> type[_Client]:
        return _Client

    def _connparams(self, *arguments: Any, **options: Any) -> Any:
        """Raise redis.ConnectionError when the channel has been closed.

        When Redis dies under running jobs, kombu closes the channel and then acknowledges or puts
        back their messages on it. Its own AttributeError would end the worker with all its jobs;
        this error it logs. The jobs go on, and a second delivery of them finds their lease.
        """
        if self.connection is None or self.connection.client is None:
            raise redis.ConnectionError("The connection to the broker is closed.")
        return super()._connparams(*arguments, **options)  # type: ignore[no-untyped-call]


class Transport(kombu_redis.Transport):
    Channel = Channel


def register() -> None:
    """Make this the transport of Redis URLs. When a message was delivered goes by Redis' clock: all
    workers compare that with their own."""
    kombu_redis.time = clock.now  # type: ignore[attr-defined]
    for scheme in ("redis", "rediss"):
        TRANSPORT_ALIASES[scheme] = f"{__name__}:Transport"
