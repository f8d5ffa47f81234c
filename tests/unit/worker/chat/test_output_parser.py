"""Tool calls and reasoning in the output, at every way to cut it."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shared.wire.job import Tool
from tests.support.parsed_output import TOOLS as _TOOLS
from tests.support.parsed_output import Result
from tests.support.parsed_output import parsed as _parse
from tests.support.parsed_output import parsed_whole as _whole
from worker.chat.output_parser import OutputParser, Reasoning
from worker.chat.tool_call_formats import MARKS, CallSyntax
from worker.text_parts import Parts

_THINK = Reasoning("<think>", "</think>")


def _fenced(name: str, arguments: str) -> str:
    begin = f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}"
    return f"{begin}\n```json\n{arguments}\n```<｜tool▁call▁end｜>"


_A = '{"city": "Zürich \\"}\\" \\u00e4", "n": [1, {"x": null}]}'
_HERMES = f'<tool_call>\n{{"name": "a", "arguments": {_A}}}\n</tool_call>'
_SAID = {
    CallSyntax.HERMES: f'{_HERMES}\n<tool_call>\n{{"name": "b", "arguments": {{}}}}\n</tool_call>',
    CallSyntax.QWEN_XML: '<tool_call>\n<function=a>\n<parameter=city>\nZürich "}" \\u00e4\n'
    '</parameter>\n<parameter=n>\n[1, {"x": null}]\n</parameter>\n</function>\n</tool_call>\n'
    "<function=b>\n</function>\n</tool_call>",
    CallSyntax.HARMONY: "<|channel|>commentary to=functions.a <|constrain|>json<|message|>"
    f"{_A}<|call|><|start|>assistant to=functions.b<|channel|>commentary json<|message|>"
    "{}<|call|>",
    CallSyntax.LLAMA: f'{{"name": "a", "parameters": {_A}}}; {{"name": "b", "parameters": {{}}}}',
    CallSyntax.MISTRAL: f'[TOOL_CALLS] [{{"name": "a", "arguments": {_A}, "id": "123456789"}}, '
    '{"name": "b", "arguments": {}}]',
    CallSyntax.MISTRAL_NAMED: f"[TOOL_CALLS]a[ARGS]{_A}[TOOL_CALLS]b[CALL_ID]9[ARGS]{{}}",
    CallSyntax.DEEPSEEK: f"<｜tool▁calls▁begin｜>{_fenced('a', _A)}\n{_fenced('b', '{}')}"
    "<｜tool▁calls▁end｜>",
    CallSyntax.DEEPSEEK_NAMED: "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>a<｜tool▁sep｜>"
    f"{_A}<｜tool▁call▁end｜><｜tool▁call▁begin｜>b<｜tool▁sep｜>{{}}"
    "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
}
"""Two calls: of `a` with `_A`, of `b` with nothing."""
_XML_A = '{"city": "Zürich \\"}\\" \\\\u00e4", "n": [1, {"x": null}]}'


def _two_calls(syntax: CallSyntax) -> list[tuple[str, str]]:
    return [("a", _XML_A if syntax is CallSyntax.QWEN_XML else _A), ("b", "{}")]


@pytest.mark.parametrize("syntax", CallSyntax)
@pytest.mark.parametrize("before", ["", "Let me see.\n\n"])
def test_calls_are_found_at_every_cut(syntax: CallSyntax, before: str) -> None:
    if before and syntax is CallSyntax.LLAMA:
        before += "<|python_tag|>"
    if before and syntax is CallSyntax.HARMONY:
        before = f"<|channel|>commentary<|message|>{before}<|end|><|start|>assistant"
    text = before + _SAID[syntax]
    whole = _whole(text, syntax)
    assert whole.calls == _two_calls(syntax)
    assert whole.content == ("Let me see." if before else "")
    assert _parse(text, calls=syntax) == whole, "one character at a time"
    for cut in range(len(text)):
        assert _parse([text[:cut], text[cut:]], calls=syntax) == whole


_FRAGMENTS = [
    *_SAID.values(), _HERMES, "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "[", "]",
    "<|python_tag|>", '{"name": "a"', '"arguments": {"x": "y"', "}", "{", '"', ",", ";", "\\",
    '{"arguments": {"k": [1]}, "name": "late"}', '{"name": "s", "arguments": "{\\"q\\": 1}"}',
    '{"name": 5, "arguments": {}}', '{"name": "", "arguments": {}}', "foo", " ", "\n", "é😀",
    "<think>", "</think>", "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "function",
    "<｜tool▁sep｜>", "```json", "<|channel|>final<|message|>", "<function=a>",
    "<parameter=n>", "</parameter>", "</function>",
    "<", ": ", "null", "True", "01", "'", "//", "\\d", "[1,]", "<|call|>", "}}", "a\":",
    '<tool_call>{"name": "a", "arguments": {"k": "\n\\d", \'m\': None, },}}</tool_call>',
    "<|channel|>commentary to=a<|message|>", "[TOOL_CALLS]a[ARGS]",
    "[TOOL_CALLS]a\n[CALL_ID]", "\n\n[ARGS]", "<tool_call> \n [", "<tool_call>\n\n<function=",
    " <|python_tag|>", "<｜tool▁calls▁begin｜>\n<｜tool▁call▁begin｜>", " <｜tool▁sep｜>",
    "<｜tool▁call▁begin｜>function<｜tool▁sep｜>f```json", "x to=a y", "\t",
]  # fmt: skip
_OUTPUT = st.lists(
    st.one_of(
        st.sampled_from(_FRAGMENTS),
        st.sampled_from(_FRAGMENTS).flatmap(
            lambda text: st.integers(0, len(text)).map(lambda n: text[:n])
        ),
    ),
    max_size=8,
).map("".join)


@pytest.mark.parametrize("syntax", [*CallSyntax, None])
@pytest.mark.parametrize("reasoning", [None, _THINK])
@settings(max_examples=60, deadline=None)
@given(text=_OUTPUT, cuts=st.lists(st.integers(0, 400)), starts=st.booleans(), is_cut=st.booleans())
@example(text="<tool_call>{} x", cuts=[], starts=False, is_cut=False)
@example(text="[TOOL_CALLS][] x", cuts=[], starts=False, is_cut=False)
@example(text="x to=a y<|channel|>final<|message|>z", cuts=[], starts=False, is_cut=False)
def test_the_result_does_not_depend_on_the_cuts(
    syntax: CallSyntax | None,
    reasoning: Reasoning | None,
    text: str,
    cuts: list[int],
    starts: bool,
    is_cut: bool,
) -> None:
    options: dict[str, Any] = {"calls": syntax, "reasoning": reasoning, "is_cut": is_cut}
    options["starts_in_reasoning"] = starts and reasoning is not None
    bounds = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[a:b] for a, b in pairwise(bounds)]
    result = _parse(pieces, **options)
    assert result == _parse(text, **options)
    _assert_content_stands_where_it_was_read(text, **options)
    if not is_cut and (syntax is not CallSyntax.HARMONY or "<|message|>" not in text):
        _assert_nothing_is_lost(text, result)


def _assert_content_stands_where_it_was_read(text: str, *, is_cut: bool, **options: Any) -> None:
    parser = OutputParser(("j", 0), tools=_TOOLS, **options)
    parts = parser.push(text) + parser.finish(is_cut=is_cut)
    assert len(parts.places) == len(parts.content)
    # A line break stands for blanks that were trimmed, or for the marks between two messages.
    there = [text[at] for at in parts.places if at < len(text)]
    wrong = {c for c, other in zip(parts.content, there, strict=False) if c != other}
    assert wrong <= {"\n"}
    if not (parts.tool_calls or options["reasoning"] or is_cut):
        assert options["calls"] is CallSyntax.HARMONY or parts.content == text


def _assert_nothing_is_lost(text: str, result: Result) -> None:
    """Without a call, and apart from blanks and the marks of reasoning, the text is there."""
    if result.calls:
        return
    said = result.reasoning + result.content
    for mark in ("<think>", "</think>"):
        text, said = text.replace(mark, ""), said.replace(mark, "")
    assert "".join(said.split()) == "".join(text.split())


@pytest.mark.parametrize("syntax", CallSyntax)
@pytest.mark.parametrize("num_chars", range(0, 90, 7))
def test_a_text_that_ends_too_early_keeps_what_there_was(
    syntax: CallSyntax, num_chars: int
) -> None:
    result = _whole(_SAID[syntax][:num_chars], syntax)
    if syntax is CallSyntax.QWEN_XML and result.calls:
        assert result.content == "" and not result.calls[0][1].endswith("}")
    elif result.calls:
        assert any(mark.startswith(result.content) for mark in MARKS[syntax])
        assert _two_calls(syntax)[0][1].startswith(result.calls[0][1])
    else:
        assert "".join(result.content.split()) == "".join(_SAID[syntax][:num_chars].split())


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>\nnone\n</tool_call>",
        '<tool_call>{"arguments": {}}</tool_call>',
        '<tool_call>{"name": "x", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": "x", "arguments": hello}</tool_call>',
        '<tool_call>{"name": 1}</tool_call>',
        '<tool_call>["a"]</tool_call>',
        '<tool_call>{"name": "x", "arguments": "no object"}</tool_call>',
        "a <tool_call",
        "  plain text \n",
    ],
)
def test_what_is_no_call_is_content(text: str) -> None:
    assert _whole(text) == Result(content=text)


@pytest.mark.parametrize(
    ("text", "call"),
    [
        ('{"name": "x"}', ("x", "{}")),
        ('{"name": "x", "arguments": null}', ("x", "{}")),
        ('{"arguments": {"a": 1}, "name": "x"}', ("x", '{"a": 1}')),
        ('{"name": "x", "arguments": "{\\"a\\": 1}"}', ("x", '{"a": 1}')),
        ('{"id": 1, "name": "x", "arguments": {}, "more": [true]}', ("x", "{}")),
        ('{"name": "\\u00e4", "arguments": {"a": "\\u00e4"}}', ("ä", '{"a": "\\u00e4"}')),
        ('{"name": "x", "arguments": {"a": "</tool_call>"}}', ("x", '{"a": "</tool_call>"}')),
    ],
)
def test_members_of_a_call_come_in_many_ways(text: str, call: tuple[str, str]) -> None:
    result = _whole(f"<tool_call>{text}</tool_call>")
    assert (result.calls, result.content) == ([call], "")


def test_after_a_broken_call_the_next_one_is_found() -> None:
    result = _whole(f"<tool_call>{{oh {_HERMES} and on\n")
    assert result.calls == [("a", _A)]
    assert result.content == "<tool_call>{oh\nand on\n"


def test_name_and_arguments_come_as_soon_as_they_are_known() -> None:
    parser = OutputParser(("j", 0), calls=CallSyntax.HERMES)
    assert parser.push('<tool_call>{"name": "a", "arguments": ') == Parts()
    (first,) = parser.push('{"x": "y').tool_calls
    assert (first.index, first.name, first.arguments) == (0, "a", '{"x": "y')
    (second,) = parser.push('z"}').tool_calls
    assert (second.index, second.id, second.name, second.arguments) == (0, None, None, 'z"}')


def test_ids_are_the_same_in_every_run_and_differ_otherwise() -> None:
    ids = [
        call_id
        for key in (("j", 0), ("j", 1), ("k", 0))
        for call_id in [
            delta.id
            for delta in OutputParser(key, calls=CallSyntax.HERMES)
            .push(_SAID[CallSyntax.HERMES])
            .tool_calls
        ]
    ]
    assert len(set(ids)) == 6
    assert all(i and i.startswith("call_") and len(i) == 29 for i in ids)
    assert _whole(_SAID[CallSyntax.HERMES]).ids == ids[:2]


def test_without_parallel_calls_the_first_one_counts() -> None:
    result = _whole(_SAID[CallSyntax.HERMES] + _HERMES, is_parallel=False)
    assert result.calls == _two_calls(CallSyntax.HERMES)[:1]


def test_without_tools_calls_are_text() -> None:
    assert _whole(_HERMES, None) == Result(content=_HERMES)


def test_json_that_is_no_call_stays_content_with_llama() -> None:
    for text in ('{"answer": 5}', '{"name": "Bob", "age": 3}', '{"name": "Bob"}', "{x"):
        assert _whole(text, CallSyntax.LLAMA) == Result(content=text)
    code = "<|python_tag|>print(1)"
    assert _whole(code, CallSyntax.LLAMA) == Result(content=code)


def test_a_json_answer_with_llama_is_not_held_back_for_long() -> None:
    parser = OutputParser(("j", 0), calls=CallSyntax.LLAMA)
    assert parser.push('{"answer": ').content == '{"answer":'


@pytest.mark.parametrize(
    ("text", "starts", "reasoning", "content"),
    [
        ("<think>\nhm\n\n</think>\n\nyes", False, "hm", "yes"),
        ("hm\n</think>\n\nyes\n", True, "hm", "yes\n"),
        ("\n<think>hm</think>yes", True, "hm", "yes"),
        ("<think>\n\n</think>\n\nyes", False, "", "yes"),
        ("never ends ", True, "never ends ", ""),
        ("no <think>thought</think>", False, "", "no <think>thought</think>"),
        (" yes", False, "", " yes"),
        ("a </thin", True, "a </thin", ""),
    ],
)
def test_reasoning_is_split_off(text: str, starts: bool, reasoning: str, content: str) -> None:
    options: dict[str, Any] = {"reasoning": _THINK, "starts_in_reasoning": starts}
    for calls in (None, CallSyntax.HERMES, CallSyntax.LLAMA):
        result = _parse(text, calls=calls, **options)
        assert (result.reasoning, result.content) == (reasoning, content)


def test_calls_follow_reasoning() -> None:
    for syntax, said in _SAID.items():
        result = _whole(f"<think>\nhm {said}\n</think>\n\n{said}", syntax, reasoning=_THINK)
        assert (result.reasoning, result.content) == (f"hm {said}", "")
        assert result.calls == _two_calls(syntax)


def test_arguments_reach_the_client_as_valid_json() -> None:
    for syntax, said in _SAID.items():
        assert json.loads(_whole(said, syntax).calls[0][1])["n"] == [1, {"x": None}]


@pytest.mark.parametrize(
    ("value", "arguments"),
    [
        ("<parameter=city>\n\na\n\n</parameter>", '{"city": "\\na\\n"}'),
        ("<parameter=city>12</parameter>", '{"city": "12"}'),
        ("<parameter=n>\n True </parameter>", '{"n": true}'),
        ("<parameter=n>NaN</parameter>", '{"n": "NaN"}'),
        ('<parameter=n>a "b"</parameter>', '{"n": "a \\"b\\""}'),
        ("<parameter=other>5</parameter>", '{"other": "5"}'),
    ],
)
def test_values_in_xml_are_read_by_their_schemas(value: str, arguments: str) -> None:
    result = _whole(f"<tool_call><function=a>{value}</function></tool_call>", CallSyntax.QWEN_XML)
    assert result == Result(ids=result.ids, calls=[("a", arguments)])


def test_prose_about_xml_calls_is_content() -> None:
    for text in ("Write <function=name> first", "<tool_call>\n<function=a>\nx", "<function=a b>"):
        assert _whole(text, CallSyntax.QWEN_XML) == Result(content=text)


@pytest.mark.parametrize(
    ("text", "reasoning", "content"),
    [
        ("<|channel|>final<|message|>yes<|return|>", "", "yes"),
        ("<|channel|>analysis<|message|>hm<|end|>", "hm", ""),
        ("<|channel|>analysis<|message|>hm<|end|><|start|>assist", "hm", ""),
        (
            "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>commentary<|message|>"
            "first<|end|><|start|>assistant<|channel|>final<|message|>yes\n",
            "hm",
            "first\nyes\n",
        ),
        ("plain text", "", "plain text"),
        ("long text " * 50, "", "long text " * 50),
        ("<|channel|>commentary to=functions.a<|message|>no<|call|>", "", "no"),
        ("stray<|channel|>final<|message|>yes", "", "strayyes"),
    ],
)
@pytest.mark.parametrize("tools", [[], _TOOLS])
def test_messages_of_gpt_oss(text: str, reasoning: str, content: str, tools: list[Tool]) -> None:
    for pieces in ([text], list(text)):
        parser, result = OutputParser(("j", 0), calls=CallSyntax.HARMONY, tools=tools), Result()
        for piece in pieces:
            result.add(parser.push(piece))
        result.add(parser.finish())
        assert result == Result(content=content, reasoning=reasoning)


def test_half_a_surrogate_pair_in_a_call_can_be_sent() -> None:
    result = _whole('<tool_call>{"name": "\\ud800x", "arguments": "{\\ud800"}</tool_call>')
    assert result.calls == [("?x", "{?")]
