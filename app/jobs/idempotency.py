"""The `Idempotency-Key`: a request that is sent again gets the answer of the first one."""

import hashlib
import re

from app.jobs.dispatcher import IdempotencyKey
from shared import names
from shared.errors import InvalidRequest

_VISIBLE = re.compile(r"[\x21-\x7e]{1,255}")


def idempotency_key(key: str, owner: str, fingerprint: str) -> IdempotencyKey:
    """`fingerprint`: `digest` of path and body. Raises InvalidRequest."""
    if _VISIBLE.fullmatch(key) is None:
        raise InvalidRequest(
            "Idempotency-Key must be 1 to 255 visible ASCII characters.", param="Idempotency-Key"
        )
    return IdempotencyKey(names.idempotency_key(owner, digest(key.encode())), fingerprint)


def digest(payload: bytes) -> str:
    return hashlib.sha256(payload).hexdigest()
