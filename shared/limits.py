"""What a key may ask for, and what it has left."""

from msgspec import Struct

from shared.settings import Settings


class Limits(Struct, frozen=True, kw_only=True):
    """0 = no limit."""

    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    """Prompt and completion together."""
    max_open_requests: int = 0
    """Waiting and running at the same time."""
    max_waiting_requests: int = 0


def limits_of(settings: Settings) -> Limits:
    """The limits of a key that has none of its own."""
    return Limits(
        requests_per_minute=settings.requests_per_minute,
        tokens_per_minute=settings.tokens_per_minute,
        max_open_requests=settings.max_open_requests,
        max_waiting_requests=settings.max_waiting_requests,
    )


class Allowance(Struct, frozen=True, kw_only=True):
    """What a key has left of one limit that fills up again."""

    limit: int
    """A minute."""
    remaining: int
    reset_s: float
    """Until it is full again."""


class Allowances(Struct, frozen=True, kw_only=True):
    """None = the key has no such limit."""

    requests: Allowance | None = None
    tokens: Allowance | None = None
