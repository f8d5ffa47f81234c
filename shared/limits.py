"""Limits of API keys, the token charge of a request, and what is left of a limit.

The buckets of the rate limits are in Redis: `shared/lua/admit.lua` takes from them.
"""

import math
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct

from shared.settings.fields import Limit, Settings
from shared.wire.job import Job, JobKind

_BYTES_PER_TOKEN = 4
_UNKNOWN_COMPLETION_TOKENS = 256
"""Charge of a choice without `max_tokens` until it ends."""
_TAKES_NO_SLOT = (JobKind.TOKENIZE, JobKind.DETOKENIZE, JobKind.TOKENIZER_INFO)


class Limits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The limits of one key; 0 = no limit."""

    requests_per_minute: Limit = 0
    tokens_per_minute: Limit = 0
    """Prompt and completion together."""
    max_open_requests: Limit = 0
    """Waiting and running at the same time."""
    max_waiting_requests: Limit = 0


def limits_of(settings: Settings, own: Mapping[str, Any] | None = None) -> Limits:
    """The limits of a key: its own ones, and those of the settings for the rest. Raises
    msgspec.ValidationError if an own one is not valid."""
    values = {name: getattr(settings, name) for name in Limits.__struct_fields__}
    return msgspec.convert({**values, **own}, Limits) if own else Limits(**values)


def charge_of(job: Job, limits: Limits) -> int:
    """Estimate the tokens that admission charges for a job; the charge is corrected when it ends.
    At most the tokens of one minute: with a higher charge the job could never be admitted."""
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
    """What a key has left of one limit per minute."""

    limit: int
    """Per minute."""
    remaining: int
    reset_s: float
    """Seconds until `remaining` equals `limit` again."""


class Allowances(Struct, frozen=True, kw_only=True):
    """None = the key has no such limit."""

    requests: Allowance | None = None
    tokens: Allowance | None = None
