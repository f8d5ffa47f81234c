"""The errors a client can see. One class is one status, one type and one code.

    LlmisError
    ├── InvalidRequest            400 invalid_request_error
    │   ├── ContextLengthExceeded 400 … code context_length_exceeded
    │   ├── ContentFiltered       400 … code content_filter
    │   ├── Quarantined           400 … code request_quarantined
    │   ├── Unauthorized          401 … code invalid_api_key
    │   ├── Forbidden             403 … code insufficient_scope
    │   ├── ForbiddenOrigin       403 … code origin_not_allowed
    │   ├── ForbiddenHost         403 … code host_not_allowed
    │   ├── NotFound              404 … code not_found
    │   │   ├── ModelNotFound     404 … code model_not_found
    │   │   └── UnknownRoute      404 … code unknown_url
    │   ├── MethodNotAllowed      405 … code method_not_allowed
    │   ├── RequestTooSlow        408 … code request_timeout
    │   ├── Conflict              409 … code conflict
    │   ├── BodyTooLarge          413 … code body_too_large
    │   ├── UnsupportedMediaType  415 … code unsupported_media_type
    │   ├── InvalidModel          422 … code invalid_model
    │   └── IdempotencyKeyReused  422 … code idempotency_key_reused
    ├── TooManyRequests           429 requests … code rate_limit_exceeded
    │   ├── TooManyTokens         429 tokens … code rate_limit_exceeded
    │   └── QueueFull             429 … code queue_full
    ├── RequestCancelled          499 … code request_cancelled
    ├── InternalError             500 server_error
    │   └── EngineError           500 … code engine_error
    ├── Unavailable               503 service_unavailable
    │   ├── GoingAway             503 … code going_away
    │   ├── ReplicaLost           503 … code replica_lost
    │   ├── QueueUnavailable      503 … code queue_unavailable
    │   ├── StorageFull           503 … code storage_full
    │   ├── QueueTimeout          503 … code queue_timeout
    │   ├── NoNode                503 … code no_node
    │   ├── ModelUnloaded         503 … code model_unloaded
    │   └── ModelFailed           503 … code model_failed
    ├── DeadlineExceeded          504 timeout_error
    └── InsufficientResources     507 insufficient_resources
        ├── InsufficientMemory    507 … code insufficient_memory
        └── TooManyModels         507 … code too_many_models

Code raises; `app.errors` alone shapes the HTTP body. Between processes an error travels as
the fields of a `messages.Failed` event, never as a pickled exception.
"""

from collections.abc import Iterator
from typing import Any, ClassVar, Self


class LlmisError(Exception):
    """Base of all errors with an HTTP status and an OpenAI error body."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str | None] = None

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s: int | None = None
        self.headers: dict[str, str] = {}
        """More headers of an HTTP answer. They do not travel."""

    def body(self) -> dict[str, Any]:
        """The error in OpenAI's shape: `{"error": {message, type, param, code}}`."""
        return error_body(self.message, self.type, self.param, self.code)


def error_body(message: str, type_: str, param: str | None, code: str | None) -> dict[str, Any]:
    return {"error": {"message": message, "type": type_, "param": param, "code": code}}


class InvalidRequest(LlmisError):
    status = 400
    type = "invalid_request_error"


class ContextLengthExceeded(InvalidRequest):
    code = "context_length_exceeded"


class ContentFiltered(InvalidRequest):
    """A rule of the denylist refuses the prompt."""

    code = "content_filter"

    @classmethod
    def by(cls, rule: str, param: str) -> Self:
        return cls(f"The filter refuses this text (rule {rule!r}).", param=param)


class Quarantined(InvalidRequest):
    """The request was running at two failures of the engine: it is not run a third time.

    A 400, because clients repeat by themselves what ends with a 500.
    """

    code = "request_quarantined"


class Unauthorized(InvalidRequest):
    """No API key or token has come, or none that holds."""

    status = 401
    code = "invalid_api_key"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message, param=param)
        self.headers = {"WWW-Authenticate": "Bearer"}


class Forbidden(InvalidRequest):
    """The API key holds, but not for this."""

    status = 403
    code = "insufficient_scope"


class ForbiddenOrigin(InvalidRequest):
    """The request comes from a web page that may not use the service: see `cors_origins`."""

    status = 403
    code = "origin_not_allowed"


class ForbiddenHost(InvalidRequest):
    """The request was sent to a host name that is none of the service's: see `allowed_hosts`."""

    status = 403
    code = "host_not_allowed"


class NotFound(InvalidRequest):
    status = 404
    code = "not_found"


class ModelNotFound(NotFound):
    code = "model_not_found"


class UnknownRoute(NotFound):
    code = "unknown_url"


class MethodNotAllowed(InvalidRequest):
    status = 405
    code = "method_not_allowed"


class RequestTooSlow(InvalidRequest):
    """The body came more slowly than `read_timeout_s` allows."""

    status = 408
    code = "request_timeout"


class BodyTooLarge(InvalidRequest):
    status = 413
    code = "body_too_large"


class Conflict(InvalidRequest):
    status = 409
    code = "conflict"


class UnsupportedMediaType(InvalidRequest):
    status = 415
    code = "unsupported_media_type"


class InvalidModel(InvalidRequest):
    """A model file that is missing, damaged, or of a kind that no engine here runs."""

    status = 422
    code = "invalid_model"


class IdempotencyKeyReused(InvalidRequest):
    """The `Idempotency-Key` was sent before, with another path or body."""

    status = 422
    code = "idempotency_key_reused"


class TooManyRequests(LlmisError):
    """The key's requests a minute, or the ones that it may have open or waiting, are used up."""

    status = 429
    type = "requests"
    code = "rate_limit_exceeded"

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: int = 1) -> None:
        super().__init__(message, param=param)
        self.retry_after_s = retry_after_s


class TooManyTokens(TooManyRequests):
    """The key's tokens a minute are used up."""

    type = "tokens"


class QueueFull(TooManyRequests):
    """As many requests wait for the model as may."""

    code = "queue_full"


class RequestCancelled(LlmisError):
    status = 499
    type = "request_cancelled"
    code = "request_cancelled"


class InternalError(LlmisError):
    pass


class EngineError(InternalError):
    code = "engine_error"


class Unavailable(LlmisError):
    status = 503
    type = "service_unavailable"

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: int = 5) -> None:
        super().__init__(message, param=param)
        self.retry_after_s = retry_after_s


class GoingAway(Unavailable):
    """The web process ends, the job does not: a client that comes back finds it."""

    code = "going_away"


class ReplicaLost(Unavailable):
    code = "replica_lost"


class QueueUnavailable(Unavailable):
    code = "queue_unavailable"


class StorageFull(Unavailable):
    """Redis has no memory left for new requests."""

    code = "storage_full"


class QueueTimeout(Unavailable):
    """The request waited in the queue for as long as it may."""

    code = "queue_timeout"


class NoNode(Unavailable):
    code = "no_node"


class ModelUnloaded(Unavailable):
    code = "model_unloaded"


class ModelFailed(Unavailable):
    code = "model_failed"


class DeadlineExceeded(LlmisError):
    status = 504
    type = "timeout_error"
    code = "deadline_exceeded"


class InsufficientResources(LlmisError):
    status = 507
    type = "insufficient_resources"

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: int = 30) -> None:
        super().__init__(message, param=param)
        self.retry_after_s = retry_after_s
        self.may_come = False
        """Whether there is room once models go that are only busy, or new. Does not travel."""


class InsufficientMemory(InsufficientResources):
    code = "insufficient_memory"


class TooManyModels(InsufficientResources):
    code = "too_many_models"


def rebuild(status: int, code: str | None, message: str, param: str | None) -> LlmisError:
    """Make an error again from what travelled of it."""
    for error_class in _subclasses(LlmisError):
        if error_class.status == status and error_class.code == code:
            return error_class(message, param=param)
    return InternalError(message, param=param)


def _subclasses(error_class: type[LlmisError]) -> Iterator[type[LlmisError]]:
    for subclass in error_class.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)


class SettingsError(Exception):
    """A setting has a bad value. Not seen by clients: it stops the start of a process."""
