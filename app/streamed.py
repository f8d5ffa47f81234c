"""A job's answer as server-sent events. Runs in the request's greenlet."""

import errno
import time
from collections.abc import Callable, Iterator

from flask import Response, g, request

from app import request_log, sse
from app.disconnect import DisconnectWatcher
from app.dispatch import Reading
from app.errors import from_exception
from app.event_id import EventId, parse_event_id
from app.job_stream import ClientGone
from app.jobs import is_streamable
from app.relay import Relay
from app.services import services
from app.wording import Piece, Wording
from shared.errors import GoingAway, InvalidRequest
from shared.lifecycle import Progress
from shared.messages import Event, JobKind


def last_event_id() -> EventId | None:
    """Where the client wants to go on, by its header. Raises InvalidRequest."""
    text = request.headers.get("Last-Event-ID")
    return parse_event_id(text) if text else None


def resume(at: EventId, kind: JobKind | None = None) -> Response:
    """Go on with an answer behind an event that its reader has. Raises LlmisError."""
    reading = followed(at, kind)
    request_log.name_request(reading.job.id)
    return respond(reading, at)


def followed(at: EventId, kind: JobKind | None = None) -> Reading:
    """Read the job, of that kind, that an event belongs to. Raises LlmisError."""
    g.facts.is_counted = False
    job = services().dispatcher.find(at.job_id, g.principal.owner)
    if kind not in (None, job.kind):
        raise InvalidRequest(
            f"The request {job.id!r} was sent to another endpoint.", param="Last-Event-ID"
        )
    if not is_streamable(job):
        raise InvalidRequest(f"The answer of the request {job.id!r} cannot be streamed.")
    return services().dispatcher.follow(job)


def respond(reading: Reading, at: EventId | None = None) -> Response:
    """Raises LlmisError: before the first byte an error is an HTTP status."""
    watcher = DisconnectWatcher(request.environ, reading.stream.close)
    relay = Relay(services().relay, reading, g.facts)
    wording = Wording(reading.job)
    try:
        pieces = wording.begin(reading.stream, at)
        # Who comes back gets at once what there is.
        first = [] if at and pieces else relay.first_events()
    except BaseException as exc:
        watcher.close()
        relay.close(exc)
        if isinstance(exc, ClientGone):
            return Response(status=499)
        raise
    body = _events(relay, wording, pieces, first, watcher.close)
    return Response(body, headers=sse.HEADERS)


def _events(
    relay: Relay,
    wording: Wording,
    pieces: list[Piece],
    first: list[Event],
    on_close: Callable[[], None],
) -> Iterator[bytes]:
    """After the first byte an error is one event, then the end of the stream."""
    error: BaseException | None = None
    try:
        if pieces:
            yield sse.events(pieces)
        written_at = time.monotonic()
        told: Progress | None = None
        for events in relay.events(first):
            body = sse.events(wording.of(events)) if events else b""
            if not body and relay.load is not None and relay.load != told:
                told = relay.load
                body = sse.comment(f"loading {told.model}: {told.stage} {told.fraction:.0%}")
            if not body and time.monotonic() - written_at >= relay.keepalive_s:
                body = sse.keepalive(relay.queue_position)
            if body:
                yield body
                written_at = time.monotonic()
                if events:
                    relay.delivered()
    except ClientGone as exc:
        error = exc
    except GeneratorExit as exc:
        error = exc
        raise
    except GoingAway as exc:
        error = exc
        # A body without its last chunk is seen to be cut off by every client, which may come back.
        raise ConnectionResetError(errno.ECONNRESET, "the web process ends") from exc
    except Exception as exc:
        error = from_exception(exc)
        yield sse.event(error.body(), wording.at)
    finally:
        on_close()
        relay.close(error)
