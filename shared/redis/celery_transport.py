"""Kombu's Redis transport, for workers that survive a full Redis and the death of Redis.

A worker that puts messages back, and one that reconnects and binds its queues, writes: these
writes pass on a full Redis. New requests are refused earlier, when the web tier writes the job.

The messages that a worker has are known to its process alone (`ack_emulation` is off): one that is
killed loses them. Who sends them again: docs/decisions/0004-lost-messages.md.
"""

import logging
from typing import Any

import redis
from kombu.transport import TRANSPORT_ALIASES
from kombu.transport import redis as kombu_redis
from kombu.utils.json import dumps

from shared.redis.oom_writes import ALLOW_OOM, AtOomClient

_log = logging.getLogger(__name__)


class _Client(AtOomClient):
    def register_script(self, script: Any) -> Any:
        return super().register_script(ALLOW_OOM + script)


class Channel(kombu_redis.Channel):
    def _get_client(self) -> type[_Client]:
        return _Client

    def _restore(self, message: Any, leftmost: bool = False) -> None:
        """Put a message back: as the next one of its list, or with `leftmost` as the last one.

        Called for what a worker has not begun when it stops, and for all that it has when its
        connection breaks: its tasks go on, and the second delivery of a job finds its lease. When
        Redis is away, nothing is put back.
        """
        payload, delivery = message.serializable(), message.delivery_info
        priority = self._get_message_priority(payload)
        try:
            with self.conn_or_acquire() as client:
                push = client.lpush if leftmost else client.rpush
                for queue in self._lookup(delivery["exchange"], delivery["routing_key"]):
                    push(self._q_for_pri(queue, priority), dumps(payload))
        except redis.RedisError as exc:
            _log.warning("a message cannot be put back: %s", exc)

    def _connparams(self, *arguments: Any, **options: Any) -> Any:
        """Raise redis.ConnectionError when the channel has been closed.

        Tasks outlive the connection that their messages came by: one that puts its message back
        later finds it closed, and kombu's own AttributeError would end the worker.
        """
        if self.connection is None or self.connection.client is None:
            raise redis.ConnectionError("The connection to the broker is closed.")
        return super()._connparams(*arguments, **options)  # type: ignore[no-untyped-call]


class Transport(kombu_redis.Transport):
    Channel = Channel


def register() -> None:
    """Make this the transport of Redis URLs."""
    for scheme in ("redis", "rediss"):
        TRANSPORT_ALIASES[scheme] = f"{__name__}:Transport"
