"""One request of a WebSocket connection, in a greenlet of its own: from its frame to its end."""

import contextlib
from collections.abc import Callable

import msgspec
from flask import g

from app.auth.authenticator import Principal
from app.auth.scopes import WEBSOCKET
from app.errors import ClientGone, from_exception
from app.events.event_id import EventId
from app.jobs.build import JobRequest
from app.jobs.dispatcher import Subscription, new_request_id, request_id_from
from app.jobs.idempotency import digest, idempotency_key
from app.metrics.request_record import RequestRecord
from app.middleware import request_log
from app.schemas.generation import ChatRequest, CompletionRequest
from app.schemas.parse import convert
from app.services import services
from app.streaming.chunk_encoder import ChunkEncoder, EncodedChunk
from app.streaming.relay import Relay
from app.websocket import frames
from app.websocket.frames import Frame
from shared.errors import GoingAway, InvalidRequest, LlmisError, RequestCancelled
from shared.wire.job import Job


class OpenRequest:
    """`run` is the request's greenlet; the connection's greenlet calls the other methods."""

    def __init__(self, frame_id: str, frame: Frame, send: Callable[[Frame], None]) -> None:
        """`send` raises ClientGone."""
        self._frame_id = frame_id
        self._frame = frame
        self._send = send
        self._subscription: Subscription | None = None
        """None until the job is queued."""
        self._is_cancelled = False
        """By the client."""
        self._is_closed = False

    def cancel(self) -> None:
        """End the job for good. Raises NotFound, redis.RedisError."""
        self._is_cancelled = True
        if self._subscription is not None:
            services().dispatcher.cancel(self._subscription.job.id, self._subscription.job.owner)
            self._subscription.stream.close()

    def close(self) -> None:
        """The client is gone: end the stream."""
        self._is_closed = True
        if self._subscription is not None:
            self._subscription.stream.close()

    def run(self, principal: Principal) -> None:
        """Answer the request. In an application context of its own."""
        g.principal = principal
        g.record = new_record(self._frame["type"])
        request_log.name_request(new_request_id())
        status = 200
        try:
            self._relay()
        except ClientGone:
            status = RequestCancelled.status
            self._send_last({"type": "cancelled", "id": self._frame_id})
        except GoingAway as exc:
            status = exc.status  # the connection is closed next, and the client may resume
        except Exception as exc:  # the greenlet's top: the client gets the error
            error = from_exception(exc)
            g.record.fail(error)
            status = error.status
            self._send_last(frames.error(self._frame_id, error))
        finally:
            request_log.end(g.record, g.request_id, principal.owner, status)

    def _send_last(self, frame: Frame) -> None:
        with contextlib.suppress(ClientGone):
            self._send(frame)

    def _relay(self) -> None:
        frame = self._frame
        at = frames.event_id_of(frame) if frame["type"] == "resume" else None
        if at is not None:
            subscription = services().dispatcher.resume(at, g.principal.owner)
        else:
            subscription = _submit(frame)
        self._subscription = subscription
        request_log.name_request(subscription.job.id)
        try:
            with Relay(services().relay, subscription, g.record) as relay:
                # Either may have come before there was a stream to close.
                if self._is_cancelled:
                    self.cancel()
                if self._is_cancelled or self._is_closed:
                    raise ClientGone
                self._write(relay, ChunkEncoder(subscription.job), at)
        except (ClientGone, LlmisError) as exc:
            if not self._is_cancelled:
                raise
            # Whichever came first: the closed stream, or the end that the replica wrote.
            g.record.fail(RequestCancelled("The client cancelled the request."))
            raise ClientGone from exc

    def _write(self, relay: Relay, encoder: ChunkEncoder, at: EventId | None) -> None:
        frame_id = self._frame_id
        chunks = encoder.begin(relay.stream, at)
        self._send(frames.accepted(frame_id, at or EventId(relay.job_id)))
        self._send_chunks(chunks)
        position: int | None = None
        for events in relay.events([]):
            if (load := relay.new_load()) is not None:
                self._send(frames.loading(frame_id, load))
            if relay.queue_position not in (None, position):
                position = relay.queue_position
                self._send(frames.queued(frame_id, position))
            if events:
                chunks = encoder.of(events)
                if not chunks and (fraction := encoder.prefill_of(events)) is not None:
                    self._send(frames.prefill(frame_id, fraction))
                self._send_chunks(chunks)
                relay.delivered()

    def _send_chunks(self, chunks: list[EncodedChunk]) -> None:
        for chunk in chunks:
            self._send(frames.chunk(self._frame_id, chunk))


def new_record(kind: str) -> RequestRecord:
    return request_log.new_record(f"WS {WEBSOCKET}", is_counted=kind == "request")


def _submit(frame: Frame) -> Subscription:
    """Queue a request and subscribe to it, or to the earlier one with its idempotency key."""
    text = frames.text_of(frame, "idempotency_key")
    job = _job(frame)
    if services().is_stopping:
        raise GoingAway("The service is shutting down. Send the request again.")
    key = None
    if text is not None:
        asked = msgspec.json.encode([WEBSOCKET, frame.get("endpoint"), frame.get("body")])
        key = idempotency_key(text, g.principal.owner, digest(asked))
    return services().dispatcher.submit(job, g.principal.limits, key)


def _job(frame: Frame) -> Job:
    endpoint = frame.get("endpoint", "chat.completions")
    body = frame.get("body")
    request_id = request_id_from(frames.text_of(frame, "request_id"))
    request_log.name_request(request_id)
    asked = JobRequest(request_id, g.principal.owner, g.record)
    if endpoint == "chat.completions":
        return services().job_builder.chat(convert(body, ChatRequest), asked)
    if endpoint == "completions":
        return services().job_builder.completion(convert(body, CompletionRequest), asked)
    raise InvalidRequest("endpoint must be chat.completions or completions.", param="endpoint")
