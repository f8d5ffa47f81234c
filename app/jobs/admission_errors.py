"""Errors of requests that were not admitted, with the time after which to retry."""

import math

from app.jobs.rate_limit_headers import headers_of
from shared.errors import LlmisError, QueueFull, ReplicaLost, TooManyRequests, TooManyTokens
from shared.limits import Limits
from shared.queue.job_queue import Admission, RejectReason
from shared.wire.records import ReplicaRecord, ReplicaState

MAX_RETRY_S = 60
"""OpenAI's clients ignore a longer `Retry-After`."""
_UNKNOWN_SLOT_S = 1.0
"""Seconds that a job takes a slot, for a replica that has not finished one yet."""


def rejection_error(
    admission: Admission, limits: Limits, model: str, replicas: list[ReplicaRecord]
) -> LlmisError:
    """`replicas` are the model's. A full queue that no replica takes jobs from is a ReplicaLost."""
    error = _error(admission, limits, model, replicas)
    error.headers = headers_of(admission.allowances)
    return error


def _error(
    admission: Admission, limits: Limits, model: str, replicas: list[ReplicaRecord]
) -> LlmisError:
    reason, rate_s = admission.reject_reason, retry_after_s(admission.retry_s)
    if reason is RejectReason.REQUESTS:
        return TooManyRequests(
            f"Rate limit reached: {limits.requests_per_minute} requests per minute. "
            f"Please try again in {rate_s} s.",
            retry_after_s=rate_s,
        )
    if reason is RejectReason.TOKENS:
        return TooManyTokens(
            f"Rate limit reached: {limits.tokens_per_minute} tokens per minute, prompt and "
            f"max_tokens together. Please try again in {rate_s} s.",
            retry_after_s=rate_s,
        )
    if reason is RejectReason.QUEUE:
        return _queue_full(admission.ahead, model, replicas)
    state = "open" if reason is RejectReason.OPEN else "waiting"
    return TooManyRequests(
        f"Requests of this key that are {state}: {admission.ahead}. "
        "More are not allowed at a time.",
        retry_after_s=retry_after_s(expected_wait_s(replicas, 0)),
    )


def _queue_full(depth: int, model: str, replicas: list[ReplicaRecord]) -> LlmisError:
    if not any(replica.state is not ReplicaState.DRAINING for replica in replicas):
        return ReplicaLost(
            f"No replica of the model {model!r} is running at the moment, and its queue is full.",
            retry_after_s=MAX_RETRY_S,
        )
    return QueueFull(
        f"{depth} requests wait for the model {model!r}: its queue is full.",
        retry_after_s=retry_after_s(expected_wait_s(replicas, depth)),
    )


def expected_wait_s(replicas: list[ReplicaRecord], num_ahead: int) -> float:
    """Seconds until a request starts that has `num_ahead` before it, at the recent rate of finished
    jobs; inf when no replica is ready."""
    ready = [replica for replica in replicas if replica.state is ReplicaState.READY]
    jobs_per_s = sum(replica.slots / (replica.slot_s or _UNKNOWN_SLOT_S) for replica in ready)
    return (num_ahead + 1) / jobs_per_s if jobs_per_s else math.inf


def retry_after_s(wait_s: float) -> int:
    """Whole seconds, 1 to MAX_RETRY_S, for the header `Retry-After`."""
    return max(1, math.ceil(min(wait_s, MAX_RETRY_S)))
