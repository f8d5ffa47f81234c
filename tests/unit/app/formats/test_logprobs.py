"""Log probabilities as OpenAI words them, and echoed prompts, whole and streamed."""

import math
from typing import Any

import msgspec
import pytest

from app.formats.choice import Choice
from app.formats.completion import CompletionFormatter
from app.formats.logprobs import CompletionLogprobsWriter, chat_logprobs, prompt_logprobs
from shared.wire.events import (
    Delta,
    Echo,
    Finished,
    FinishReason,
    Logprob,
    Timings,
    TokenLogprobs,
    Usage,
)
from shared.wire.job import AnswerOptions
from tests.support.jobs import completion_job

_FINISHED = Finished(9, 0, Usage(1, 1), Timings(0, 0, 0))


def _token(text: str | bytes, *top: Logprob, logprob: float = -1.0) -> TokenLogprobs:
    piece = text.encode() if isinstance(text, str) else text
    return TokenLogprobs(Logprob(5, logprob, piece), list(top))


_END = TokenLogprobs(
    Logprob(2, -0.5, b"", b"</s>"), [Logprob(2, -0.5, b"", b"</s>"), Logprob(5, -3.0, b"a")], True
)


# -- words -----------------------------------------------------------------------------------


def test_a_completion_shows_its_end_by_its_name() -> None:
    written = CompletionLogprobsWriter().write([_token("hi"), _END])
    assert written.tokens == ["hi", "</s>"]
    assert written.token_logprobs == [-1.0, -0.5]
    assert written.text_offset == [0, 2]
    assert written.top_logprobs[1] == {"</s>": -0.5, "a": -3.0}


def test_a_message_has_no_end_but_may_have_other_control_tokens() -> None:
    inner = TokenLogprobs(Logprob(7, -1.0, b"", b"<mark>"), [])
    made = chat_logprobs([_token("hi"), inner, _END]).content
    assert [(token.token, token.bytes) for token in made] == [("hi", [104, 105]), ("<mark>", [])]


def test_an_end_that_was_not_drawn_is_an_alternative() -> None:
    made = chat_logprobs([_token("a", Logprob(2, -0.7, b"", b"</s>"))]).content
    assert [(top.token, top.bytes) for top in made[0].top_logprobs] == [("</s>", [])]


def test_the_chosen_token_is_always_among_the_alternatives() -> None:
    top = [Logprob(8, -0.1, b"b"), Logprob(9, -0.2, b"c")]
    written = CompletionLogprobsWriter().write([_token("a", *top), _token("x")])
    assert written.top_logprobs == [{"b": -0.1, "c": -0.2, "a": -1.0}, {"x": -1.0}]


def test_of_tokens_with_one_text_the_most_probable_counts() -> None:
    top = [Logprob(8, -0.1, b"b"), Logprob(9, -0.2, b"b"), Logprob(10, -0.3, b"b")]
    written = CompletionLogprobsWriter().write([_token("b", *top, logprob=-0.3)])
    assert written.top_logprobs == [{"b": -0.1}]
    assert written.token_logprobs == [-0.3]


@pytest.mark.parametrize("value", [math.nan, -math.inf, -1e5])
def test_a_logprob_is_always_a_number(value: float) -> None:
    token = _token("a", Logprob(8, value, b"b"), logprob=value)
    written = CompletionLogprobsWriter().write([token])
    assert (written.token_logprobs, written.top_logprobs) == ([-9999], [{"a": -9999, "b": -9999}])
    (made,) = chat_logprobs([token]).content
    assert (made.logprob, made.top_logprobs[0].logprob) == (-9999, -9999)


# -- offsets of an echoed prompt -------------------------------------------------------------

_BOS = TokenLogprobs(Logprob(1, 0.0, b"", b"<s>"), [])


@pytest.mark.parametrize(
    ("prompt", "text", "pieces", "expected"),
    [
        ("17 18", "17 18", ["17", " 18"], [0, 0, 2]),
        ("17 18", "17 18", [" 17", " 18"], [0, 0, 2]),  # SentencePiece puts a space in front
        ("1", "1", [" ", "1"], [0, 0, 0]),
        ([1, 8, 9], "<s> 17 18", [" 17", " 18"], [0, 3, 6]),
        ("€a", "€a", [b"\xe2\x82", b"\xac", "a"], [0, 0, 0, 1]),
    ],
)
def test_an_echoed_prompt_has_the_offsets_of_its_text(
    prompt: str | list[int], text: str, pieces: list[str | bytes], expected: list[int]
) -> None:
    echo = Echo(0, 0, 0, text, [_BOS, *map(_token, pieces)])
    written = prompt_logprobs(prompt, echo)
    assert written.text_offset == expected
    assert written.token_logprobs[0] is None and written.top_logprobs[0] is None
    assert written.tokens[0] == "<s>"


# -- prompts are echoed once, to all of their choices ----------------------------------------


def _shape(prompts: list[str], n: int, logprobs: int | None = 0) -> CompletionFormatter:
    options = AnswerOptions(wants_logprobs=logprobs is not None, num_wanted=n)
    job = completion_job(
        prompts=list(prompts), num_choices=n, echo=True, logprobs=logprobs, answer=options
    )
    return CompletionFormatter(job)


def _echo(index: int, text: str) -> Echo:
    return Echo(0, 0, index, text, [_BOS, _token(text)])


def _delta(index: int, text: str, reason: FinishReason | None = None) -> Delta:
    return Delta(0, 0, index, text, [5], reason, logprobs=[_token(text)])


_STOP = FinishReason.STOP
_ECHOES = [_echo(0, "one"), _echo(3, "three")]
_DELTAS = [[_delta(i, "a"), _delta(i, str(i)), _delta(i, "z", _STOP)] for i in range(6)]


def _added_up(shape: CompletionFormatter, events: list[Delta | Echo]) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = [{"text": "", "finish_reason": None} for _ in range(6)]
    for chunk in msgspec.to_builtins([c for event in events for c in shape.of(event)]):
        (choice,) = chunk["choices"]
        found = made[choice["index"]]
        assert found["finish_reason"] is None, "nothing comes after the end"
        found["text"] += choice["text"]
        found["finish_reason"] = choice["finish_reason"]
        for name, values in (choice["logprobs"] or {}).items():
            found[name] = found.get(name, []) + values
    return made


def _whole(shape: CompletionFormatter, events: list[Delta | Echo]) -> list[dict[str, Any]]:
    choices = [Choice() for _ in range(6)]
    for event in events:
        choices[event.index].add(event)
    answer = msgspec.to_builtins(shape.whole(choices, _FINISHED))
    return [
        {name: choice[name] for name in ("text", "finish_reason")} | (choice["logprobs"] or {})
        for choice in answer["choices"]
    ]


@pytest.mark.parametrize("logprobs", [None, 0])
@pytest.mark.parametrize("late", range(10))
def test_a_choice_may_go_on_before_its_prompt_is_echoed(late: int, logprobs: int | None) -> None:
    """The first choice of a prompt reads more slowly than the others: it scores the prompt."""
    others = [delta for i in (1, 2, 4, 5) for delta in _DELTAS[i]]
    events: list[Delta | Echo] = [
        *others[:late], _ECHOES[1], *others[late:10], _ECHOES[0], *others[10:],
        *_DELTAS[3], *_DELTAS[0],
    ]  # fmt: skip
    whole = _whole(_shape(["one", "three"], 3, logprobs), events)
    assert _added_up(_shape(["one", "three"], 3, logprobs), events) == whole
    assert [choice["text"] for choice in whole] == [
        "onea0z", "onea1z", "onea2z", "threea3z", "threea4z", "threea5z",
    ]  # fmt: skip
    if logprobs is not None:
        assert whole[5]["tokens"] == ["<s>", "three", "a", "5", "z"]
        assert whole[5]["text_offset"] == [0, 0, 5, 6, 7]
        assert whole[5]["token_logprobs"] == [None, -1, -1, -1, -1]
