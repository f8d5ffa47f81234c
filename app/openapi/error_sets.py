"""Errors and headers that several routes declare, in `documented`."""

from shared import errors

LOAD_ERRORS = (
    errors.InvalidModel,
    errors.InsufficientMemory,
    errors.TooManyModels,
    errors.ModelFailed,
    errors.ReplicaLost,
)
"""Why a load fails: the answer to a request that waits for its end."""
RUN_ERRORS = (
    *LOAD_ERRORS,
    errors.ContextLengthExceeded,
    errors.ContentFiltered,
    errors.Quarantined,
    errors.ModelNotFound,
    errors.RequestCancelled,
    errors.DeadlineExceeded,
    errors.EngineError,
    errors.QueueTimeout,
    errors.QueueUnavailable,
    errors.GoingAway,
    errors.Unavailable,
    errors.ModelUnloaded,
)
"""How a job can fail before its first token."""
JOB_ERRORS = (
    *RUN_ERRORS,
    errors.TooManyRequests,
    errors.TooManyTokens,
    errors.QueueFull,
    errors.StorageFull,
    errors.IdempotencyKeyReused,
)
"""How a request that becomes a job can fail."""
CHANGE_ERRORS = (
    errors.Conflict,
    errors.NoNode,
    errors.QueueUnavailable,
    errors.Unavailable,
    errors.UnsupportedMediaType,
)
"""How an administrative command can be refused."""
IDEMPOTENCY_KEY = {
    "Idempotency-Key": "Up to 255 visible characters. The same request, sent again with the same "
    "key, gets the answer of the first one, with the header `Idempotent-Replayed`."
}
LAST_EVENT_ID = {
    "Last-Event-ID": "The id of the last event of a stream that broke off: the answer is what "
    "comes after it."
}
