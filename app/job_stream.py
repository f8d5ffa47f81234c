"""A job's events as its reader sees them: in order, without holes, without doubles."""

from collections.abc import Iterable
from itertools import groupby

import msgspec
import redis
from gevent.queue import Empty, SimpleQueue

from shared import messages, names
from shared.connections import payload_bytes
from shared.messages import Delta, Event, Failed, Finished, ToolCallDelta


class ClientGone(Exception):
    """The client of this stream has closed its connection."""


_REPAIR = object()
_FOLLOW_S = 0.05
"""How often a log is read whose events are not pushed."""


class JobStream:
    """One reader of one job. The hub pushes, one greenlet reads.

    Pub/sub may lose events; the job's log has them all, at the index that is their sequence
    number. A hole, or a reconnection of the hub, is repaired from it before reading goes on.
    """

    def __init__(self, job_id: str, client: "redis.Redis") -> None:
        self.job_id = job_id
        self._client = client
        self._queue: SimpleQueue[object] = SimpleQueue()
        self._next_seq = 0
        self.is_ended = False
        """The last event has been read."""
        self._is_pushed = True
        """Events come from the hub; until they do the log is read now and then."""

    # -- the hub's side ----------------------------------------------------------------------

    def push(self, event: Event) -> None:
        self._is_pushed = True
        self._queue.put(event)

    def push_repair(self) -> None:
        """Events may have been lost: look into the log."""
        self._queue.put(_REPAIR)

    def close(self, error: Exception | None = None) -> None:
        """Wake the reader with an error; without one its client is gone."""
        self._queue.put(error or ClientGone())

    # -- the reader's side -------------------------------------------------------------------

    def follow(self) -> None:
        """Read a job that may have run for long: what there is comes from its log, and so does
        the rest until its replica knows of this reader."""
        self._is_pushed = False
        self.push_repair()

    def read(self, timeout_s: float) -> list[Event]:
        """Wait for events and return all that are there, the text of each choice joined.

        Returns [] after `timeout_s` without one. Raises what `close` was given, and
        redis.RedisError: nothing is lost then, the next call reads it.
        """
        if not self._is_pushed:
            timeout_s = min(timeout_s, _FOLLOW_S)
        events: list[Event] = []
        try:
            item = self._queue.get(timeout=timeout_s)
            while True:
                self._take(item, events)
                item = self._queue.get_nowait()
        except Empty:
            pass
        except redis.RedisError:
            self.push_repair()
            if not events:
                raise
        if events and isinstance(events[-1], Finished | Failed):
            self.is_ended = True
        return _join(events) if len(events) > 1 else events

    def repair(self) -> list[Event]:
        """Read what the log has beyond the last event. For a reader that waited in vain."""
        self.push_repair()
        return self.read(0)

    def _take(self, item: object, events: list[Event]) -> None:
        if isinstance(item, Exception):
            raise item
        if item is _REPAIR:
            self._read_log(events)
        else:
            event: Event = item  # type: ignore[assignment]
            if event.seq > self._next_seq:
                self._read_log(events)
            elif event.seq == self._next_seq:
                self._next_seq += 1
                events.append(event)
            # A smaller number is a double: it came from the log before.

    def _read_log(self, events: list[Event]) -> None:
        payloads = self._client.lrange(names.log_key(self.job_id), self._next_seq, -1)
        for payload in payloads:
            events.append(messages.decode_event(payload_bytes(payload)))
            self._next_seq += 1


def _join(events: list[Event]) -> list[Event]:
    """Join the deltas of each choice: how the choices' deltas were mixed is of no meaning."""
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
    )


def _join_calls(pieces: Iterable[ToolCallDelta]) -> list[ToolCallDelta]:
    """Join neighbouring pieces of the same tool call."""
    return [
        msgspec.structs.replace(same[0], arguments="".join(piece.arguments for piece in same))
        for same in (list(group) for _, group in groupby(pieces, key=lambda piece: piece.index))
    ]
