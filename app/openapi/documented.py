"""What a route takes and answers, declared beside its view; `app.openapi.document` reads it.

Declarations only: nothing here runs while a request is served.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import KW_ONLY, dataclass, field
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
    """Declares a route, as a decorator of its view. `app.openapi.document` adds path, method and
    parameters from its rule; the view's docstring becomes the operation's summary and description.
    """

    answer: Any
    """Type of the answer with status 200; str for plain text."""
    _: KW_ONLY
    also: Mapping[int, Any] = field(default_factory=dict)
    """Status → type of an answer with another status."""
    body: Any = None
    example: Mapping[str, Any] | None = None
    """A body to try the route with."""
    stream: Any = None
    """Type of one event, where the answer can be a stream of them."""
    errors: Iterable[type[LlmisError]] = ()
    """Of this route; `all_errors` adds the common ones."""
    media_type: str = JSON
    parameters: Mapping[str, str] = field(default_factory=dict)
    """What the variable parts of the path are."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Headers that the route reads, besides `x-request-id`."""

    def __call__(self, view: View) -> View:
        documents[view] = self
        return view

    @property
    def answers(self) -> dict[int, Any]:
        return {200: self.answer, **self.also}

    @property
    def all_errors(self) -> frozenset[type[LlmisError]]:
        """With those of every route, and of every route with a body."""
        common = {InternalError, ForbiddenHost, ForbiddenOrigin}
        if self.body:
            common |= {InvalidRequest, BodyTooLarge, RequestTooSlow, UnsupportedMediaType}
        return frozenset({*common, *self.errors})


documented = RouteDocument
documents: dict[Callable[..., Any], RouteDocument] = {}
"""By view."""
