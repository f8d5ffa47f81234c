"""One reader's copy of an answer: its chunks, each with the id to come back with."""

from typing import Any, NamedTuple

from app.answers import shape_for
from app.event_id import EventId, no_such_event
from app.job_stream import MAX_READ, JobStream, join, raise_failure
from shared.messages import Event, Finished, Job

END = object()
"""In place of the chunk after the last one: the answer is whole."""


class Piece(NamedTuple):
    event_id: EventId
    chunk: Any
    finished: Finished | None = None
    """With END."""


class Wording:
    """Makes the pieces of one answer. The ids depend on how the events were joined, the bytes of
    the answer as a whole do not."""

    def __init__(self, job: Job) -> None:
        self._shape = shape_for(job)
        self._at = EventId(job.id)

    @property
    def at(self) -> EventId:
        """How much of the answer has been made."""
        return self._at

    def begin(self, stream: JobStream, at: EventId | None) -> list[Piece]:
        """The pieces that can go out at once to a reader who has the answer as far as `at`.

        Raises InvalidRequest when the answer has no such place, what the job failed with when
        there is nothing else to tell, redis.RedisError.
        """
        if at is None or at.num_steps + at.num_joined == 0:
            return self._open()
        last = self._skip(stream, max(0, at.num_steps - 1), at)
        self._at = EventId(at.job_id, at.num_steps)
        if at.num_joined:
            return self._rest_of_write(stream, at)
        raise_failure(last)
        if last and isinstance(last[-1], Finished):
            return [Piece(self._at, END, last[-1])]
        return []

    def _skip(self, stream: JobStream, num_events: int, at: EventId) -> list[Event]:
        """Read what the reader has whole; what comes behind is worded by it. Returns the last
        events of it."""
        events: list[Event] = []
        while stream.num_read < num_events:
            events = stream.skip(min(num_events - stream.num_read, MAX_READ))
            if not events:
                raise no_such_event(at)
            for event in events:
                self._shape.of(event)
        return events

    def _rest_of_write(self, stream: JobStream, at: EventId) -> list[Piece]:
        if not at.num_steps:
            pieces = self._open()
        else:
            joined = stream.skip(at.num_joined) if at.num_joined < 2 * MAX_READ else []
            if len(joined) < at.num_joined:
                raise no_such_event(at)
            pieces = self.of(join(joined))
        if at.num_sent >= len(pieces):
            raise no_such_event(at)
        return pieces[at.num_sent :]

    def _open(self) -> list[Piece]:
        return self._number(self._shape.opening(), 1)

    def of(self, events: list[Event]) -> list[Piece]:
        """The pieces of events that come next, as `JobStream.read` gives them."""
        chunks = [chunk for event in events for chunk in self._shape.of(event)]
        last = events[-1]
        finished = last if isinstance(last, Finished) else None
        if finished:
            chunks.append(END)
        # Event k gives step k + 1; what is joined has the number of its last event.
        num_steps = max(event.seq for event in events) + 2
        pieces = self._number(chunks, num_steps)
        if finished:
            pieces[-1] = pieces[-1]._replace(finished=finished)
        return pieces

    def _number(self, chunks: list[Any], num_steps: int) -> list[Piece]:
        before, self._at = self._at, EventId(self._at.job_id, num_steps)
        num_joined = num_steps - before.num_steps
        pieces = [
            Piece(before._replace(num_joined=num_joined, num_sent=i), chunk)
            for i, chunk in enumerate(chunks, 1)
        ]
        if pieces:
            pieces[-1] = pieces[-1]._replace(event_id=self._at)
        return pieces
