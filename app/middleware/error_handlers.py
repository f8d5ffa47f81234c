"""Every exception of a view or a hook becomes a response here, in OpenAI's shape."""

import msgspec
from flask import Flask, Response, g, request
from werkzeug.exceptions import HTTPException

from app.errors import from_exception
from app.openapi.documented import JSON
from shared.errors import BodyTooLarge, InvalidRequest, LlmisError, MethodNotAllowed, UnknownRoute


def register(app: Flask) -> None:
    app.register_error_handler(HTTPException, _on_http_exception)
    app.register_error_handler(Exception, lambda exc: _respond(from_exception(exc)))


def _on_http_exception(exc: HTTPException) -> Response:
    status = exc.code or 500
    if status == 404:
        hint = " It has an empty segment: '//'." if "//" in request.path else ""
        return _respond(
            UnknownRoute(f"Unknown request URL: {request.method} {request.path}.{hint}")
        )
    if status == 405:
        error = MethodNotAllowed(f"{request.method} is not allowed for {request.path}.")
        error.headers = {"Allow": ", ".join(sorted(getattr(exc, "valid_methods", None) or []))}
        return _respond(error)
    if status == 413:
        return _respond(BodyTooLarge("The request body is larger than max_body_bytes allows."))
    if status < 500:
        return _respond(InvalidRequest(exc.description or exc.name))
    return _respond(from_exception(exc))


def _respond(error: LlmisError) -> Response:
    g.record.fail(error)
    response = Response(msgspec.json.encode(error.body()), status=error.status, content_type=JSON)
    if error.retry_after_s is not None:
        response.headers["Retry-After"] = str(error.retry_after_s)
    response.headers.update(error.headers)
    return response
