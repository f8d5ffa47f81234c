"""What a key may ask for, what a request is charged, and what is left."""

import math
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from shared.messages import Job, JobKind
from shared.settings import Settings

_BYTES_PER_TOKEN = 4
_UNKNOWN_COMPLETION_TOKENS = 256
"""A choice of a request without `max_tokens` is charged with so many until it ends."""
_TAKES_NO_SLOT = (JobKind.TOKENIZE, JobKind.DETOKENIZE)


MAX_LIMIT = 1_000_000_000_000
Limit = Annotated[int, Meta(ge=0, le=MAX_LIMIT)]


class Limits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """0 = no limit."""

    requests_per_minute: Limit = 0
    tokens_per_minute: Limit = 0
    """Prompt and completion together."""
    max_open_requests: Limit = 0
    """Waiting and running at the same time."""
    max_waiting_requests: Limit = 0


def limits_of(settings: Settings, own: Mapping[str, Any] | None = None) -> Limits:
    """The limits of a key: those of the settings where it has none of its own.

    Raises msgspec.ValidationError for what is no limit.
    """
    limits = Limits(
        requests_per_minute=settings.requests_per_minute,
        tokens_per_minute=settings.tokens_per_minute,
        max_open_requests=settings.max_open_requests,
        max_waiting_requests=settings.max_waiting_requests,
    )
    return msgspec.convert({**msgspec.to_builtins(limits), **own}, Limits) if own else limits


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
