"""The headers that keep a browser from doing more with an answer than it is there for."""

from flask import Flask, Response

_ALWAYS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Frame-Options": "DENY",
}
"""`Cross-Origin-Resource-Policy` does not concern what CORS allows."""
_PAGE = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
"""A page runs and loads what this service itself has, and nothing else."""
_OTHER = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}
"""Static files have a `Cache-Control` of their own, and keep it."""


def register(app: Flask) -> None:
    app.after_request(_send)


def _send(response: Response) -> Response:
    for name, value in (_ALWAYS | (_PAGE if response.mimetype == "text/html" else _OTHER)).items():
        response.headers.setdefault(name, value)
    return response
