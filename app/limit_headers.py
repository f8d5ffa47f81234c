"""The headers that tell a client of its limits, as OpenAI words them, and of its place."""

from flask import Flask, Response, g

from shared.limits import Allowances


def register(app: Flask) -> None:
    app.after_request(_send)


def note(allowances: Allowances, ahead: int) -> None:
    """Let the answer of the request at hand carry what its admission has found. `ahead`: requests
    that were before it in the queue."""
    g.limit_headers = headers_of(allowances) | {"x-llmis-queue-position": str(ahead)}


def headers_of(allowances: Allowances) -> dict[str, str]:
    headers = {}
    for name in ("requests", "tokens"):
        allowance = getattr(allowances, name)
        if allowance is not None:
            headers[f"x-ratelimit-limit-{name}"] = str(allowance.limit)
            headers[f"x-ratelimit-remaining-{name}"] = str(allowance.remaining)
            headers[f"x-ratelimit-reset-{name}"] = duration(allowance.reset_s)
    return headers


def duration(seconds: float) -> str:
    """Word a time as OpenAI does: 20ms, 1.5s, 6m0s."""
    seconds = round(seconds, 3)
    if seconds < 1:
        return f"{round(1000 * seconds)}ms"
    minutes, rest = divmod(seconds, 60)
    whole = f"{rest:.3f}".rstrip("0").rstrip(".")
    return f"{int(minutes)}m{whole}s" if minutes else f"{whole}s"


def _send(response: Response) -> Response:
    response.headers.update(g.get("limit_headers", {}))
    return response
