"""Headers of every response, also of errors: those that tell a client about its request, which
views and other middleware add, and those that limit what a browser does with an answer."""

from collections.abc import Mapping

from flask import Flask, Response, g

_ALWAYS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Frame-Options": "DENY",
}
"""`Cross-Origin-Resource-Policy` does not affect requests that CORS allows."""
_PAGE = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
"""A page runs and loads only what this service serves."""
_OTHER = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}
"""Static files keep their own `Cache-Control`."""


_OF_PAGES, _OF_OTHERS = tuple((_ALWAYS | _PAGE).items()), tuple((_ALWAYS | _OTHER).items())


def register(app: Flask) -> None:
    app.after_request(_send)


def add(headers: Mapping[str, str]) -> None:
    """Send these with the response to the request at hand."""
    g.setdefault("response_headers", {}).update(headers)


def _send(response: Response) -> Response:
    response.headers["x-request-id"] = g.request_id
    response.headers.update(g.get("response_headers", {}))
    present = {name.lower() for name, _ in response.headers}
    for name, value in _OF_PAGES if response.mimetype == "text/html" else _OF_OTHERS:
        if name.lower() not in present:
            response.headers.add(name, value)
    return response
