"""Every error that leaves the web tier gets its shape here: OpenAI's."""

import logging

import msgspec
import redis
from flask import Flask, Response, g, request
from kombu.exceptions import OperationalError
from werkzeug.exceptions import HTTPException

from shared.errors import (
    BodyTooLarge,
    InternalError,
    InvalidRequest,
    LlmisError,
    MethodNotAllowed,
    QueueUnavailable,
    StorageFull,
    UnknownRoute,
)

_log = logging.getLogger(__name__)


def register(app: Flask) -> None:
    app.register_error_handler(LlmisError, respond)
    app.register_error_handler(HTTPException, _on_http_exception)
    app.register_error_handler(redis.RedisError, _on_queue_error)
    app.register_error_handler(OperationalError, _on_queue_error)
    app.register_error_handler(Exception, _on_unexpected)


def respond(error: LlmisError) -> Response:
    """Shape an error as an HTTP response."""
    g.facts.fail(error)
    response = Response(
        msgspec.json.encode(error.body()), status=error.status, content_type="application/json"
    )
    if error.retry_after_s is not None:
        response.headers["Retry-After"] = str(error.retry_after_s)
    response.headers.update(error.headers)
    return response


def from_exception(exc: Exception) -> LlmisError:
    """The error that a client sees for an exception; logs what is our own fault."""
    if isinstance(exc, LlmisError):
        return exc
    if isinstance(exc, redis.RedisError | OperationalError):
        _log.warning("Redis does not do its work: %s", exc)
        if _is_full(exc):
            return StorageFull("The queue has no memory left for the request. Please try again.")
        return QueueUnavailable("The queue is not reachable at the moment. Please try again.")
    _log.error("unexpected error", exc_info=exc)
    return InternalError("The server had an error while processing the request.")


def _is_full(exc: Exception) -> bool:
    """Kombu wraps what Redis says."""
    return isinstance(exc, redis.OutOfMemoryError) or isinstance(
        exc.__cause__, redis.OutOfMemoryError
    )


def _on_http_exception(exc: HTTPException) -> Response:
    status = exc.code or 500
    if status == 404:
        return respond(UnknownRoute(f"Unknown request URL: {request.method} {request.path}."))
    if status == 405:
        response = respond(MethodNotAllowed(f"{request.method} is not allowed for {request.path}."))
        response.headers["Allow"] = ", ".join(sorted(getattr(exc, "valid_methods", None) or []))
        return response
    if status == 413:
        return respond(BodyTooLarge("The request body is larger than max_body_bytes allows."))
    if 300 <= status < 400:
        return Response(exc.get_response().get_data(), status, exc.get_headers())
    if status < 500:
        return respond(InvalidRequest(exc.description or exc.name))
    return respond(from_exception(exc))


def _on_queue_error(exc: Exception) -> Response:
    return respond(from_exception(exc))


def _on_unexpected(exc: Exception) -> Response:
    return respond(from_exception(exc))
