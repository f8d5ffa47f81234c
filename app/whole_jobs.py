"""A job whose answer is one whole body: made, queued, read to its end.

Runs in the request's greenlet.
"""

import time
from collections.abc import Iterable
from typing import Any, Protocol

import msgspec
from flask import Response, g, request

from app.disconnect import DisconnectWatcher
from app.dispatch import Reading
from app.filtering import check_prompt
from app.job_stream import ClientGone
from app.jobs import check_model
from app.relay import Relay
from app.services import services
from shared.messages import Event, Finished, Job, JobKind


class Answer(Protocol):
    """Takes the events of a job and words the answer. Both methods may raise LlmisError."""

    def take(self, event: Event) -> None: ...

    def body(self, finished: Finished) -> Any:
        """The answer object, after the last event."""


def new_job(model: str, kind: JobKind, prompts: list[str | list[int]], **fields: Any) -> Job:
    """Make a job for the request at hand. Raises LlmisError."""
    check_model(model)
    shared = services()
    shared.usage.note(model)
    job = Job(
        id=g.request_id,
        model=model,
        kind=kind,
        prompts=prompts,
        owner=g.principal.owner,
        created_at=time.time(),
        deadline_at=shared.dispatcher.deadline(),
        **fields,
    )
    g.facts.ask(job)
    check_prompt(job)
    return job


def respond(reading: Reading, answer: Answer) -> Response:
    """Read a job to its end and respond with its answer. Raises LlmisError."""
    watcher = DisconnectWatcher(request.environ, reading.stream.close)
    relay = Relay(services().relay, reading, g.facts)
    error: BaseException | None = None
    try:
        body = body_of(relay.events([]), answer)
    except ClientGone as exc:
        error = exc
        return Response(status=499)  # nobody reads this
    except BaseException as exc:
        error = exc
        raise
    finally:
        watcher.close()
        relay.close(error)
    return Response(msgspec.json.encode(body), content_type="application/json")


def body_of(batches: Iterable[list[Event]], answer: Answer) -> Any:
    """The answer object of a job's events, to the last one."""
    for events in batches:
        for event in events:
            if isinstance(event, Finished):
                return answer.body(event)
            answer.take(event)
    raise AssertionError("a job's events end with Finished or raise")
