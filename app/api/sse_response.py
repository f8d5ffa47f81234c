"""A job's answer as server-sent events. Runs in the request's greenlet."""

import errno
import time
from collections.abc import Iterator
from contextlib import ExitStack

from flask import Response, g, request

from app.api.disconnect import closed, relay_to_client
from app.errors import ClientGone, from_exception
from app.events.event_id import EventId, parse_event_id
from app.jobs.dispatcher import Subscription
from app.metrics.request_record import RequestRecord
from app.middleware import request_log
from app.services import services
from app.streaming import sse
from app.streaming.chunk_encoder import ChunkEncoder, EncodedChunk
from app.streaming.relay import Relay
from shared.errors import GoingAway
from shared.wire.events import Event
from shared.wire.job import JobKind


def last_event_id() -> EventId | None:
    """The last event that the client has, by its header. Raises InvalidRequest."""
    text = request.headers.get("Last-Event-ID")
    return parse_event_id(text) if text else None


def resume(at: EventId, kind: JobKind | None = None) -> Response:
    """Continue an answer behind an event that its reader has. Raises LlmisError."""
    g.record.is_counted = False
    subscription = services().dispatcher.resume(at, g.principal.owner, kind)
    request_log.name_request(subscription.job.id)
    return respond(subscription, at)


def respond(subscription: Subscription, at: EventId | None = None) -> Response:
    """Raises LlmisError: before the first byte an error is an HTTP status."""
    try:
        with ExitStack() as reading:
            relay = reading.enter_context(relay_to_client(subscription))
            encoder = ChunkEncoder(subscription.job)
            chunks = encoder.begin(subscription.stream, at)
            # On resume, send what is in the log at once.
            first = [] if at and chunks else relay.first_events()
            body = _body(reading.pop_all(), relay, encoder, chunks, first, g.record)
    except ClientGone:
        return closed()
    return Response(body, headers=sse.HEADERS)


def _body(
    reading: ExitStack,
    relay: Relay,
    encoder: ChunkEncoder,
    chunks: list[EncodedChunk],
    first: list[Event],
    record: RequestRecord,
) -> Iterator[bytes]:
    """After the first byte an error is one event, then the end of the stream. `reading` is left
    however the stream ends."""
    try:
        with reading:
            if chunks:
                yield sse.events(chunks)
            written_at = time.monotonic()
            for events in relay.events(first):
                body = sse.events(encoder.of(events)) if events else b""
                if not body:
                    body = _comment(relay, encoder, events, time.monotonic() - written_at)
                if body:
                    yield body
                    written_at = time.monotonic()
                    if events:
                        relay.delivered()
    except (ClientGone, GoingAway) as exc:
        # Every client sees that a body without its last chunk was cut off, and may resume: also one
        # that has closed its sending half alone.
        raise ConnectionResetError(errno.ECONNRESET, "the stream is broken off") from exc
    except Exception as exc:  # the stream's top: the client gets the error as an event
        error = from_exception(exc)
        record.fail(error)
        yield sse.event(error.body(), encoder.position)


def _comment(relay: Relay, encoder: ChunkEncoder, events: list[Event], silent_s: float) -> bytes:
    """What a stream without new text sends; b"" = nothing."""
    if (prefill := encoder.prefill_of(events)) is not None:
        return sse.prefill(prefill)
    if (load := relay.new_load()) is not None:
        return sse.loading(load)
    return sse.keepalive(relay.queue_position) if silent_s >= relay.keepalive_s else b""
