"""Stop strings count in the content alone, however the text is cut into tokens."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.denylist.denylist import Denylist
from shared.denylist.rule import Rule
from shared.wire.events import FinishReason
from shared.wire.job import Sampling, Tool
from tests.support.chat_jobs import chat_job
from tests.support.scripted_engine import ByteVocabulary
from worker.chat.conversation import TemplateStyle
from worker.chat.format import ChatFormat
from worker.chat.output_parser import OutputParser, Reasoning
from worker.chat.tool_call_formats import CallSyntax
from worker.sequence import Sequence, StepResult
from worker.text.assembler import TextAssembler
from worker.text.completion import SequenceCompletion
from worker.text.content import ContentReader
from worker.text_parts import Parts

_END, _TURN, _OPEN = 300, 301, 302
_VOCABULARY = ByteVocabulary({"</s>": _END, "<|im_end|>": _TURN, "<tool_call>": _OPEN})
_KEY = ("j", 0)
_THINK = Reasoning("<think>", "</think>")
_CALL = '<tool_call>\n{"name": "f", "arguments": {"a": "x\\n STOP y",\n"b": 1}}\n</tool_call>'
_ARGUMENTS = '{"a": "x\\n STOP y",\n"b": 1}'


class _Pieces(ByteVocabulary):
    """The tokens from 400 on are pieces of a text."""

    def __init__(self, pieces: list[bytes]) -> None:
        super().__init__(_VOCABULARY.control_tokens)
        self._pieces = pieces

    def piece(self, token: int) -> bytes:
        return self._pieces[token - 400] if token >= 400 else super().piece(token)


def _new_parser(**options: Any) -> Callable[[], OutputParser]:
    options = {"calls": CallSyntax.HERMES, "reasoning": _THINK, **options}
    return lambda: OutputParser(_KEY, tools=[Tool("f")], **options)


def _sequence(stop: list[str], **fields: Any) -> Sequence:
    parser = fields.pop("parser", {})
    sequence = Sequence(_KEY, [1], 1000, Sampling(), stop, _new_parser(**parser))
    for name, value in fields.items():
        setattr(sequence, name, value)
    return sequence


class _Answer:
    """What a client receives, and what the engine has drawn for it."""

    def __init__(
        self, sequence: Sequence, tokens: list[int], vocabulary: ByteVocabulary = _VOCABULARY
    ) -> None:
        completion = SequenceCompletion(vocabulary, sequence, frozenset({_END}))
        assert sequence.new_parser is not None
        parser, parts = sequence.new_parser(), Parts()
        assert parser is not None
        self.steps: list[StepResult] = []
        for token in [*tokens, _END]:
            self.steps.append(StepResult(_KEY))
            completion.accept([token], self.steps[-1])
            parts = parts + parser.push(self.steps[-1].text)
            if self.steps[-1].finish_reason is not None:
                break
        parts = parts + parser.finish()
        self.num_tokens = completion.num_tokens
        self.reason = self.steps[-1].finish_reason
        self.reasoning_tokens = self.steps[-1].reasoning_tokens
        self.content, self.reasoning = parts.content, parts.reasoning
        self.calls = ["".join(c.arguments for c in parts.tool_calls if c.index == i)
                      for i in sorted({c.index for c in parts.tool_calls})]  # fmt: skip


def _answer(text: str, stop: list[str], **fields: Any) -> _Answer:
    return _Answer(_sequence(stop, **fields), list(text.encode()))


@pytest.mark.parametrize("stop", ["STOP", "\n", '"', "a", "}", "tool_call", "<", "</tool_call>"])
@pytest.mark.parametrize("forced", [False, True])
def test_a_stop_string_inside_a_tool_call_is_no_stop_string(stop: str, forced: bool) -> None:
    answer = _answer(_CALL, [stop], parser={"is_forced": forced})
    assert (answer.content, answer.calls) == ("", [_ARGUMENTS])
    assert answer.num_tokens == len(_CALL) + 1, "up to the end token"


@pytest.mark.parametrize("stop", ["think", "STOP", "\n", "a", "<", "</think>", " so"])
def test_a_stop_string_inside_the_reasoning_is_no_stop_string(stop: str) -> None:
    text = "<think>\nso a < b: STOP,\n\nSTOP?\n</think>\n\nYes."
    answer = _answer(text, [stop])
    assert (answer.reasoning, answer.content) == ("so a < b: STOP,\n\nSTOP?", "Yes.")


def test_the_first_stop_string_of_the_answer_ends_it_at_once() -> None:
    text = "<think>x STOP</think>\n\nYes. STOP and so on"
    answer = _answer(text, ["STOP"])
    assert (answer.reasoning, answer.content) == ("x STOP", "Yes. ")
    assert answer.num_tokens == text.rindex("STOP") + 4
    assert answer.reason is FinishReason.STOP


def test_blanks_end_an_answer_without_tools_at_once() -> None:
    answer = _answer("<think>x\n</think>\n\nYes.\n\nNo.", ["\n"], parser={"calls": None})
    assert answer.content == "Yes."
    assert answer.num_tokens == len("<think>x\n</think>\n\nYes.\n")


def test_blanks_before_a_call_are_no_part_of_the_answer() -> None:
    answer = _answer(f"Let me look.\n\n{_CALL}\n", ["\n"])
    assert (answer.content, answer.calls) == ("Let me look.", [_ARGUMENTS])
    plain = _answer("Let me look.\nThere it is.", ["\n"])
    assert (plain.content, plain.reason) == ("Let me look.", FinishReason.STOP)
    assert plain.num_tokens == len("Let me look.\nT"), "with the first token that is no blank"


def test_a_stop_string_behind_a_call_ends_the_answer_with_the_whole_call() -> None:
    answer = _answer(f"{_CALL}Done. STOP {_CALL}", ["STOP"])
    assert (answer.content, answer.calls) == ("Done. ", [_ARGUMENTS])


def test_a_call_is_not_held_back_by_the_begin_of_a_stop_string_before_it() -> None:
    answer = _answer(f"Look S{_CALL}", ["STOP"])
    shown = "".join(step.text for step in answer.steps[: len(f"Look S{_CALL}") - 20])
    assert '"a": "x' in shown
    assert answer.content == "Look S"


@pytest.mark.parametrize("stop", ['{"name"', "\n", "tool"])
def test_a_stop_string_in_a_broken_call_ends_the_answer(stop: str) -> None:
    text = 'Say <tool_call>\n{"name": 5} and so on'
    answer = _answer(text, [stop])
    assert answer.reason is FinishReason.STOP
    assert answer.content == text[: text.index(stop)]


@pytest.mark.parametrize("stop", [["<"], ["ol_c", "<to"]])
def test_what_is_no_mark_after_all_is_searched(stop: list[str]) -> None:
    answer = _answer("a <<tool_c and more", stop)
    assert answer.content == ("a " if "<" in stop else "a <")
    assert answer.reason is FinishReason.STOP


def test_harmony_messages_are_searched_on_their_final_channel() -> None:
    text = (
        "<|channel|>analysis<|message|>STOP. final? STOP<|end|><|start|>assistant"
        "<|channel|>commentary to=functions.f <|constrain|>json<|message|>"
        '{"a": "STOP"}<|call|><|start|>assistant<|channel|>final<|message|>Yes STOP no'
    )
    for stop in ("STOP", "final", "<|message|>"):
        answer = _answer(text, [stop], parser={"calls": CallSyntax.HARMONY, "reasoning": None})
        assert answer.reasoning == "STOP. final? STOP"
        assert answer.calls == ['{"a": "STOP"}']
        assert answer.content == ("Yes " if stop == "STOP" else "Yes STOP no")


def test_text_before_the_marks_of_harmony_is_searched_where_it_stands() -> None:
    text = "so STOP<|channel|>commentary to=functions.f<|message|>{}<|call|>"
    begun = "<|channel|>final<|message|>Yes<|end|><|start|>assistant"
    for before, content in ("", "so "), (begun, "Yes"):
        parser = {"calls": CallSyntax.HARMONY, "reasoning": None}
        answer = _answer(before + text, ["STOP"], parser=parser)
        assert (answer.content, answer.calls) == (content, [])


_DEEPSEEK = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f```json x```"


@pytest.mark.parametrize(
    ("syntax", "text", "stop"),
    [
        (CallSyntax.MISTRAL, "[TOOL_CALLS]STOP\n[CALL_ID]9 no", "STOP"),
        (CallSyntax.MISTRAL_NAMED, "x[TOOL_CALLS]STOP\n\n[ARGS]ST", "STOP"),
        (CallSyntax.DEEPSEEK, _DEEPSEEK, "ction<｜tool▁sep｜>f"),
        (CallSyntax.DEEPSEEK, "<｜tool▁calls▁begin｜> \n<｜tool▁call▁begin｜>? STOP", "STOP"),
        (CallSyntax.QWEN_XML, "<tool_call>\n\n\n<function=a>STOP no", "STOP"),
        (CallSyntax.QWEN_XML, "<tool_call><function=a>STOP no", "STOP"),
        (CallSyntax.HERMES, "<tool_call>\n\n[1] STOP no", "STOP"),
        (CallSyntax.LLAMA, " \n<|python_tag|>STOP no", "STOP"),
        (CallSyntax.HARMONY, "so to=x STOP no<|channel|>final<|message|>yes", "STOP"),
    ],
)
def test_a_stop_string_in_a_broken_call_cuts_where_it_begins(
    syntax: CallSyntax, text: str, stop: str
) -> None:
    sequence = _sequence([stop], parser={"calls": syntax, "reasoning": None})
    completion = SequenceCompletion(_VOCABULARY, sequence, frozenset({_END}))
    result = StepResult(_KEY)
    completion.accept([*text.encode(), _END], result)
    assert (result.text, result.finish_reason) == (text[: text.index(stop)], FinishReason.STOP)


@pytest.mark.parametrize("continues", [False, True])
@pytest.mark.parametrize(
    ("text", "stop", "content"),
    [
        ("one two STOP three four", "STOP", "one two "),
        ("a STOP b<|end|>", "STOP", "a "),
        ("one\ntwo", "e\nt", "on"),
        (
            "Yes<|end|><|start|>assistant<|channel|>analysis<|message|>STOP<|end|><|start|>assistant"
            "<|channel|>final<|message|>go STOP no",
            "STOP",
            "Yes\ngo ",
        ),
    ],
)
def test_places_of_harmony_count_in_what_the_model_writes(
    text: str, stop: str, content: str, continues: bool
) -> None:
    """If the answer continues a message, the header of that message is in the prompt."""
    sequence = _sequence([stop])
    form = ChatFormat(CallSyntax.HARMONY, None, TemplateStyle())
    sequence.new_parser = partial(form.parser, chat_job(continues=continues), 0, False)
    header = "" if continues else "<|channel|>final<|message|>"
    answer = _Answer(sequence, list((header + text).encode()))
    assert (answer.content, answer.reason) == (content, FinishReason.STOP)
    assert answer.num_tokens == len(header) + text.rindex(stop) + len(stop)


_PARTS = ["<think>", "</think>", _CALL, "<tool_call>", "</tool_call>", "STOP", "ST", "OP", "\n",
          " ", "hm", "€", '{"name": "f"', "<", "END"]  # fmt: skip


def _tokens(text: str, sizes: list[int]) -> tuple[list[int], ByteVocabulary]:
    raw, pieces = text.encode(), []
    for size in [*sizes, len(raw)]:
        pieces.append(raw[:size])
        raw = raw[size:]
    pieces = [piece for piece in pieces if piece]
    return list(range(400, 400 + len(pieces))), _Pieces(pieces)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from(_PARTS), max_size=8).map("".join),
    st.lists(st.integers(1, 9), max_size=60),
    st.sampled_from([["STOP"], ["\n", "END"], ["<"], ["hm\n"], ["P"]]),
)
def test_no_cut_of_the_text_into_tokens_changes_the_answer(
    text: str, sizes: list[int], stop: list[str]
) -> None:
    whole, cut = _answer(text, stop), _Answer(_sequence(stop), *_tokens(text, sizes))
    assert (whole.content, whole.reasoning, whole.calls) == (cut.content, cut.reasoning, cut.calls)
    assert whole.reason is cut.reason
    free = _answer(text, [])
    assert free.content.startswith(whole.content)
    assert free.reasoning == whole.reasoning or whole.reason is FinishReason.STOP
    if not any(s in free.content for s in stop):
        assert whole.content == free.content
    # The answer has none; two stretches of it may add up to one.
    if not whole.calls and "<tool_call>" not in text:
        assert not any(s in whole.content for s in stop)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.sampled_from(_PARTS), max_size=8).map("".join), st.integers(0, 300), st.booleans()
)
def test_resumed_at_every_token_it_ends_at_the_same_one(text: str, cut: int, masks: bool) -> None:
    rule = Rule(name="r", action="mask", literals=["hm", "OP"])
    rules = Denylist([rule]).on_output("m") if masks else None
    tokens = list(text.encode())
    whole = _Answer(_sequence(["STOP", "\n"], rules=rules), tokens)
    before = whole.steps[: min(cut, len(whole.steps) - 1)]
    seen = before[-1].filtered.seen if before and before[-1].filtered else None
    produced = [token for step in before for token in step.token_ids]
    resumed = _sequence(["STOP", "\n"], rules=rules, produced=produced, seen=seen)
    rest = _Answer(resumed, tokens[len(produced) :])
    assert [step.text for step in rest.steps] == [step.text for step in whole.steps[len(before) :]]
    assert rest.num_tokens == whole.num_tokens
    assert (rest.reason, rest.reasoning_tokens) == (whole.reason, whole.reasoning_tokens)


def test_the_denylist_reads_the_text_as_the_model_wrote_it_up_to_the_stop_string() -> None:
    rule = Rule(name="r", action="tag", literals=["think", "STOP", "after"])
    rules = Denylist([rule]).on_output("m")
    answer = _answer("<think>STOP</think>\n\nhm STOP after", ["STOP"], rules=rules)
    found = [m for step in answer.steps if step.filtered for m in step.filtered.matches]
    assert [(match.begin, match.end) for match in found] == [(1, 6), (7, 11), (13, 18)]
    masked = _answer("hm STOP after", ["hm"], rules=Denylist(
        [Rule(name="r", action="mask", literals=["hm"])]).on_output("m"))  # fmt: skip
    assert masked.content == "", "a stop string is found behind a mask"


def test_a_parser_that_fails_makes_the_rest_content() -> None:
    parser = _new_parser()()
    reader = ContentReader(parser)
    assert reader.read("<think>hm") == ("", [])
    parser.push = None  # type: ignore[method-assign,assignment]
    assert reader.read("xy") == ("xy", [9, 10])
    assert reader.num_decided == 11
    assert reader.read("", is_last=True) == ("", [])


# -- control tokens --------------------------------------------------------------------------


@pytest.mark.parametrize("stop", ["<|im_end|>", "</s>"])
@pytest.mark.parametrize("before", ["Yes", "<think>hm", "<think>hm</think>\n\nYes", ""])
def test_a_control_token_that_is_a_stop_string_ends_the_completion(stop: str, before: str) -> None:
    token = _VOCABULARY.control_tokens[stop]
    sequence = _sequence(["x", stop], ignore_eos=True)
    tokens = [*before.encode(), token, *b" and more"]
    completion = SequenceCompletion(_VOCABULARY, sequence, frozenset({_END}))
    assert completion.is_end(token), "it adds nothing to the text"
    answer = _Answer(sequence, tokens)
    assert (answer.reason, answer.num_tokens) == (FinishReason.STOP, len(before) + 1)
    assert answer.content == ("Yes" if before.endswith("Yes") else "")


def test_other_control_tokens_do_not_end_it() -> None:
    tokens = [*b"a", _TURN, *b"b"]
    for stop in ("<|im_end|>!", "im_end", "</s>"):
        answer = _Answer(_sequence([stop]), tokens)
        assert (answer.content, answer.num_tokens) == ("ab", 4)
    # A mark that the parser needs is text, and as text it is no content.
    shown = _sequence(["<tool_call>"], shown_tokens=frozenset({_OPEN}))
    tokens = [_OPEN, *_CALL.removeprefix("<tool_call>").encode()]
    assert _Answer(shown, tokens).calls == [_ARGUMENTS]


@pytest.mark.parametrize(
    ("stop", "content"),
    [("<|im_end|>\n", "a b"), ("b<|im_end|>", "a "), (" b<|im_end|>\nc", "a"), ("<|im_end|>x", "")],
)
@pytest.mark.parametrize("is_plain", [False, True])
def test_a_stop_string_may_contain_the_name_of_a_control_token(
    stop: str, content: str, is_plain: bool
) -> None:
    tokens = [*b"a b", _TURN, *b"\nc d"]
    sequence = _sequence([stop], parser={"calls": None})
    whole = _Answer(sequence, tokens)
    assert whole.content == (content or "a b\nc d")
    for cut in range(1, len(whole.steps)):
        resumed = _sequence([stop], parser={"calls": None}, produced=tokens[:cut])
        rest = _Answer(resumed, tokens[cut:])
        assert [s.text for s in rest.steps] == [s.text for s in whole.steps[cut:]]
    if is_plain:
        sequence.new_parser = None
        completion, result = (
            SequenceCompletion(_VOCABULARY, sequence, frozenset()),
            StepResult(_KEY),
        )
        completion.accept(tokens, result, is_last=True)
        assert result.text == (content or "a b\nc d")


# -- reasoning tokens ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (["<think>", "plan", " it", "</think>", "\n\n", "Yes"], 3),
        (["<", "think", ">", "plan", " <", " it", "</", "think>", "Yes"], 6),
        (["Yes", " and", " no"], 0),
        (["<think>", "plan", "\n", "</think>", "Yes"], 2),
        (["<think>", "plan", " on"], 3),
        (["<think>plan</think>Yes", " and"], 1),
    ],
)
def test_the_tokens_of_the_reasoning_are_counted(pieces: list[str], expected: int) -> None:
    raw = [piece.encode() for piece in pieces]
    tokens = list(range(400, 400 + len(raw)))
    answer = _Answer(_sequence([]), tokens, _Pieces(raw))
    assert answer.reasoning_tokens == expected
    assert "".join(step.text for step in answer.steps) == "".join(pieces)


@pytest.mark.parametrize("begin", [b"Yes", b"<think>hm</think>\n\nYes", b" \nYes"])
def test_without_stop_strings_nothing_is_read_behind_the_reasoning(begin: bytes) -> None:
    pushed: list[str] = []
    parser = _new_parser()()
    assembler = TextAssembler([], parser=parser)
    assembler.push(begin)
    parser.push = pushed.append  # type: ignore[method-assign,assignment]
    assert assembler.push(b" and no.") + assembler.finish() == " and no."
    assert not pushed
    assert assembler.reasoning_tokens == int(begin.startswith(b"<think>"))


def test_the_analysis_of_harmony_is_reasoning_wherever_it_stands() -> None:
    pieces = ["<|channel|>", "analysis", "<|message|>", "hm", "<|end|>", "<|start|>", "assistant",
              "<|channel|>", "final", "<|message|>", "Yes", ".", "<|end|>", "<|start|>",
              "assistant", "<|channel|>analysis", "<|message|>", "so"]  # fmt: skip
    raw = [piece.encode() for piece in pieces]
    sequence = _sequence([], parser={"calls": CallSyntax.HARMONY, "reasoning": None})
    answer = _Answer(sequence, list(range(400, 400 + len(raw))), _Pieces(raw))
    assert (answer.reasoning, answer.content) == ("hm\nso", "Yes.")
    assert answer.reasoning_tokens == 4 + 6


class _Watched(OutputParser):
    """Keeps what is pushed to it."""

    read = ""

    def push(self, text: str) -> Parts:
        self.read += text
        return super().push(text)


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("<think>hm</think>\n\nYes. <think>no</think>", "<think>hm</think>"),
        ("Yes, <think>no</think>", "Y"),
        ("<think>hm", "<think>hm"),
    ],
)
@pytest.mark.parametrize("stop", [[], ["STOP"]])
def test_behind_the_reasoning_the_text_is_read_for_stop_strings_alone(
    text: str, read: str, stop: list[str]
) -> None:
    parser = _Watched(_KEY, calls=CallSyntax.HERMES, tools=[Tool("f")], reasoning=_THINK)
    assembler = TextAssembler(stop, parser=parser)
    shown = "".join(assembler.push(bytes([byte])) for byte in text.encode())
    assert shown + assembler.finish() == text
    assert parser.read == (text if stop else read)
    assert assembler.reasoning_tokens == (len("<think>hm") if "hm" in text else 0)


def test_a_model_that_writes_no_reasoning_has_no_count() -> None:
    assert _answer("Yes", ["x"], parser={"reasoning": None}).reasoning_tokens is None
