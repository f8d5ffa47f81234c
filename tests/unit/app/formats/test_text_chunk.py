"""A delta of text alone is written from a template: the bytes are those of its object."""

from typing import Any

import msgspec
import pytest

from app.formats.base import Formatter
from app.formats.formatter import formatter_for
from shared.wire.events import Delta, Echo, Filtered, FinishReason, ToolCallDelta
from shared.wire.job import AnswerOptions, Job, JobKind

_KINDS = [JobKind.CHAT, JobKind.COMPLETION]
_TEXTS = [" a", "a", '"', '\\"}', "\x00\n\x7f", "\u2028\x85", "ü€😀", "<script>", '"a"' * 1000]
_ANSWERS = [
    AnswerOptions(),
    AnswerOptions(wants_usage=True),
    AnswerOptions(tier="default", metadata={"a": "b"}),
]


def _formatter(kind: JobKind, **fields: Any) -> Formatter[Any]:
    prompts: list[str | list[int]] = ["x"] if kind is JobKind.COMPLETION else []
    base: dict[str, Any] = {"id": "j", "model": 'm"a"ü', "kind": kind, "prompts": prompts}
    return formatter_for(Job(**(base | {"created_at": 5.5, "deadline_at": 9.0} | fields)))


@pytest.mark.parametrize("kind", _KINDS)
@pytest.mark.parametrize("answer", _ANSWERS)
def test_the_bytes_are_those_of_the_object(kind: JobKind, answer: AnswerOptions) -> None:
    formatter = _formatter(kind, answer=answer, num_choices=3)
    for seq, text in enumerate(_TEXTS):
        delta = Delta(seq, 0, seq % 3, text, [1])
        (chunk,) = formatter.of(delta)
        assert msgspec.json.encode(formatter.text_chunk(delta)) == msgspec.json.encode(chunk)


@pytest.mark.parametrize("kind", _KINDS)
@pytest.mark.parametrize(
    "more",
    [
        {"text": ""},
        {"finish_reason": FinishReason.STOP},
        {"reasoning": "so"},
        {"tool_calls": [ToolCallDelta(0, "c", "f", "{}")]},
    ],
)
def test_a_delta_with_more_than_text_is_none_for_the_template(
    kind: JobKind, more: dict[str, Any]
) -> None:
    delta = msgspec.structs.replace(Delta(0, 0, 0, "a", [1]), **more)
    assert _formatter(kind).text_chunk(delta) is None


@pytest.mark.parametrize("kind", _KINDS)
def test_a_job_with_log_probabilities_has_no_template(kind: JobKind) -> None:
    delta = Delta(0, 0, 0, "a", [1], filtered=Filtered(1))
    assert _formatter(kind, logprobs=0).text_chunk(delta) is None


def test_text_that_waits_for_its_prompt_is_held_back() -> None:
    formatter = _formatter(JobKind.COMPLETION, echo=True)
    delta = Delta(0, 0, 0, "a", [1])
    assert formatter.text_chunk(delta) is None
    assert formatter.of(delta) == []
    assert len(formatter.of(Echo(1, 0, 0, "x"))) == 2
    assert formatter.text_chunk(msgspec.structs.replace(delta, seq=2)) is not None
