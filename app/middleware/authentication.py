"""Checks the key of every request before its body is read, and leaves its owner in
`g.principal`."""

from flask import Flask, g, request

from app.auth.authenticator import check_scope
from app.auth.scopes import WEBSOCKET, scope_of
from app.services import services


def register(app: Flask) -> None:
    app.before_request(_authenticate)


def _authenticate() -> None:
    """Raises Unauthorized, Forbidden, TooManyRequests."""
    authenticator = services().authenticator
    rule = request.url_rule.rule if request.url_rule else ""
    scope = scope_of(rule)
    header = request.headers.get("Authorization", "")
    # A browser's preflight (OPTIONS) has no key. A WebSocket may bring its key in the first frame.
    is_open = scope is None or request.method == "OPTIONS" or (rule == WEBSOCKET and not header)
    if authenticator.is_on and is_open:
        g.principal = None
        return
    g.principal = authenticator.principal(header, request.remote_addr or "")
    if authenticator.is_on and scope is not None:
        check_scope(g.principal, scope)
