"""A job's answer as one JSON body. Runs in the request's greenlet."""

from collections.abc import Iterable
from typing import Any, Protocol

import msgspec
from flask import Response

from app.api.disconnect import closed, relay_to_client
from app.errors import ClientGone
from app.jobs.dispatcher import Subscription
from app.openapi.documented import JSON
from shared.wire.events import Event, Finished


class Answer(Protocol):
    """Gathers the events of a job into its answer. Both methods may raise LlmisError."""

    def take(self, event: Event) -> None: ...

    def body(self, finished: Finished) -> Any:
        """The answer object, after the last event."""


def respond(subscription: Subscription, answer: Answer) -> Response:
    """Read a job to its end and respond with its answer. Raises LlmisError."""
    try:
        with relay_to_client(subscription) as relay:
            body = body_of(relay.events([]), answer)
    except ClientGone:
        return closed()
    return of(body)


def of(body: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(body), status, content_type=JSON)


def body_of(batches: Iterable[list[Event]], answer: Answer) -> Any:
    """The answer object of a job's events, up to the last one."""
    for events in batches:
        for event in events:
            if isinstance(event, Finished):
                return answer.body(event)
            answer.take(event)
    raise AssertionError("a job's events end with Finished or raise")
