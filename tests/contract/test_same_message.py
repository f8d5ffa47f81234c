"""One token sequence, one message: streamed or whole, and however it is cut on its way.

From the bytes of the tokens through the engine's text, the publisher's rounds, the parser, what
the web tier joins, to the chunks that a client adds up, against the answer in one piece.
"""

import itertools
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from app.formats.chat import ChatFormatter
from app.formats.choice import Choice
from shared.wire.events import (
    Delta,
    Event,
    Finished,
    FinishReason,
    Logprob,
    Timings,
    TokenLogprobs,
    Usage,
    join,
)
from shared.wire.job import AnswerOptions, Tool
from tests.support.chat_jobs import chat_job
from worker.chat.output_parser import OutputParser, Reasoning
from worker.chat.tool_call_formats import CallSyntax
from worker.replica.attempt import Attempt
from worker.replica.event_builder import events_of
from worker.sequence import StepResult
from worker.text.assembler import TextAssembler

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
_OPTIONS = AnswerOptions(wants_logprobs=True)
_FINISHED = Finished(0, 0, Usage(1, 1), Timings(0, 0, 0))
_NUM_CHOICES = 2
_END = TokenLogprobs(Logprob(1, -2.0, b"", b"<end>"), [], is_end=True)


def _cut(data: Any, cuts: list[int]) -> list[Any]:
    """Pieces of bytes or of a list, cut at places given modulo the length."""
    places = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    return [data[a:b] for a, b in itertools.pairwise(places)]


def _steps(text: bytes, cuts: list[int], index: int = 0) -> list[StepResult]:
    """What an engine reports of tokens with these bytes."""
    assembler, steps = TextAssembler(_STOP), []
    for piece in _cut(text, cuts):
        logprobs = [TokenLogprobs(Logprob(7, -1.0, piece), [])]
        steps.append(StepResult(("j", index), assembler.push(piece), [7], logprobs=logprobs))
        if assembler.is_stopped:
            break
    else:
        steps.append(StepResult(("j", index), "", [1], logprobs=[_END]))
    steps[-1].text += assembler.finish()
    steps[-1].finish_reason = FinishReason.STOP
    return steps


def _mixed(choices: list[list[StepResult]]) -> list[StepResult]:
    """As the choices of a job take turns in a batch."""
    return [step for turn in itertools.zip_longest(*choices) for step in turn if step]


def _events(steps: list[StepResult], round_cuts: list[int]) -> list[Event]:
    job = chat_job(tools=[Tool("f"), Tool("g")], num_choices=_NUM_CHOICES, logprobs=0)
    run = Attempt(job, 0, [])
    for index in range(_NUM_CHOICES):
        run.parsers[index] = OutputParser(
            (job.id, index),
            calls=CallSyntax.HERMES,
            tools=job.tools,
            reasoning=Reasoning("<think>", "</think>"),
            starts_in_reasoning=False,
            is_parallel=True,
        )
    rounds = _cut(steps, round_cuts)
    return [event for part in rounds for _, event in events_of([(run, step) for step in part])]


def _shape() -> ChatFormatter:
    return ChatFormatter(chat_job(num_choices=_NUM_CHOICES, logprobs=0, answer=_OPTIONS))


def _whole(events: list[Event]) -> list[Any]:
    choices = [Choice() for _ in range(_NUM_CHOICES)]
    for event in events:
        assert isinstance(event, Delta)
        choices[event.index].add(event)
    answer = _shape().whole(choices, _FINISHED)
    return [_told(choice) for choice in msgspec.to_builtins(answer)["choices"]]


def _told(choice: Any) -> dict[str, Any]:
    """What counts of a whole answer's choice, its tool calls flattened."""
    message = choice["message"]
    calls = [
        {"id": call["id"], "type": call["type"], "name": call["function"]["name"],
         "text": call["function"]["arguments"]}
        for call in message.get("tool_calls", [])
    ]  # fmt: skip
    return {
        "content": message["content"] or "",
        "reasoning": message.get("reasoning_content", ""),
        "calls": calls,
        "reason": choice["finish_reason"],
        "logprobs": choice["logprobs"]["content"],
    }


def _added_up(events: list[Event]) -> list[Any]:
    """The same, as a client makes it of the chunks."""
    shape = _shape()
    chunks = shape.opening() + [chunk for event in events for chunk in shape.of(event)]
    made: list[dict[str, Any]] = [
        {"content": "", "reasoning": "", "calls": [], "reason": None, "logprobs": []}
        for _ in range(_NUM_CHOICES)
    ]
    for chunk in msgspec.to_builtins(chunks):
        (choice,) = chunk["choices"]
        delta, found = choice["delta"], made[choice["index"]]
        found["reason"] = choice["finish_reason"] or found["reason"]
        found["content"] += delta.get("content", "")
        found["reasoning"] += delta.get("reasoning_content", "")
        found["logprobs"] += (choice["logprobs"] or {"content": []})["content"]
        for piece in delta.get("tool_calls", []):
            calls = found["calls"]
            if piece["index"] == len(calls):
                calls.append({"id": piece["id"], "type": piece["type"], "name": "", "text": ""})
            call = calls[piece["index"]]
            call["name"] += piece["function"].get("name", "")
            call["text"] += piece["function"]["arguments"]
    return made


def _messages(choices: list[Any]) -> list[Any]:
    """Without what depends on where the tokens are cut."""
    return [{**choice, "logprobs": None} for choice in choices]


_CUTS = st.lists(st.integers(0, 400), max_size=60)
_TEXT = st.sampled_from(_TEXTS)


@settings(max_examples=120, deadline=None)
@given(st.tuples(_TEXT, _TEXT), st.tuples(_CUTS, _CUTS), _CUTS, _CUTS)
def test_the_message_is_the_same_however_it_is_cut(
    texts: tuple[str, str], token_cuts: tuple[list[int], list[int]],
    round_cuts: list[int], join_cuts: list[int],
) -> None:  # fmt: skip
    payloads = [text.encode("latin-1" if "\xf0" in text else "utf-8") for text in texts]
    expected = _whole(_events(_mixed([_steps(p, [], i) for i, p in enumerate(payloads)]), []))
    steps = [
        _steps(p, cuts, i) for i, (p, cuts) in enumerate(zip(payloads, token_cuts, strict=True))
    ]
    drawn = [[entry for step in made for entry in step.logprobs] for made in steps]
    events = _events(_mixed(steps), round_cuts)
    whole = _whole(events)
    assert _messages(whole) == _messages(expected)
    joined = [event for part in _cut(events, join_cuts) for event in join(part)]
    assert _whole(joined) == _added_up(events) == _added_up(joined) == whole
    for choice, entries in zip(whole, drawn, strict=True):
        pieces = [bytes(entry["bytes"]) for entry in choice["logprobs"]]
        assert pieces == [entry.chosen.piece for entry in entries if not entry.is_end]
