"""Which routes are open, and which scope the others need.

A route that is not named here needs a key. Requests that `auth` refuses are not read any further.
"""

from flask import Flask, g, request

from app.auth import check_scope
from app.services import services
from shared.api_keys import Scope

WEBSOCKET = "/v1/ws"
_OPEN_ROUTES = frozenset(
    {
        *("/", "/static/<path:filename>", "/healthz", "/readyz", "/version"),
        *("/docs", "/docs/<any('swagger-ui.css', 'swagger-ui-bundle.js'):name>", "/openapi.json"),
    }
)


def scope_of(rule: str) -> Scope | None:
    """The scope that a route needs; None = it is open."""
    if rule in _OPEN_ROUTES:
        return None
    if rule == "/metrics":
        return Scope.METRICS
    return Scope.ADMIN if rule.startswith("/admin/") else Scope.USER


def register(app: Flask) -> None:
    app.before_request(_authenticate)


def _authenticate() -> None:
    """Raises Unauthorized, Forbidden, TooManyRequests."""
    authenticator = services().authenticator
    rule = request.url_rule.rule if request.url_rule else ""
    scope = scope_of(rule)
    header = request.headers.get("Authorization", "")
    # A browser asks with OPTIONS, and without the key, whether it may send it. A WebSocket may
    # bring the key in its first frame.
    is_open = scope is None or request.method == "OPTIONS" or (rule == WEBSOCKET and not header)
    if authenticator.is_on and is_open:
        g.principal = None
        return
    g.principal = authenticator.principal(header, request.remote_addr or "")
    if authenticator.is_on and scope is not None:
        check_scope(g.principal, scope)
