"""The publisher: one thread that writes the engine loop's results to Redis.

Every event is appended to its job's log and then published on the channels of the web processes
that read the job, all events of a round in one call. After a round the publisher rests for its
pace; first tokens, ends, errors and all else that is no further token of a choice end the rest.
What arrives meanwhile waits for the next round, where the text of a choice is joined: a fast
engine, or a publisher that falls behind, makes fewer, larger events. Delivery: the log has every
event exactly once, at the index that is its sequence number; pub/sub is at most once.
"""

import logging
import time
from collections.abc import Callable

import msgspec
import redis

from shared import names
from shared.clock import clock
from shared.errors import InternalError, LlmisError, ReplicaLost
from shared.redis.script_connection import ScriptConnection
from shared.registry.records import BEAT_S
from shared.wire import codec
from shared.wire.events import Event, Failed, Finished
from shared.wire.job import Job, JobKind
from worker.replica.attempt import Attempt, AttemptEvent, JobDropped, JobEnded, JobPreempted
from worker.replica.event_builder import events_of
from worker.replica.publish_buffer import PublishBuffer
from worker.replica.threads import daemon_thread

_log = logging.getLogger(__name__)
_MAX_ROUND = 4096
"""Events of the engine loop in one round trip, which joins those of each choice: 64 choices, 64
steps."""
_NOT_ENCODABLE = (ValueError, TypeError, OverflowError, msgspec.MsgspecError)
"""What the codec raises for half of a surrogate pair and the like."""
_LARGE_LOG_TTL_S = 60
"""How long a log with vectors or a prompt's log probabilities stays: it is read at once."""


class Publisher:
    def __init__(
        self, client: "redis.Redis", job_ttl_s: int, request_timeout_s: float, pace_s: float = 0.0
    ) -> None:
        """`pace_s`: the rest between two rounds, from the end of the first."""
        self._job_ttl_s = job_ttl_s
        self._running_ttl_s = int(request_timeout_s) + job_ttl_s
        self._queue = PublishBuffer()
        self._append = ScriptConnection(client, "append")
        self.on_dropped: Callable[[str, LlmisError], None] = lambda job_id, error: None
        """Called with the id of a job of which no more events are written, and the reason."""
        self._thread = daemon_thread("publisher", self._run)
        self.is_wedged = False
        """The thread died: the process cannot serve any more."""
        self._is_busy = False
        self._pace_s = pace_s
        self._rests_until = 0.0
        """Monotonic time."""
        self._waiting_since = self._tried_at = 0.0
        """Monotonic times: events arrived while the thread was idle; a try to send some ended."""
        self._unheard_since: dict[str, float] = {}
        """Channel → monotonic time since when its messages have had no receiver."""

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """Publish what is buffered, then end the thread; give up after `timeout_s`."""
        self._queue.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def emit(self, items: list[AttemptEvent], *, is_urgent: bool = True) -> None:
        """Buffer events, from any thread; never blocks. Urgent ones end the thread's rest."""
        if not self._is_busy and self._queue.empty():
            self._waiting_since = time.monotonic()
        self._queue.put(items, is_urgent=is_urgent)

    @property
    def age_s(self) -> float:
        """Seconds for which there was something to publish and no try ended, with or without
        success: Redis may be away for long, but the thread must not hang."""
        if not self._is_busy and self._queue.empty():
            return 0.0
        return time.monotonic() - max(self._waiting_since, self._tried_at)

    def unheard_channels(self, grace_s: float) -> set[str]:
        """Channels whose messages have had no receiver for longer than `grace_s`."""
        limit = time.monotonic() - grace_s
        return {channel for channel, since in self._unheard_since.copy().items() if since < limit}

    def forget_channels(self, channels: set[str]) -> None:
        """Start over with channels that have a receiver after all, or that no job uses any more."""
        for channel in channels:
            self._unheard_since.pop(channel, None)

    # -- the thread --------------------------------------------------------------------------

    def _run(self) -> None:
        is_stopped = False
        try:
            while self._publish_round():
                pass
            is_stopped = True
        finally:
            # The exception ends the thread, and `logs.configure` logs it.
            self.is_wedged = not is_stopped

    def _publish_round(self) -> bool:
        """Publish what is buffered; False when that was the last."""
        items, is_last = self._collect()
        self._is_busy, self._tried_at = True, time.monotonic()
        if items:
            events = events_of(items)
            if events:
                self.send(events)
            for attempt, item in items:
                if isinstance(item, JobEnded | JobDropped | JobPreempted):
                    attempt.done.set()
        self._is_busy = False
        self._rests_until = time.monotonic() + self._pace_s
        return not is_last

    def _collect(self) -> tuple[list[AttemptEvent], bool]:
        """Rest, wait for events, then take what is there, up to one round."""
        lists = self._queue.take(_MAX_ROUND, self._rests_until - time.monotonic())
        return [item for items in lists for item in items or ()], None in lists

    def send(self, events: list[tuple[Attempt, Event]]) -> None:
        """Write the events until Redis has them all. After a broken round trip it is not known
        whether Redis had them: they are sent again."""
        encoded = [self._encoded(*item) for item in events if not item[0].is_broken]
        while encoded:
            try:
                self._round_trip(encoded)
                self._tried_at = time.monotonic()
                return
            except redis.RedisError as exc:
                _log.warning("publishing %d events failed, trying again: %s", len(encoded), exc)
                self._tried_at = time.monotonic()
                time.sleep(BEAT_S / 4)

    def _encoded(self, attempt: Attempt, event: Event) -> tuple[Attempt, Event, bytes]:
        """Encode an event, or the failure of its job if that is not possible."""
        try:
            return attempt, event, codec.encode_event(event)
        except _NOT_ENCODABLE:
            _log.exception("an event of the request %s cannot be encoded", attempt.id)
        attempt.is_broken = True
        error = InternalError("The replica had an error while sending the answer.")
        attempt.outcome = error.type
        self.on_dropped(attempt.id, error)
        failed = Failed(event.seq, event.attempt, error.status, error.code, error.message)
        return attempt, failed, codec.encode_event(failed)

    def _round_trip(self, encoded: list[tuple[Attempt, Event, bytes]]) -> None:
        """Append and publish in one call. Events of a job that another replica has taken over
        are refused."""
        by_channel: dict[str, list[tuple[str, bytes]]] = {}
        places: dict[str, int] = {}
        keys: list[str] = []
        entries: list[bytes | int | str] = []
        for attempt, event, payload in encoded:
            readers = attempt.channels  # one reference: the heartbeat replaces it
            for channel in readers:
                by_channel.setdefault(channel, []).append((attempt.id, payload))
                places.setdefault(channel, len(places) + 1)
            place = " ".join(str(places[channel]) for channel in readers)
            keys += (names.lease_key(attempt.id), names.log_key(attempt.id))
            entries += (attempt.lease, event.seq, payload, self._expiry_s(attempt, event), place)
        channels = list(by_channel)
        now = clock.now()
        hub_messages = [codec.encode_hub_message(by_channel[channel], now) for channel in channels]
        args = [len(encoded), *entries, *hub_messages]
        counts, refused = self._append.call([*keys, *channels], args)
        for number in refused:
            self._fence(encoded[number - 1][0])  # Lua counts from 1
        heard_at = time.monotonic()
        for channel, receivers in zip(channels, counts, strict=True):
            if receivers:
                self._unheard_since.pop(channel, None)
            else:
                self._unheard_since.setdefault(channel, heard_at)

    def _fence(self, attempt: Attempt) -> None:
        if not attempt.is_fenced:
            _log.warning("another replica has taken the job over", extra={"request_id": attempt.id})
            attempt.is_fenced = True
            attempt.outcome = "taken_over"
            attempt.done.set()
            self.on_dropped(attempt.id, ReplicaLost("Another replica has taken the request over."))

    def _expiry_s(self, attempt: Attempt, event: Event) -> int:
        """The new time to live of the log in seconds; 0 = unchanged."""
        if isinstance(event, Finished | Failed):
            return self._ttl_s(attempt.job)
        return self._running_ttl_s if event.seq == 0 or attempt.number else 0

    def _ttl_s(self, job: Job) -> int:
        is_large = job.kind is JobKind.EMBEDDING or job.prompt_logprobs
        return min(_LARGE_LOG_TTL_S, self._job_ttl_s) if is_large else self._job_ttl_s
