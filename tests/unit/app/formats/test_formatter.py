"""Each endpoint's answers are objects of its own types, whole and streamed."""

from typing import Any

import msgspec
import pytest

from app.formats.formatter import WholeAnswer, formatter_for
from app.formats.objects import ChatCompletion, ChatCompletionChunk, Completion, CompletionChunk
from shared.wire.events import Delta, Event, Finished, FinishReason, Timings, Usage
from shared.wire.job import AnswerOptions, Job, JobKind

_EVENTS: list[Event] = [
    Delta(0, 0, 0, "a", [1]),
    Delta(1, 0, 0, "b", [2], FinishReason.STOP),
    Finished(2, 0, Usage(7, 2, 3), Timings(0.5, 0.25, 2.0)),
]
_TYPES = {
    JobKind.CHAT: (ChatCompletion, ChatCompletionChunk),
    JobKind.COMPLETION: (Completion, CompletionChunk),
}


def _job(kind: JobKind, **answer: Any) -> Job:
    prompts: list[str | list[int]] = ["x"] if kind is JobKind.COMPLETION else []
    options = AnswerOptions(**answer)
    times = {"created_at": 5.5, "deadline_at": 9.0}
    return Job(id="j", model="m", kind=kind, prompts=prompts, answer=options, **times)


def _chunks(job: Job) -> list[ChatCompletionChunk | CompletionChunk]:
    formatter = formatter_for(job)
    return [*formatter.opening(), *(chunk for event in _EVENTS for chunk in formatter.of(event))]


@pytest.mark.parametrize("kind", _TYPES)
def test_answers_decode_as_their_documented_types(kind: JobKind) -> None:
    whole_type, chunk_type = _TYPES[kind]
    job = _job(kind, wants_usage=True, tier="default", metadata={"a": "b"})
    whole = WholeAnswer(job)
    for event in _EVENTS[:-1]:
        whole.take(event)
    body = whole.body(_EVENTS[-1])  # type: ignore[arg-type]
    for made, type_ in [(body, whole_type), *((chunk, chunk_type) for chunk in _chunks(job))]:
        assert type(made) is type_
        assert msgspec.json.decode(msgspec.json.encode(made), type=type_) == made
    assert body.metadata == {"a": "b"}
    assert body.usage is not None and body.usage.total_tokens == 9


def test_the_usage_names_the_tokens_of_the_reasoning_of_a_model_that_reasons() -> None:
    job = _job(JobKind.CHAT, wants_usage=True)
    for counted, expected in ((9, {"reasoning_tokens": 9}), (0, {"reasoning_tokens": 0})):
        end = Finished(2, 0, Usage(7, 12, 3, counted), Timings(0.5, 0.25, 2.0))
        whole = WholeAnswer(job)
        for event in _EVENTS[:-1]:
            whole.take(event)
        (chunk,) = formatter_for(job).of(end)
        for made in (whole.body(end), chunk):
            usage = msgspec.json.decode(msgspec.json.encode(made))["usage"]
            assert usage["completion_tokens_details"] == expected
            assert usage["completion_tokens"] == 12
    assert b"completion_tokens_details" not in msgspec.json.encode(_chunks(job)[-1])


@pytest.mark.parametrize("kind", _TYPES)
def test_the_usage_is_in_the_last_chunk_alone(kind: JobKind) -> None:
    *before, last = _chunks(_job(kind, wants_usage=True))
    assert all(chunk.usage is None and chunk.choices for chunk in before)
    assert last.usage and not last.choices


@pytest.mark.parametrize("kind", _TYPES)
def test_without_the_option_no_chunk_has_a_usage(kind: JobKind) -> None:
    assert all(chunk.usage is msgspec.UNSET and chunk.choices for chunk in _chunks(_job(kind)))
