"""The hub: one pub/sub connection of a web process, and the streams it feeds.

One greenlet listens on the process's own channel. A replica publishes there the events that one
step gave to all jobs of this process, in one message. Pub/sub may lose messages. When the
connection breaks, the hub reconnects and makes every open stream read its job's log.
"""

import logging
import time
import uuid
from collections.abc import Callable

import gevent
import redis
from gevent.event import Event

from app.events.job_stream import JobStream
from shared import names
from shared.wire import codec
from shared.wire.codec import DecodeError
from shared.wire.events import Failed, Finished

_log = logging.getLogger(__name__)
_RETRY_S = 0.1
_PING_S = 5.0
_SILENCE_S = 15.0
"""A connection on which not even answers to pings come for this long is dead."""
_STRAY_S = 2.0
"""Seconds between two attempts to stop a job that has no reader here and still sends events."""
_MAX_RELEASED = 10_000


class Hub:
    def __init__(self, client: "redis.Redis") -> None:
        self._client = client
        self.channel = names.hub_channel(uuid.uuid4().hex[:12])
        self._streams: dict[str, tuple[JobStream, ...]] = {}
        """By job id: one process may have several readers of a job."""
        self._released_at: dict[str, float] = {}
        """By job id, monotonic times: their last events may still come."""
        self.on_stray: Callable[[str], None] = lambda _: None
        """Called, in a new greenlet, with the id of a job whose events come without a reader."""
        self._greenlet: gevent.Greenlet | None = None
        self._connected = Event()

    @property
    def is_connected(self) -> bool:
        return bool(self._connected.is_set())

    def wait_until_connected(self, timeout_s: float) -> None:
        """Return when the subscription is confirmed, or at the end of the time."""
        self._connected.wait(timeout_s)

    def start(self) -> None:
        """Subscribe and wait for the confirmation. Raises redis.RedisError."""
        pubsub = self._subscribe()
        self._greenlet = gevent.spawn(self._run, pubsub)

    def open(self, job_id: str) -> JobStream:
        """Make a stream of a job. Call it before the job is enqueued, or events are missed."""
        stream = JobStream(job_id, self._client)
        self._streams[job_id] = (*self._streams.get(job_id, ()), stream)
        return stream

    def release(self, stream: JobStream) -> bool:
        """Forget a stream, which is not read any more; True = this process has others of its
        job."""
        stream.stop_timer()
        left = tuple(s for s in self._streams.get(stream.job_id, ()) if s is not stream)
        if left:
            self._streams[stream.job_id] = left
        elif self._streams.pop(stream.job_id, None) is not None:
            self._released_at[stream.job_id] = time.monotonic()
            self._forget_old()
        return bool(left)

    @property
    def num_streams(self) -> int:
        return len(self._streams)

    def close_streams(self, error: Exception) -> None:
        """End all streams with an error."""
        for stream in self._all():
            stream.close(error)

    def _all(self) -> list[JobStream]:
        return [stream for streams in self._streams.values() for stream in streams]

    def _subscribe(self) -> "redis.client.PubSub":
        pubsub: redis.client.PubSub = self._client.pubsub()  # type: ignore[no-untyped-call]
        pubsub.subscribe(self.channel)
        if pubsub.get_message(timeout=5.0) is None:
            raise redis.TimeoutError("the subscription was not confirmed within 5 s")
        self._connected.set()
        return pubsub

    def _run(self, pubsub: "redis.client.PubSub") -> None:
        while True:
            try:
                self._listen(pubsub)
            except (redis.RedisError, OSError) as exc:
                self._connected.clear()
                _log.warning("pub/sub connection lost, connecting again: %s", exc)
            pubsub = self._reconnect(pubsub)

    def _listen(self, pubsub: "redis.client.PubSub") -> None:
        """Deliver messages until the connection breaks.

        Reads one level below `PubSub.listen`, which would reconnect unnoticed: lost events would be
        missing until the next one shows the gap.
        """
        connection = pubsub.connection
        assert connection is not None, "subscribed before"
        pinger = gevent.spawn(self._ping, connection)
        try:
            while True:
                reply = connection.read_response(timeout=_SILENCE_S)
                if reply and reply[0] == b"message":
                    self._deliver(reply[2])
        finally:
            pinger.kill(block=False)

    @staticmethod
    def _ping(connection: "redis.connection.AbstractConnection") -> None:
        while True:
            gevent.sleep(_PING_S)
            try:
                connection.send_command("PING")  # type: ignore[no-untyped-call]
            except (redis.RedisError, OSError):
                return  # the listener notices by itself

    def _deliver(self, payload: bytes) -> None:
        try:
            events = codec.decode_hub_message(payload)
        except DecodeError:
            _log.exception("undecodable message on the hub channel")
            return
        streams = self._streams
        for job_event in events:
            readers = streams.get(job_event.job_id)
            if readers is not None:
                for stream in readers:
                    stream.push(job_event.event, job_event.published_at)
            elif not isinstance(job_event.event, Finished | Failed):
                self._on_stray_event(job_event.job_id)

    def _on_stray_event(self, job_id: str) -> None:
        """The message that stops a job without readers may have been lost: send it again."""
        now = time.monotonic()
        if now - self._released_at.get(job_id, 0.0) > _STRAY_S:
            self._released_at[job_id] = now
            gevent.spawn(self.on_stray, job_id)

    def _forget_old(self) -> None:
        if len(self._released_at) > _MAX_RELEASED:
            limit = time.monotonic() - _STRAY_S
            self._released_at = {k: at for k, at in self._released_at.items() if at > limit}

    def _reconnect(self, broken: "redis.client.PubSub") -> "redis.client.PubSub":
        broken.close()
        while True:
            try:
                pubsub = self._subscribe()
            except (redis.RedisError, OSError):
                gevent.sleep(_RETRY_S)
                continue
            for stream in self._all():
                stream.push_repair()
            return pubsub
