"""The finish reason of answers with tool calls."""

import json

import pytest

from shared.wire.events import Delta, FinishReason
from shared.wire.job import Tool
from tests.support.chat_jobs import chat_job
from worker.chat.output_parser import OutputParser
from worker.chat.tool_call_formats import CallSyntax
from worker.replica.attempt import Attempt
from worker.replica.event_builder import events_of
from worker.sequence import StepResult
from worker.text_parts import Parts

_CALL = '<tool_call>\n{"name": "f", "arguments": {"a": True, "b": [1,],}}\n</tool_call>'


def _deltas(text: str, reason: FinishReason) -> list[Delta]:
    job = chat_job(tools=[Tool("f")])
    attempt = Attempt(job, 0, [])
    attempt.parsers[0] = OutputParser(("j", 0), calls=CallSyntax.HERMES, tools=job.tools)
    steps = [StepResult(("j", 0), char, [7]) for char in text]
    steps.append(StepResult(("j", 0), "", [8], finish_reason=reason))
    events = [event for step in steps for _, event in events_of([(attempt, step)])]
    return [event for event in events if isinstance(event, Delta)]


def _arguments(deltas: list[Delta]) -> str:
    return "".join(piece.arguments for delta in deltas for piece in delta.tool_calls)


def _content(deltas: list[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


def test_a_whole_call_ends_as_tool_calls() -> None:
    deltas = _deltas(_CALL, FinishReason.STOP)
    assert deltas[-1].finish_reason is FinishReason.TOOL_CALLS
    assert json.loads(_arguments(deltas)) == {"a": True, "b": [1]}


@pytest.mark.parametrize("reason", [r for r in FinishReason if r is not FinishReason.TOOL_CALLS])
def test_only_calls_with_whole_arguments_end_as_tool_calls(reason: FinishReason) -> None:
    """Wherever a stop string, `max_tokens` or the denylist ends the text."""
    for end in range(len(_CALL)):
        deltas = _deltas(_CALL[:end], reason)
        last = deltas[-1].finish_reason
        if last is not FinishReason.TOOL_CALLS:
            assert last is reason
            continue
        assert reason is FinishReason.STOP
        assert json.loads(_arguments(deltas)) == {"a": True, "b": [1]}


def test_arguments_that_are_no_json_end_as_stop() -> None:
    deltas = _deltas(_CALL.replace("True", '"x" y'), FinishReason.STOP)
    assert deltas[-1].finish_reason is FinishReason.STOP
    assert _content(deltas) == ""


def test_a_call_that_is_cut_before_its_arguments_shows_nothing() -> None:
    begin = _CALL[: _CALL.index("{", 20)]
    for end in range(2, len(begin)):
        deltas = _deltas(begin[:end], FinishReason.LENGTH)
        assert (_content(deltas), _arguments(deltas)) == ("", ""), begin[:end]
        assert deltas[-1].finish_reason is FinishReason.LENGTH


def test_whole_calls_before_an_error_in_the_parser_count() -> None:
    class Breaking(OutputParser):
        def push(self, text: str) -> Parts:
            if text == "!":
                raise ValueError("broken")
            return super().push(text)

    job = chat_job(tools=[Tool("f")])
    for said, right in ((_CALL, FinishReason.TOOL_CALLS), (_CALL[:50], FinishReason.STOP)):
        attempt = Attempt(job, 0, [])
        attempt.parsers[0] = Breaking(("j", 0), calls=CallSyntax.HERMES, tools=job.tools)
        steps = [StepResult(("j", 0), said, [7]), StepResult(("j", 0), "!", [7])]
        steps.append(StepResult(("j", 0), "", [8], finish_reason=FinishReason.STOP))
        events = [event for step in steps for _, event in events_of([(attempt, step)])]
        assert isinstance(events[-1], Delta) and events[-1].finish_reason is right
