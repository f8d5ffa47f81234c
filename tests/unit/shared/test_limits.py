"""Limits of keys, and what admission charges for a job."""

from typing import Any

import msgspec
import pytest

from shared.limits import Limits, charge_of, limits_of
from shared.settings.fields import Settings
from shared.wire.job import ChatMessage, Job, JobKind

_HIGH_LIMIT = Limits(tokens_per_minute=1_000_000)


def _job(kind: JobKind = JobKind.COMPLETION, **fields: Any) -> Job:
    return Job(id="r", model="m", kind=kind, created_at=0, deadline_at=0, **fields)


@pytest.mark.parametrize(
    ("job", "expected"),
    [
        (_job(prompts=["12345678"], max_tokens=10), 2 + 10),
        (_job(prompts=["123456789"], max_tokens=0), 3),
        (_job(prompts=["é" * 4], max_tokens=0), 2),
        (_job(prompts=[[1, 2, 3]], max_tokens=0), 3),
        (_job(prompts=["a", "b"], max_tokens=10, num_choices=3), 1 + 1 + 2 * 3 * 10),
        (_job(prompts=["a"]), 1 + 256),
        (_job(JobKind.CHAT, messages=[ChatMessage("user", "1234")], max_tokens=5), 1 + 5),
        (_job(JobKind.EMBEDDING, prompts=["1234", "5678"]), 2),
        (_job(JobKind.TOKENIZE, prompts=["1234"]), 0),
        (_job(JobKind.DETOKENIZE, prompts=[[1]]), 0),
    ],
)
def test_the_charge_of_a_job(job: Job, expected: int) -> None:
    assert charge_of(job, _HIGH_LIMIT) == expected


def test_a_charge_never_exceeds_the_tokens_of_a_minute() -> None:
    job = _job(prompts=["a" * 4000], max_tokens=1000)
    assert charge_of(job, Limits(tokens_per_minute=7)) == 7
    assert charge_of(job, Limits()) == 0


def test_own_limits_of_a_key_override_those_of_the_settings() -> None:
    settings = Settings(requests_per_minute=5, tokens_per_minute=6, max_open_requests=7)
    assert limits_of(settings) == Limits(
        requests_per_minute=5, tokens_per_minute=6, max_open_requests=7
    )
    assert limits_of(settings, {"requests_per_minute": 0, "max_waiting_requests": 1}) == Limits(
        tokens_per_minute=6, max_open_requests=7, max_waiting_requests=1
    )


@pytest.mark.parametrize(
    "own", [{"requests_per_minute": -1}, {"tokens_per_minute": 10**12 + 1}, {"unknown": 1}]
)
def test_a_limit_that_is_not_valid_is_an_error(own: dict[str, int]) -> None:
    with pytest.raises(msgspec.ValidationError):
        limits_of(Settings(), own)
