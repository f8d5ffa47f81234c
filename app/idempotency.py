"""The header `Idempotency-Key`: a request that is sent again gets the answer of the first one."""

import hashlib
import re

from flask import Flask, Response, g, request

from app import limit_headers, request_log
from app.dispatch import Once, Reading
from app.services import services
from shared import names
from shared.errors import InvalidRequest
from shared.messages import Job

_VISIBLE = re.compile(r"[\x21-\x7e]{1,255}")


def register(app: Flask) -> None:
    app.after_request(_tell_replay)


def note(body: bytes) -> None:
    """Remember what the request at hand asks for; its body is not kept."""
    if "Idempotency-Key" in request.headers:
        g.fingerprint = digest(request.path.encode() + b"\0" + body)


def admit(job: Job) -> Reading:
    """Queue the job of the request at hand and read it, or read that of its first sending.

    Raises InvalidRequest, IdempotencyKeyReused, TooManyRequests, redis.RedisError.
    """
    key = request.headers.get("Idempotency-Key")
    same = None if key is None else once(key, g.fingerprint)
    reading = services().dispatcher.submit(job, g.principal.limits, same)
    request_log.name_request(reading.job.id)
    g.is_replay = not reading.is_first
    if reading.is_first:
        limit_headers.note(reading.allowances, reading.ahead)
    return reading


def once(key: str, fingerprint: str) -> Once:
    """Raises InvalidRequest."""
    if _VISIBLE.fullmatch(key) is None:
        raise InvalidRequest(
            "Idempotency-Key must be 1 to 255 visible ASCII characters.", param="Idempotency-Key"
        )
    return Once(names.idempotency_key(g.principal.owner, digest(key.encode())), fingerprint)


def digest(payload: bytes) -> str:
    return hashlib.sha256(payload).hexdigest()


def _tell_replay(response: Response) -> Response:
    if g.get("is_replay"):
        response.headers["Idempotent-Replayed"] = "true"
    return response
