"""What a key may ask for, what a request is charged, and what is left."""

import math

from msgspec import Struct

from shared.messages import Job, JobKind
from shared.settings import Settings

_BYTES_PER_TOKEN = 4
_UNKNOWN_COMPLETION_TOKENS = 256
"""A choice of a request without `max_tokens` is charged with so many until it ends."""
_TAKES_NO_SLOT = (JobKind.TOKENIZE, JobKind.DETOKENIZE)


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


def charge_of(job: Job, limits: Limits) -> int:
    """Tokens that a job takes from its key's minute when it is admitted: an estimate that is set
    right when it ends. Never more than a minute has, or it could not be admitted at all."""
    if not limits.tokens_per_minute or job.kind in _TAKES_NO_SLOT:
        return 0
    prompt_tokens = sum(_num_tokens(message.content) for message in job.messages)
    prompt_tokens += sum(_num_tokens(prompt) for prompt in job.prompts)
    completion_tokens = 0
    if job.kind is not JobKind.EMBEDDING:
        each = _UNKNOWN_COMPLETION_TOKENS if job.max_tokens is None else job.max_tokens
        completion_tokens = each * job.num_choices * max(1, len(job.prompts))
    return min(prompt_tokens + completion_tokens, limits.tokens_per_minute)


def _num_tokens(prompt: str | list[int]) -> int:
    if isinstance(prompt, list):
        return len(prompt)
    return math.ceil(len(prompt.encode("utf-8", "replace")) / _BYTES_PER_TOKEN)


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
