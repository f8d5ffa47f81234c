"""The formatter of a job's endpoint, and the answer that is made as a whole. Pure: no input or
output."""

from typing import Any

from app.formats.base import Formatter
from app.formats.chat import ChatFormatter
from app.formats.choice import Choice
from app.formats.completion import CompletionFormatter
from app.formats.objects import AnswerObject
from shared.wire.events import Delta, Echo, Event, Finished
from shared.wire.job import Job, JobKind


class WholeAnswer:
    """The answer of a chat or completion. See `app.api.json_response.Answer`."""

    def __init__(self, job: Job) -> None:
        self._formatter = formatter_for(job)
        self._choices = [Choice() for _ in range(self._formatter.num_choices)]

    def take(self, event: Event) -> None:
        if isinstance(event, (Delta, Echo)):
            self._choices[event.index].add(event)

    def body(self, finished: Finished) -> AnswerObject[Any, Any]:
        return self._formatter.whole(self._choices, finished)


def formatter_for(job: Job) -> Formatter[Any]:
    assert job.kind in (JobKind.CHAT, JobKind.COMPLETION), "the others have no chunks"
    return ChatFormatter(job) if job.kind is JobKind.CHAT else CompletionFormatter(job)
