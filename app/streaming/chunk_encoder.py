"""Encodes a job's events as the chunks of its answer, each with the event id to resume behind."""

from typing import Any

from msgspec import Struct

from app.events.event_id import EventId, no_such_event
from app.events.job_stream import MAX_READ, JobStream, raise_failure
from app.formats.formatter import formatter_for
from shared.wire.events import Delta, Event, Finished, PrefillProgress, join
from shared.wire.job import Job

DONE = object()
"""In place of a chunk, behind the last one: the answer is complete."""


class EncodedChunk(Struct, frozen=True, gc=False):
    event_id: EventId
    chunk: Any
    """An object, or its JSON (`msgspec.Raw`)."""
    finished: Finished | None = None
    """With DONE."""


class ChunkEncoder:
    """Encodes one answer for one reader. The ids depend on how its events were joined; the text of
    the answer does not."""

    def __init__(self, job: Job) -> None:
        self._formatter = formatter_for(job)
        self.position = EventId(job.id)
        """How much of the answer has been encoded."""

    def begin(self, stream: JobStream, at: EventId | None) -> list[EncodedChunk]:
        """The chunks that can be sent at once to a reader that has the answer up to `at`. Raises
        InvalidRequest when the answer has no such event, the job's failure when it is all that is
        left, redis.RedisError."""
        if at is None or at.num_steps + at.num_joined == 0:
            return self._open()
        last = self._skip(stream, at)
        self.position = EventId(at.job_id, at.num_steps)
        if at.num_joined:
            return self._rest_of_write(stream, at)
        raise_failure(last)
        if last and isinstance(last[-1], Finished):
            return [EncodedChunk(self.position, DONE, last[-1])]
        return []

    def _skip(self, stream: JobStream, at: EventId) -> list[Event]:
        """Take the events that the reader has whole, for the formatter's state. Returns the last
        ones of them."""
        events: list[Event] = []
        while stream.next_seq < at.next_seq:
            events = stream.skip(min(at.next_seq - stream.next_seq, MAX_READ))
            if not events:
                raise no_such_event(at)
            for event in events:
                self._formatter.of(event)
        return events

    def _rest_of_write(self, stream: JobStream, at: EventId) -> list[EncodedChunk]:
        """The chunks that were not delivered of a write that broke off."""
        if not at.num_steps:
            chunks = self._open()
        else:
            # No write joins more than one read returns.
            joined = stream.skip(at.num_joined) if at.num_joined < 2 * MAX_READ else []
            if len(joined) < at.num_joined:
                raise no_such_event(at)
            chunks = self.of(join(joined))
        if at.num_sent >= len(chunks):
            raise no_such_event(at)
        return chunks[at.num_sent :]

    def _open(self) -> list[EncodedChunk]:
        return self._number(self._formatter.opening(), 1)

    def of(self, events: list[Event]) -> list[EncodedChunk]:
        """The chunks of the next events, as `JobStream.read` returns them. There may be none."""
        if len(events) == 1:
            event = events[0]
            if isinstance(event, Delta) and (
                (text := self._formatter.text_chunk(event)) is not None
            ):
                self.position = EventId(self.position.job_id, event.seq + 2)
                return [EncodedChunk(self.position, text)]
        chunks: list[Any] = []
        for event in events:
            text = self._formatter.text_chunk(event) if isinstance(event, Delta) else None
            if text is not None:
                chunks.append(text)
            else:
                chunks += self._formatter.of(event)
        finished = events[-1] if isinstance(events[-1], Finished) else None
        if finished:
            chunks.append(DONE)
        # Steps 0 to k + 1 are delivered with event k; a joined delta has its last event's number.
        last_seq = max([event.seq for event in events]) if len(events) > 1 else events[0].seq
        return self._number(chunks, last_seq + 2, finished)

    def prefill_of(self, events: list[Event]) -> float | None:
        """The fraction of its prompt that the replica has read, by the newest of these events; None
        = none of them says. The events do not name their sequence, so it takes a job with one."""
        for event in reversed(events):
            if isinstance(event, PrefillProgress) and self._formatter.num_choices == 1:
                return event.done / event.total
        return None

    def _number(
        self, chunks: list[Any], num_steps: int, finished: Finished | None = None
    ) -> list[EncodedChunk]:
        job_id, num_before = self.position.job_id, self.position.num_steps
        self.position = EventId(job_id, num_steps)
        if not chunks:
            return []
        if len(chunks) == 1:
            return [EncodedChunk(self.position, chunks[0], finished)]
        num_joined = num_steps - num_before
        encoded = [
            EncodedChunk(EventId(job_id, num_before, num_joined, i), chunk)
            for i, chunk in enumerate(chunks[:-1], 1)
        ]
        encoded.append(EncodedChunk(self.position, chunks[-1], finished))
        return encoded
