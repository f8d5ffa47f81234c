"""The errors that clients see. One class is one status, type and code; docs/protocol.md has a
table of them, made from these classes.

Code raises; `app.errors` alone shapes the HTTP body. Between processes an error travels as
the fields of a `shared.wire.events.Failed`, never as a pickled exception.
"""

from collections.abc import Iterator
from typing import Any, ClassVar, Self

from msgspec import Struct


class LlmisError(Exception):
    """Base of all errors with an HTTP status and an OpenAI error body."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str | None] = None
    default_retry_after_s: ClassVar[int | None] = None
    """When a client may retry; None = it would get the same error again."""

    def __init_subclass__(
        cls,
        *,
        status: int | None = None,
        type: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        """What is not given is inherited."""
        cls.status = status or cls.status
        cls.type = type or cls.type
        cls.code = code or cls.code
        cls.default_retry_after_s = retry_after_s or cls.default_retry_after_s

    def __init__(
        self, message: str, *, param: str | None = None, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s or self.default_retry_after_s
        self.headers: dict[str, str] = {}
        """More headers of the HTTP answer. They do not travel."""

    def body(self) -> dict[str, Any]:
        """The error in OpenAI's shape: `{"error": {message, type, param, code}}`."""
        return error_body(self.message, self.type, self.param, self.code)


def error_body(message: str, type_: str, param: str | None, code: str | None) -> dict[str, Any]:
    return {"error": {"message": message, "type": type_, "param": param, "code": code}}


class InvalidRequest(LlmisError, status=400, type="invalid_request_error"):
    """A parameter, the body or the URL is not valid; `param` names it."""


class ContextLengthExceeded(InvalidRequest, code="context_length_exceeded"):
    """The prompt leaves no room in the context of the model, or is over `max_prompt_tokens`."""


class ContentFiltered(InvalidRequest, code="content_filter"):
    """A rule of the denylist refuses the prompt."""

    @classmethod
    def by(cls, rule: str, param: str) -> Self:
        return cls(f"The filter refuses this text (rule {rule!r}).", param=param)


class Quarantined(InvalidRequest, code="request_quarantined"):
    """The request was running at two failures of the engine, so it is not run a third time.

    A 400, because clients retry after a 500 by themselves.
    """


class Unauthorized(InvalidRequest, status=401, code="invalid_api_key"):
    """The API key or token is missing or not valid."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message, param=param)
        self.headers = {"WWW-Authenticate": "Bearer"}


class Forbidden(InvalidRequest, status=403, code="insufficient_scope"):
    """The API key is valid, but its scope does not allow the route."""


class ForbiddenOrigin(InvalidRequest, status=403, code="origin_not_allowed"):
    """The web page that sent the request is not in `cors_origins`."""


class ForbiddenHost(InvalidRequest, status=403, code="host_not_allowed"):
    """The `Host` of the request is not in `allowed_hosts`."""


class NotFound(InvalidRequest, status=404, code="not_found"):
    """There is no such request, operation, replica or node."""


class ModelNotFound(NotFound, code="model_not_found"):
    """The service offers no model of that name."""


class UnknownRoute(NotFound, code="unknown_url"):
    """There is no such URL."""


class MethodNotAllowed(InvalidRequest, status=405, code="method_not_allowed"):
    """The URL exists, but not with this HTTP method."""


class RequestTooSlow(InvalidRequest, status=408, code="request_timeout"):
    """The body arrived more slowly than `read_timeout_s` allows."""


class BodyTooLarge(InvalidRequest, status=413, code="body_too_large"):
    """The body is larger than `max_body_bytes`."""


class Conflict(InvalidRequest, status=409, code="conflict"):
    """The operation contradicts the state of the model, or another operation under way."""


class UnsupportedMediaType(InvalidRequest, status=415, code="unsupported_media_type"):
    """The body is compressed, or its `Content-Type` is not the one of the route."""


class InvalidModel(InvalidRequest, status=422, code="invalid_model"):
    """The model file is missing, damaged, or of a kind that no engine here runs."""


class IdempotencyKeyReused(InvalidRequest, status=422, code="idempotency_key_reused"):
    """The `Idempotency-Key` was sent before with another path or body."""


class TooManyRequests(
    LlmisError, status=429, type="requests", code="rate_limit_exceeded", retry_after_s=1
):
    """The API key has used up its requests a minute, or its open or waiting requests."""


class TooManyTokens(TooManyRequests, type="tokens"):
    """The API key has used up its tokens a minute.

    It never travels: the web process that raises it answers the request. So `rebuild` need not
    tell it from TooManyRequests, which has the same status and code.
    """


class QueueFull(TooManyRequests, code="queue_full"):
    """The queue of the model holds `max_queue_length` requests."""


class RequestCancelled(LlmisError, status=499, type="request_cancelled", code="request_cancelled"):
    """The request was cancelled."""

    def __init__(
        self, message: str = "The request was cancelled.", *, param: str | None = None
    ) -> None:
        super().__init__(message, param=param)


class InternalError(LlmisError):
    """The service failed; the log has the reason."""


class EngineError(InternalError, code="engine_error"):
    """The engine failed while it ran the request."""


class Unavailable(LlmisError, status=503, type="service_unavailable", retry_after_s=5):
    """The service cannot run the request now; it may later."""


class GoingAway(Unavailable, code="going_away"):
    """The web process stops. The job goes on: the client can resume it."""


class ReplicaLost(Unavailable, code="replica_lost"):
    """The model has lost its replica, and no other one took the request in time."""


class QueueUnavailable(Unavailable, code="queue_unavailable"):
    """Redis does not answer."""


class StorageFull(Unavailable, code="storage_full"):
    """Redis has no memory or no disk left for the request."""


class QueueTimeout(Unavailable, code="queue_timeout"):
    """The request waited in the queue for `max_queue_s`."""


class NoNode(Unavailable, code="no_node"):
    """No agent is running that could load or unload the model."""


class ModelUnloaded(Unavailable, code="model_unloaded"):
    """The model is being unloaded, or was unloaded while the request waited or ran."""


class ModelFailed(Unavailable, code="model_failed"):
    """The model could not be loaded; `GET /admin/models` has the reason."""


class DeadlineExceeded(LlmisError, status=504, type="timeout_error", code="deadline_exceeded"):
    """The request took longer than `request_timeout_s`."""


class InsufficientResources(
    LlmisError, status=507, type="insufficient_resources", retry_after_s=30
):
    """There is no room for the model."""

    may_come = False
    """Whether models that are busy or new will free enough room. Does not travel."""


class InsufficientMemory(InsufficientResources, code="insufficient_memory"):
    """The model needs more memory than is free or can be freed."""


class TooManyModels(InsufficientResources, code="too_many_models"):
    """As many models are loaded as `max_loaded_models` allows."""


def rebuild(status: int, code: str | None, message: str, param: str | None) -> LlmisError:
    """Make an error from the fields that travel between processes; InternalError if no class has
    this status and code."""
    for error_class in all_errors():
        if error_class.status == status and error_class.code == code:
            return error_class(message, param=param)
    return InternalError(message, param=param)


def all_errors(base: type[LlmisError] = LlmisError) -> Iterator[type[LlmisError]]:
    """Yield the classes below `base`, each before its own subclasses."""
    for subclass in base.__subclasses__():
        yield subclass
        yield from all_errors(subclass)


class SettingsError(Exception):
    """A setting has a bad value. It stops the start of a process; no client sees it."""


class ErrorObject(Struct, frozen=True):
    message: str
    """What was given, what the limit is, and what to do."""
    type: str
    param: str | None
    """The parameter that is not valid."""
    code: str | None


class ErrorAnswer(Struct, frozen=True):
    """The body of every error, on every route."""

    error: ErrorObject
