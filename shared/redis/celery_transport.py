"""Kombu's Redis transport, for workers that survive a full Redis and the death of Redis.

A worker that puts messages back, and one that reconnects and binds its queues, writes: these
writes pass on a full Redis. New requests are refused earlier, when the web tier writes the job.

The messages that a worker has are known to its process alone (`ack_emulation` is off): one that is
killed loses them. Who sends them again: docs/decisions/0004-lost-messages.md.
"""

import logging
from collections.abc import Iterable, Iterator
from queue import Empty
from typing import Any

import msgspec
import redis
from kombu.transport import TRANSPORT_ALIASES, virtual
from kombu.transport import redis as kombu_redis

from shared.redis.oom_writes import ALLOW_OOM, AtOomClient

_log = logging.getLogger(__name__)


class _Client(AtOomClient):
    def register_script(self, script: Any) -> Any:
        return super().register_script(ALLOW_OOM + script)


class QoS(virtual.QoS):
    """The messages that a channel has delivered. Tasks acknowledge in their own threads."""

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """A message that was put back when its channel was closed is not put back again."""
        message = self._delivered.get(delivery_tag)
        if requeue and message is not None:
            self.channel.put_back([message], as_next=False)
        self.ack(delivery_tag)  # type: ignore[no-untyped-call]

    def restore_unacked(self) -> list[Any]:
        """Put all messages back that are not acknowledged, as the next ones. Called when the
        channel is closed: when the worker stops, and when its connection breaks. Its tasks go on
        then, and a second delivery of their jobs finds the lease."""
        self._flush()  # type: ignore[no-untyped-call]
        messages = list(self._delivered.values())
        self._delivered.clear()
        self.channel.put_back(reversed(messages), as_next=True)
        return []  # there is nothing that kombu should write into a file


class Channel(kombu_redis.Channel):
    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)  # type: ignore[no-untyped-call]
        self.QoS: Any = QoS  # kombu has set its own here

    def _get_client(self) -> type[_Client]:
        return _Client

    def _brpop_read(self, **options: Any) -> bool:
        """Deliver the message of an answered BRPOP. As kombu's, but for the decoder of JSON."""
        channel: Any = self
        try:
            try:
                reply = channel.client.parse_response(channel.client.connection, "BRPOP", **options)
            except channel.connection_errors:
                channel.client.connection.disconnect()  # so that the next BRPOP opens it
                raise
            if not reply:
                raise Empty
            queue = reply[0].decode().rsplit(channel.sep, 1)[0]
            channel._queue_cycle.rotate(queue)
            channel.connection._deliver(msgspec.json.decode(reply[1]), queue)
            return True
        finally:
            channel._in_poll = None
            channel._flush_brpop_reauth()

    def put_back(self, messages: Iterable[Any], *, as_next: bool) -> None:
        """Put messages into the lists that they came from, in one call. When Redis is away,
        nothing is put back: the owners of the jobs find them lost."""
        try:
            entries = list(self._entries(messages))
            if not entries:
                return
            with self.conn_or_acquire() as client:
                pipe = client.pipeline(transaction=False)
                for key, payload in entries:
                    (pipe.rpush if as_next else pipe.lpush)(key, payload)
                pipe.execute()
        except redis.RedisError as exc:
            _log.warning("messages cannot be put back: %s", exc)

    def _entries(self, messages: Iterable[Any]) -> Iterator[tuple[str, bytes]]:
        """The list of each message, and what is to be pushed into it."""
        channel: Any = self  # kombu is not typed
        for message in messages:
            payload, delivery = message.serializable(), message.delivery_info
            priority = channel._get_message_priority(payload)
            for queue in channel._lookup(delivery["exchange"], delivery["routing_key"]):
                yield channel._q_for_pri(queue, priority), msgspec.json.encode(payload)

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
