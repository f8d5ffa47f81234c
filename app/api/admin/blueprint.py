"""What the blueprints under /admin share: the prefix and the guard."""

from flask import Blueprint, request

from app.openapi.documented import JSON
from shared.errors import UnsupportedMediaType


def guarded(name: str) -> Blueprint:
    """A blueprint whose POSTs must bring JSON: a page of another origin cannot send that without a
    preflight, which CORS refuses."""
    made = Blueprint(name, __name__, url_prefix="/admin")
    made.before_request(_check_media_type)
    return made


def _check_media_type() -> None:
    if request.method == "POST" and request.mimetype != JSON:
        raise UnsupportedMediaType("The header Content-Type must be application/json.")
