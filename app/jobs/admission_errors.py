"""Why a request was not admitted, in words for its client, and when to come again."""

import math

from app.limit_headers import headers_of
from shared.errors import LlmisError, QueueFull, ReplicaLost, TooManyRequests, TooManyTokens
from shared.job_queue import Admission, Refusal
from shared.limits import Limits
from shared.messages import ReplicaRecord, ReplicaState

MAX_RETRY_S = 60
"""OpenAI's clients do not heed a `Retry-After` beyond it."""
_UNKNOWN_SLOT_S = 1.0
"""Of a replica that has not ended a job yet."""


def refusal_error(
    admission: Admission, limits: Limits, model: str, replicas: list[ReplicaRecord]
) -> LlmisError:
    """`replicas` are the model's. A queue that is full and has none is a ReplicaLost."""
    error = _error(admission, limits, model, replicas)
    error.headers = headers_of(admission.allowances)
    return error


def _error(
    admission: Admission, limits: Limits, model: str, replicas: list[ReplicaRecord]
) -> LlmisError:
    refusal, rate_s = admission.refusal, retry_after_s(admission.retry_s)
    if refusal is Refusal.REQUESTS:
        return TooManyRequests(
            f"Rate limit reached: {limits.requests_per_minute} requests per minute. "
            f"Please try again in {rate_s} s.",
            retry_after_s=rate_s,
        )
    if refusal is Refusal.TOKENS:
        return TooManyTokens(
            f"Rate limit reached: {limits.tokens_per_minute} tokens per minute, prompt and "
            f"max_tokens together. Please try again in {rate_s} s.",
            retry_after_s=rate_s,
        )
    if refusal is Refusal.QUEUE:
        return _queue_full(admission.ahead, model, replicas)
    what = "open" if refusal is Refusal.OPEN else "waiting"
    return TooManyRequests(
        f"Requests of this key that are {what}: {admission.ahead}. More are not allowed at a time.",
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
    """Seconds until a request begins that has so many before it, as fast as jobs end of late;
    inf when no replica is ready."""
    ready = [replica for replica in replicas if replica.state is ReplicaState.READY]
    jobs_per_s = sum(replica.slots / (replica.slot_s or _UNKNOWN_SLOT_S) for replica in ready)
    return (num_ahead + 1) / jobs_per_s if jobs_per_s else math.inf


def retry_after_s(wait_s: float) -> int:
    """Whole seconds for the header `Retry-After`."""
    return max(1, math.ceil(min(wait_s, MAX_RETRY_S)))
