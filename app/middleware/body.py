"""Reads the body of the request at hand. A view calls it: most requests have none to read."""

from flask import g, request
from gunicorn.http.errors import ParseException
from werkzeug.exceptions import ClientDisconnected

from app.jobs.idempotency import digest
from shared.errors import InvalidRequest, RequestTooSlow, UnsupportedMediaType


def read_body() -> bytes:
    """Read the body, and keep its digest in `g.fingerprint` if the request may be sent again.
    Raises UnsupportedMediaType for a compressed body, RequestTooSlow, InvalidRequest for a broken
    chunk or a client that left."""
    encoding = request.headers.get("Content-Encoding", "identity")
    if encoding.lower() != "identity":
        raise UnsupportedMediaType("Compressed request bodies are not read: send it as it is.")
    try:
        body = request.get_data(cache=False)
        # Werkzeug cuts a chunked body off at its limit, and raises only when more is read.
        request.stream.read(1)
    except (OSError, ParseException, ClientDisconnected) as exc:
        if request.environ["gunicorn.socket"].is_too_slow:
            raise RequestTooSlow(
                "The body came too slowly: see the setting read_timeout_s."
            ) from exc
        raise InvalidRequest(f"The body could not be read: {exc}") from exc
    if "Idempotency-Key" in request.headers:
        g.fingerprint = digest(request.path.encode() + b"\0" + body)
    return body
