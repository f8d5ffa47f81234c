"""Which web pages may use the service: the settings `cors_origins` and `allowed_hosts`.

A browser sends requests of any page to any address that it can reach, also to this machine's
loopback. The header `Origin` names the page; the header `Host` exposes a page whose host name was
pointed at this machine (DNS rebinding). Clients other than browsers send no `Origin` and are not
affected.
"""

import ipaddress
from functools import lru_cache
from urllib.parse import urlsplit

from flask import Flask, Response, request

from app.auth.scopes import PROBES, WEBSOCKET
from app.jobs.prompt_filter import HEADER as FILTER_HEADER
from app.jobs.rate_limit_headers import PARTS, RATES, header
from app.services import services
from shared.errors import ForbiddenHost, ForbiddenOrigin
from shared.settings.fields import Settings
from shared.settings.load import is_loopback

_RATE_LIMIT_HEADERS = [header(part, rate) for part in PARTS for rate in RATES]
_OWN_HEADERS = ["retry-after", "idempotent-replayed", "x-llmis-queue-position", FILTER_HEADER]
_EXPOSED = ", ".join(["x-request-id", *_OWN_HEADERS, *_RATE_LIMIT_HEADERS])
_PREFLIGHT = {"Access-Control-Allow-Methods": "GET, HEAD, POST", "Access-Control-Max-Age": "7200"}


def register(app: Flask) -> None:
    """Before authentication: a preflight has no key."""
    app.before_request(_check)
    app.after_request(_send_cors_headers)


def is_allowed_origin() -> bool:
    """Whether the request at hand comes from a page of this service, from a page that
    `cors_origins` names, or from no page."""
    origin = request.headers.get("Origin")
    if origin is None:
        # A browser sends at least one of the two headers with every request that changes anything.
        is_of_other_page = request.headers.get("Sec-Fetch-Site") in ("cross-site", "same-site")
        return not is_of_other_page or request.method in ("GET", "HEAD", "OPTIONS")
    return _is_same_origin(origin) or _is_named(origin)


def _check() -> Response | None:
    """Answer a preflight. Raises ForbiddenHost, ForbiddenOrigin."""
    host = _host()
    # A load balancer uses a host name of its own.
    if request.path not in PROBES and not is_allowed_host(host, services().settings):
        raise ForbiddenHost(
            f"The host name {host[:200]!r} is not one of this service's. "
            "Name it in the setting allowed_hosts."
        )
    if request.path == WEBSOCKET:
        return None  # rejects a page itself, with a close code
    if not is_allowed_origin():
        origin = request.headers.get("Origin", "")[:200]
        raise ForbiddenOrigin(
            f"Web pages of the origin {origin!r} may not use this service. "
            "Name it in the setting cors_origins."
        )
    if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
        return Response(status=204, headers=_PREFLIGHT)
    return None


def _send_cors_headers(response: Response) -> Response:
    origins = services().settings.cors_origins
    if not origins:
        return response
    response.vary.add("Origin")
    origin = request.headers.get("Origin")
    if origin is None or not _is_named(origin):
        return response
    response.headers["Access-Control-Allow-Origin"] = "*" if "*" in origins else origin
    response.headers["Access-Control-Expose-Headers"] = _EXPOSED
    asked = request.headers.get("Access-Control-Request-Headers")
    if request.method == "OPTIONS" and asked:
        # Any header: there are no cookies, and a browser never adds a key by itself.
        response.headers["Access-Control-Allow-Headers"] = asked
        response.vary.add("Access-Control-Request-Headers")
    return response


def _host() -> str:
    """As the client sent it: `request.host` is empty for names with an underscore."""
    host: str = request.environ.get("HTTP_HOST") or request.host
    return host


def _is_same_origin(origin: str) -> bool:
    try:
        return urlsplit(origin).netloc.lower() == _host().lower()
    except ValueError:
        return False


def _is_named(origin: str) -> bool:
    origins = services().settings.cors_origins
    return "*" in origins or origin.lower() in origins


def is_allowed_host(host: str, settings: Settings) -> bool:
    """Whether a request with this header `Host` is answered. Addresses always are: only a name can
    be pointed elsewhere. With `auth` names are not checked: such a page has no key."""
    return _is_allowed_host(host, settings.host, tuple(settings.allowed_hosts), settings.auth)


@lru_cache(maxsize=256)
def _is_allowed_host(host: str, own_host: str, names: tuple[str, ...], has_auth: bool) -> bool:
    """Remembered: the clients of a service send one name or two."""
    is_checked = not has_auth and (names or is_loopback(own_host))
    if not is_checked or "*" in names:
        return True
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    is_local = name == "localhost" or name.endswith(".localhost")
    return is_local or _is_address(name) or name in (own_host.lower(), *names)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
