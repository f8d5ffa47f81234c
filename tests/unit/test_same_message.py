"""One token sequence, one message: streamed or whole, and however it is cut on its way.

From the bytes of the tokens through the engine's text, the publisher's rounds, the parser, what
the web tier joins, to the chunks that a client adds up, against the answer in one piece.
"""

import itertools
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from app.answers import ChatShape
from app.choices import Choice
from app.job_stream import _join
from app.schemas import ChatRequest
from shared.messages import Delta, Event, Finished, FinishReason, Timings, Tool, Usage
from tests.unit.chat_jobs import chat_job
from worker.chat.calls import CallSyntax
from worker.chat.parser import OutputParser, Reasoning
from worker.engines.protocol import StepResult
from worker.events import events_of
from worker.job_run import JobRun
from worker.text import TextAssembler

_TEXTS = [
    'Grüße 😀<tool_call>\n{"name": "f", "arguments": {"a": "€ \\"x\\""}}\n</tool_call>',
    '<think>\nhmm, 12</think>\n\nSo: <tool_call>{"name": "f", "arguments": {}}</tool_call>'
    '\n<tool_call>{"name": "g", "arguments": {"b": [1, 2]}}</tool_call>',
    "<think>only thoughts, cut o",
    "plain text with a <b>tag</b> and {braces} STOP never seen",
    '<tool_call>\n{"name": "f", "arguments": {"a": "unfinis',
    '<tool_call>{"name": STOP',
    "half a character \xf0\x9f and then STO",
]
_STOP = ["STOP", "P n"]
_REQUEST = ChatRequest(model="m", messages=[])
_FINISHED = Finished(0, 0, Usage(1, 1), Timings(0, 0, 0))


def _cut(data: Any, cuts: list[int]) -> list[Any]:
    """Pieces of bytes or of a list, cut at places given modulo the length."""
    places = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    return [data[a:b] for a, b in itertools.pairwise(places)]


def _steps(text: bytes, cuts: list[int]) -> list[StepResult]:
    """What an engine reports of tokens with these bytes."""
    assembler, steps = TextAssembler(_STOP), []
    for piece in _cut(text, cuts):
        steps.append(StepResult(("j", 0), assembler.push(piece), [7]))
        if assembler.is_stopped:
            break
    steps[-1].text += assembler.finish()
    steps[-1].finish_reason = FinishReason.STOP
    return steps


def _events(steps: list[StepResult], round_cuts: list[int]) -> list[Event]:
    job = chat_job(tools=[Tool("f"), Tool("g")])
    run = JobRun(job, 0, [])
    run.parsers[0] = OutputParser(
        (job.id, 0),
        calls=CallSyntax.HERMES,
        tools=job.tools,
        reasoning=Reasoning("<think>", "</think>"),
        starts_in_reasoning=False,
        is_parallel=True,
    )
    rounds = _cut(steps, round_cuts)
    return [event for part in rounds for _, event in events_of([(run, step) for step in part])]


def _whole(events: list[Event]) -> Any:
    choice = Choice()
    for event in events:
        assert isinstance(event, Delta)
        choice.add(event)
    answer = ChatShape(chat_job(), _REQUEST).whole([choice], _FINISHED)
    return msgspec.to_builtins(answer)["choices"][0]


def _added_up(events: list[Event]) -> Any:
    """What a client makes of the chunks."""
    shape = ChatShape(chat_job(), _REQUEST)
    chunks = shape.opening() + [chunk for event in events for chunk in shape.chunks(event)]  # type: ignore[arg-type]
    content, reasoning, reason = "", "", None
    calls: list[dict[str, Any]] = []
    for chunk in msgspec.to_builtins(chunks):
        (choice,) = chunk["choices"]
        delta, reason = choice["delta"], choice["finish_reason"] or reason
        content += delta.get("content", "")
        reasoning += delta.get("reasoning_content", "")
        for piece in delta.get("tool_calls", []):
            if piece["index"] == len(calls):
                calls.append({"id": piece["id"], "type": piece["type"], "name": "", "text": ""})
            call = calls[piece["index"]]
            call["name"] += piece["function"].get("name", "")
            call["text"] += piece["function"]["arguments"]
    return content, reasoning, calls, reason


def _told(choice: Any) -> Any:
    """The same of a whole answer's choice."""
    message = choice["message"]
    calls = [
        {
            "id": call["id"],
            "type": call["type"],
            "name": call["function"]["name"],
            "text": call["function"]["arguments"],
        }
        for call in message.get("tool_calls", [])
    ]
    content, reasoning = message["content"] or "", message.get("reasoning_content", "")
    return content, reasoning, calls, choice["finish_reason"]


_CUTS = st.lists(st.integers(0, 400), max_size=60)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(_TEXTS), _CUTS, _CUTS, _CUTS)
def test_the_message_is_the_same_however_it_is_cut(
    text: str, token_cuts: list[int], round_cuts: list[int], join_cuts: list[int]
) -> None:
    payload = text.encode("latin-1") if "\xf0" in text else text.encode()
    expected = _whole(_events(_steps(payload, []), []))
    events = _events(_steps(payload, token_cuts), round_cuts)
    assert _whole(events) == expected
    joined = [event for part in _cut(events, join_cuts) for event in _join(part)]
    assert _whole(joined) == expected
    assert _added_up(events) == _added_up(joined) == _told(expected)
