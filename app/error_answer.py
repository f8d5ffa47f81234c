"""OpenAI's error body as a shape: what `shared.errors.error_body` makes."""

from msgspec import Struct


class ErrorObject(Struct, frozen=True):
    message: str
    """What was given, what the limit is, and what to do."""
    type: str
    param: str | None
    """The parameter that is wrong."""
    code: str | None


class ErrorAnswer(Struct, frozen=True):
    """Every error of the service, of every route."""

    error: ErrorObject
