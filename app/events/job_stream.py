"""A job's events as its reader sees them: in order, without holes, without doubles."""

import time
from collections.abc import Iterable
from functools import reduce
from itertools import groupby

import msgspec
import redis
from gevent.queue import Empty, SimpleQueue

from shared import errors, messages, names
from shared.connections import payload_bytes
from shared.messages import Delta, Event, Failed, Finished, ToolCallDelta, later_filtered


class ClientGone(Exception):
    """The client of this stream has closed its connection."""


_REPAIR = object()
_FOLLOW_S = 0.05
"""How often a log is read whose events are not pushed."""
_FOLLOW_LIMIT_S = 5.0
"""A replica knows of a new reader by then; a job that is silent for longer is the lookout's."""
_WAKE = object()
_MAX_QUEUED = 256
"""Events that wait for one reader. Beyond it pushed ones are dropped: the log has them."""
MAX_READ = 512
"""Events of one look into the log; one read returns fewer than twice as many."""


class JobStream:
    """One reader of one job. The hub pushes, one greenlet reads.

    Pub/sub may lose events; the job's log has them all, at the index that is their sequence
    number. A hole, or a reconnection of the hub, is repaired from it before reading goes on. So
    a reader that is slow costs a bounded queue, whatever its job produces meanwhile.
    """

    def __init__(self, job_id: str, client: "redis.Redis") -> None:
        self.job_id = job_id
        self._client = client
        self._queue: SimpleQueue[object] = SimpleQueue()
        self._next_seq = 0
        self._has_dropped = False
        """Events were not queued since the log was read."""
        self.is_ended = False
        """The last event has been read."""
        self._polls_until = 0.0
        """The log is read now and then until events come from the hub, or this monotonic time."""
        self._pushed_at = 0.0
        self.published_at = 0.0
        """Unix time, by the replica's clock, at which it published the first of the events read
        last; 0 = they come from the log."""

    # -- the hub's side ----------------------------------------------------------------------

    def push(self, event: Event, published_at: float = 0.0) -> None:
        self._polls_until = 0.0
        self._pushed_at = self._pushed_at or published_at
        if self._queue.qsize() < _MAX_QUEUED:
            self._queue.put(event)
        else:
            self._has_dropped = True

    def push_repair(self) -> None:
        """Events may have been lost: look into the log."""
        self._queue.put(_REPAIR)

    def wake(self) -> None:
        """Let the reader look up: it returns without an event if there is none."""
        self._queue.put(_WAKE)

    def close(self, error: Exception | None = None) -> None:
        """Wake the reader with an error; without one its client is gone."""
        self._queue.put(error or ClientGone())

    # -- the reader's side -------------------------------------------------------------------

    def follow(self) -> None:
        """Read a job that may have run for long: what there is comes from its log, and so does
        the rest until its replica knows of this reader."""
        self._polls_until = time.monotonic() + _FOLLOW_LIMIT_S
        self.push_repair()

    def skip(self, num_events: int) -> list[Event]:
        """The next events from the log, `num_events` of them or all that there are. Before
        anything is read. Raises redis.RedisError."""
        events = self._log(num_events)
        self.is_ended = _is_end(events)
        return events

    @property
    def num_read(self) -> int:
        """Events that the reader has taken: the number of the next one."""
        return self._next_seq

    def read(self, timeout_s: float) -> list[Event]:
        """Wait for events and return those that are there, the text of each choice joined.

        Returns [] after `timeout_s` without one, or when woken. Raises what `close` was given, and
        redis.RedisError: nothing is lost then, the next call reads it.
        """
        if time.monotonic() < self._polls_until:
            timeout_s = min(timeout_s, _FOLLOW_S)
        events: list[Event] = []
        try:
            item = self._queue.get(timeout=timeout_s)
            self._take(item, events)
            while len(events) < MAX_READ:
                item = self._queue.get_nowait()
                self._take(item, events)
        except Empty:
            if not events and time.monotonic() < self._polls_until:
                self._read_log(events)
        except redis.RedisError:
            self.push_repair()
            if not events:
                raise
        self.published_at, self._pushed_at = self._pushed_at, 0.0
        if _is_end(events):
            self.is_ended = True
        elif self._has_dropped:
            self._has_dropped = False
            self.push_repair()
        return join(events) if len(events) > 1 else events

    def _take(self, item: object, events: list[Event]) -> None:
        if isinstance(item, Exception):
            raise item
        if item is _REPAIR:
            self._read_log(events)
        elif item is not _WAKE:
            event: Event = item  # type: ignore[assignment]
            if event.seq > self._next_seq:
                self._read_log(events)
            elif event.seq == self._next_seq:
                self._next_seq += 1
                events.append(event)
            # A smaller number is a double: it came from the log before.

    def _read_log(self, events: list[Event]) -> None:
        found = self._log(MAX_READ)
        events += found
        if len(found) == MAX_READ:
            self.push_repair()  # there may be more

    def _log(self, num_events: int) -> list[Event]:
        first = self._next_seq
        payloads = self._client.lrange(names.log_key(self.job_id), first, first + num_events - 1)
        found = [messages.decode_event(payload_bytes(payload)) for payload in payloads]
        self._next_seq += len(found)
        return found


def _is_end(events: list[Event]) -> bool:
    return bool(events) and isinstance(events[-1], Finished | Failed)


def raise_failure(events: list[Event]) -> None:
    """Raise what the last event says that the job failed with."""
    if events and isinstance(events[-1], Failed):
        failed = events[-1]
        raise errors.rebuild(failed.status, failed.code, failed.message, failed.param)


def join(events: list[Event]) -> list[Event]:
    """Join the deltas of each choice: how the choices' deltas were mixed is of no meaning.

    Joining what is joined already changes nothing, so what a choice gains does not depend on how
    its events arrived.
    """
    gathered: dict[int, list[Delta]] = {}
    places: list[Event | list[Delta]] = []
    for event in events:
        if not isinstance(event, Delta):
            places.append(event)
        elif event.index in gathered:
            gathered[event.index].append(event)
        else:
            places.append(gathered.setdefault(event.index, [event]))
    return [_sum(place) if isinstance(place, list) else place for place in places]


def _sum(deltas: list[Delta]) -> Delta:
    if len(deltas) == 1:
        return deltas[0]
    return msgspec.structs.replace(
        deltas[-1],
        text="".join(delta.text for delta in deltas),
        token_ids=[token for delta in deltas for token in delta.token_ids],
        reasoning="".join(delta.reasoning for delta in deltas),
        tool_calls=_join_calls(piece for delta in deltas for piece in delta.tool_calls),
        logprobs=[token for delta in deltas for token in delta.logprobs],
        filtered=reduce(later_filtered, (delta.filtered for delta in deltas)),
    )


def _join_calls(pieces: Iterable[ToolCallDelta]) -> list[ToolCallDelta]:
    """Join neighbouring pieces of the same tool call."""
    return [
        msgspec.structs.replace(same[0], arguments="".join(piece.arguments for piece in same))
        for same in (list(group) for _, group in groupby(pieces, key=lambda piece: piece.index))
    ]
