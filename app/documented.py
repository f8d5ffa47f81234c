"""What a route takes and answers, declared beside its view; `app.openapi` makes the document of it.

Declarations only: nothing here runs while a request is served.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from shared.errors import (
    BodyTooLarge,
    ForbiddenHost,
    ForbiddenOrigin,
    InternalError,
    InvalidRequest,
    LlmisError,
    RequestTooSlow,
    UnsupportedMediaType,
)

View = TypeVar("View", bound=Callable[..., Any])
JSON = "application/json"


@dataclass(frozen=True, slots=True)
class RouteDocument:
    """One route. `app.openapi` adds what follows from its rule: path, method, parameters."""

    answers: Mapping[int, Any]
    """Status → type of the answer; str for plain text."""
    body: Any = None
    example: Mapping[str, Any] | None = None
    """A body to try the route with."""
    stream: Any = None
    """Type of one event, where the answer can be a stream of them."""
    errors: frozenset[type[LlmisError]] = frozenset()
    media_type: str = JSON
    parameters: Mapping[str, str] = field(default_factory=dict)
    """What the variable parts of the path are."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Headers that the route goes by, besides `x-request-id`."""


_documents: dict[Callable[..., Any], RouteDocument] = {}


def documented(
    answer: Any,
    *,
    body: Any = None,
    example: Mapping[str, Any] | None = None,
    stream: Any = None,
    also: Mapping[int, Any] | None = None,
    errors: Iterable[type[LlmisError]] = (),
    media_type: str = JSON,
    parameters: Mapping[str, str] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Callable[[View], View]:
    """Declare a view's body, its answer with status 200, the ones with others, and its errors.

    The errors that any route has, or any with a body, need not be named. The view's docstring
    becomes the operation's.
    """
    common = {InternalError, ForbiddenHost, ForbiddenOrigin}
    if body:
        common |= {InvalidRequest, BodyTooLarge, RequestTooSlow, UnsupportedMediaType}
    document = RouteDocument(
        answers={200: answer, **(also or {})},
        body=body,
        example=example,
        stream=stream,
        errors=frozenset(errors) | common,
        media_type=media_type,
        parameters=parameters or {},
        headers=headers or {},
    )

    def note(view: View) -> View:
        _documents[view] = document
        return view

    return note


def document_of(view: Callable[..., Any]) -> RouteDocument | None:
    return _documents.get(view)


def documented_views() -> list[Callable[..., Any]]:
    return list(_documents)
