"""A job's events as its reader sees them: in order, without holes, without doubles."""

import redis
from gevent.queue import Empty, SimpleQueue

from shared import messages, names
from shared.connections import payload_bytes
from shared.messages import Delta, Event, Failed, Finished, ToolCallDelta


class ClientGone(Exception):
    """The client of this stream has closed its connection."""


_REPAIR = object()


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

    # -- the hub's side ----------------------------------------------------------------------

    def push(self, event: Event) -> None:
        self._queue.put(event)

    def push_repair(self) -> None:
        """Events may have been lost: look into the log."""
        self._queue.put(_REPAIR)

    def close(self, error: Exception | None = None) -> None:
        """Wake the reader with an error; without one its client is gone."""
        self._queue.put(error or ClientGone())

    # -- the reader's side -------------------------------------------------------------------

    def read(self, timeout_s: float) -> list[Event]:
        """Wait for events and return all that are there, the text of each choice joined.

        Returns [] after `timeout_s` without one. Raises what `close` was given, and
        redis.RedisError: nothing is lost then, the next call reads it.
        """
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
    joined: list[Event] = []
    place: dict[int, int] = {}
    for event in events:
        if not isinstance(event, Delta):
            joined.append(event)
        elif event.index in place:
            before = joined[place[event.index]]
            assert isinstance(before, Delta), "places are those of deltas"
            joined[place[event.index]] = _sum(before, event)
        else:
            place[event.index] = len(joined)
            joined.append(event)
    return joined


def _sum(left: Delta, right: Delta) -> Delta:
    return Delta(
        right.seq,
        right.attempt,
        right.index,
        left.text + right.text,
        left.token_ids + right.token_ids,
        right.finish_reason,
        left.reasoning + right.reasoning,
        _join_calls(left.tool_calls, right.tool_calls),
        left.logprobs + right.logprobs,
    )


def _join_calls(left: list[ToolCallDelta], right: list[ToolCallDelta]) -> list[ToolCallDelta]:
    """Join neighbouring pieces of the same tool call."""
    joined = list(left)
    for piece in right:
        last = joined[-1] if joined else None
        if last is not None and last.index == piece.index:
            arguments = last.arguments + piece.arguments
            joined[-1] = ToolCallDelta(last.index, last.id, last.name, arguments)
        else:
            joined.append(piece)
    return joined
