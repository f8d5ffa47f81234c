"""Why a request was not admitted, in words for its client."""

import math

from shared.errors import LlmisError, TooManyRequests
from shared.job_queue import Admission, Refusal

_WORDS = {
    Refusal.REQUESTS: "The limit of requests per minute is reached.",
    Refusal.TOKENS: "The limit of tokens per minute is reached.",
    Refusal.OPEN: "As many requests as are allowed at the same time are open.",
    Refusal.WAITING: "As many requests as are allowed are waiting.",
    Refusal.QUEUE: "The queue of the model is full.",
}


def refusal_error(admission: Admission) -> LlmisError:
    assert admission.refusal is not None, "admitted jobs are not refused"
    retry_after_s = max(1, math.ceil(admission.retry_s))
    return TooManyRequests(_WORDS[admission.refusal], retry_after_s=retry_after_s)
