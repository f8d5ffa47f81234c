"""A job whose answer is one whole body: made, queued, read to its end.

Runs in the request's greenlet. Whatever way the client leaves, a job that has not ended is
cancelled.
"""

import time
from typing import Any, Protocol

import msgspec
from flask import Response, g, request

from app import limit_headers
from app.disconnect import DisconnectWatcher
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
    return Job(
        id=g.request_id,
        model=model,
        kind=kind,
        prompts=prompts,
        reply_channel=shared.dispatcher.reply_channel,
        owner=g.owner,
        created_at=time.time(),
        deadline_at=shared.dispatcher.deadline(),
        **fields,
    )


def run(job: Job, answer: Answer) -> Response:
    """Queue a job and respond with its answer. Raises LlmisError."""
    shared = services()
    reading = shared.dispatcher.submit(job)
    limit_headers.note(reading.allowances, reading.ahead)
    g.request_id = reading.job.id
    watcher = DisconnectWatcher(request.environ, reading.stream.close)
    relay = Relay(shared.relay, reading)
    error: BaseException | None = None
    try:
        body = _read(relay, answer)
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


def _read(relay: Relay, answer: Answer) -> Any:
    for events in relay.events([]):
        for event in events:
            if isinstance(event, Finished):
                return answer.body(event)
            answer.take(event)
    raise AssertionError("a stream ends with Finished or raises")
