"""Calls in which models make mistakes: what a client gets, at every way to cut the text."""

from typing import Any

import pytest

from shared.wire.job import Tool
from tests.support.cpu_time import is_linear
from tests.support.parsed_output import Result, at_every_cut, parsed
from worker.chat.output_parser import OutputParser, Reasoning
from worker.chat.tool_call_formats import CallSyntax

_THINK = Reasoning("<think>", "</think>")
_MARKED = [s for s in CallSyntax if s not in (CallSyntax.LLAMA, CallSyntax.HARMONY)]
"""A mark that may stand in other text announces calls."""
_JSON = [syntax for syntax in CallSyntax if syntax is not CallSyntax.QWEN_XML]
_OBJECTS = [CallSyntax.HERMES, CallSyntax.LLAMA, CallSyntax.MISTRAL]
"""Name and arguments are members of one object."""


def _said(syntax: CallSyntax, arguments: str, name: str = "a") -> str:
    """A call as a model of this format writes it, with arguments as they are given."""
    call = f'{{"name": "{name}", "arguments": {arguments}}}'
    begin, fence = f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}", "```"
    return {
        CallSyntax.HERMES: f"<tool_call>\n{call}\n</tool_call>",
        CallSyntax.LLAMA: call.replace("arguments", "parameters"),
        CallSyntax.MISTRAL: f"[TOOL_CALLS] [{call}]",
        CallSyntax.MISTRAL_NAMED: f"[TOOL_CALLS]{name}[ARGS]{arguments}",
        CallSyntax.HARMONY: f"<|channel|>commentary to=functions.{name} <|constrain|>json"
        f"<|message|>{arguments}<|call|>",
        CallSyntax.DEEPSEEK: f"<｜tool▁calls▁begin｜>{begin}\n{fence}json\n{arguments}\n{fence}"
        "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        CallSyntax.DEEPSEEK_NAMED: f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>{name}"
        f"<｜tool▁sep｜>{arguments}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        CallSyntax.QWEN_XML: f"<tool_call>\n<function={name}>\n<parameter=other>\nx\n</parameter>\n"
        "</function>\n</tool_call>",
    }[syntax]


def _calls(*calls: tuple[str, str], result: Result, content: str = "") -> Result:
    """Nothing but these calls."""
    return Result(ids=result.ids, calls=list(calls), content=content)


@pytest.mark.parametrize("syntax", _JSON)
@pytest.mark.parametrize(
    ("arguments", "right"),
    [
        ('{"a": True, "b": None}', '{"a": true, "b": null}'),
        ('{"a": 1, "b": [1, 2,],}', '{"a": 1, "b": [1, 2]}'),
        ('{"n": 01, "m": NaN, "k": +5, "l": .5}', '{"n": 1, "m": null, "k": 5, "l": 0.5}'),
        ('{"a": 7 // note\n}', '{"a": 7 \n}'),
        ("{'a': x, b: \"y\"}", '{"a": "x", "b": "y"}'),
        ('{"a": "1\n2\t\\d+ C:\\Users \\u12"}', '{"a": "1\\n2\\t\\\\d+ C:\\\\Users \\\\u12"}'),
    ],
)
def test_mistakes_in_arguments_are_repaired(syntax: CallSyntax, arguments: str, right: str) -> None:
    result = at_every_cut(_said(syntax, arguments), syntax)
    assert result == _calls(("a", right), result=result)


@pytest.mark.parametrize("syntax", _OBJECTS)
def test_mistakes_in_arguments_before_the_name_and_in_a_text_are_repaired(
    syntax: CallSyntax,
) -> None:
    before = '{"arguments": {"a": True,}, "name": "a"}'
    inside = '{"name": "a", "arguments": "{\\"a\\": \\"1\\n2\\", \\"b\\": [None,]}"}'
    begin, end = {
        CallSyntax.HERMES: ("<tool_call>", "</tool_call>"),
        CallSyntax.LLAMA: ("", ""),
        CallSyntax.MISTRAL: ("[TOOL_CALLS][", "]"),
    }[syntax]
    for text, right in ((before, '{"a": true}'), (inside, '{"a": "1\\n2", "b": [null]}')):
        result = at_every_cut(begin + text + end, syntax)
        assert result == _calls(("a", right), result=result)


def test_a_call_is_found_though_its_own_members_have_mistakes() -> None:
    for text in (
        "{'name': 'a', 'arguments': {'b': 1}}",
        '{name: "a", arguments: {b: 1}}',
        '{"name": a, "arguments": {"b": 1},}',
        '{"function": "a", "arguments": {"b": 1}}',
        '{"type": "function", "function": {"name": "a", "arguments": {"b": 1}}}',
        '{"id": "1", "function": {"arguments": "{\\"b\\": 1}", "name": "a"}, "type": "function"}',
        '{"name": "a", // the tool\n "arguments": {"b": 1} // its arguments\n}',
    ):
        result = at_every_cut(f"<tool_call>{text}</tool_call>", CallSyntax.HERMES)
        assert result == _calls(("a", '{"b": 1}'), result=result), text


@pytest.mark.parametrize("syntax", _JSON)
@pytest.mark.parametrize(
    "arguments", ['{"a" 4}', '{"a": "x" "y"}', '{"a": "say "hi" now"}', '{"a": [1, 2}', '{"a": }']
)
def test_arguments_that_cannot_be_repaired_are_no_whole_call(
    syntax: CallSyntax, arguments: str
) -> None:
    """The parser says so, and none of it leaks into the content."""
    text = _said(syntax, arguments)
    result = at_every_cut(text, syntax)
    parser = OutputParser(("j", 0), calls=syntax, tools=[Tool("a")])
    parser.push(text)
    parser.finish()
    assert parser.has_calls and not parser.has_whole_calls
    assert (result.content, [name for name, _ in result.calls]) == ("", ["a"])
    assert result.calls[0][1].startswith(arguments[:4])


def test_one_broken_call_among_whole_ones_makes_them_not_whole() -> None:
    said = [_said(CallSyntax.HERMES, arguments) for arguments in ("{}", '{"a" 4}', "{}")]
    for text in ("".join(said), said[1] + said[0], said[0] + said[1]):
        parser = OutputParser(("j", 0), calls=CallSyntax.HERMES, tools=[Tool("a")])
        parser.push(text)
        assert parser.has_calls and not parser.has_whole_calls
    parser = OutputParser(("j", 0), calls=CallSyntax.HERMES, tools=[Tool("a")], is_parallel=False)
    parser.push(said[0] + said[1])
    assert parser.has_whole_calls, "the second one is not reported"


@pytest.mark.parametrize("syntax", [CallSyntax.HERMES, CallSyntax.MISTRAL_NAMED])
def test_braces_that_lack_before_the_end_mark_are_added(syntax: CallSyntax) -> None:
    text = _said(syntax, '{"a": {"b": [1')
    end = "" if syntax is CallSyntax.HERMES else "[TOOL_CALLS]a[ARGS]{}"
    result = at_every_cut(text.replace("}\n</tool", "\n</tool") + end, syntax)
    assert result.calls[0] == ("a", '{"a": {"b": [1]}}')
    assert result.content == ""


# -- without arguments ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("syntax", "arguments"),
    [
        (syntax, arguments)
        for syntax in _JSON
        for arguments in ("", " ", "null", "None", '""', "{}", '"{}"')
        if arguments.strip() or syntax not in _OBJECTS
    ],
)
def test_a_call_without_arguments_has_an_empty_object(syntax: CallSyntax, arguments: str) -> None:
    result = at_every_cut(_said(syntax, arguments), syntax)
    assert result == _calls(("a", "{}"), result=result)


@pytest.mark.parametrize(
    ("syntax", "text"),
    [
        (CallSyntax.MISTRAL_NAMED, "[TOOL_CALLS]a[ARGS]"),
        (CallSyntax.MISTRAL_NAMED, "[TOOL_CALLS]a[CALL_ID]123456789[ARGS]\n"),
        (CallSyntax.MISTRAL_NAMED, "[TOOL_CALLS]a"),
        (CallSyntax.HARMONY, "<|channel|>commentary to=functions.a<|message|>"),
        (CallSyntax.HARMONY, "<|channel|>commentary to=functions.a<|message|><|end|>"),
        (CallSyntax.DEEPSEEK_NAMED, "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>a<｜tool▁sep｜>"),
    ],
)
def test_a_call_without_arguments_may_end_the_text(syntax: CallSyntax, text: str) -> None:
    result = at_every_cut(text, syntax)
    assert result == _calls(("a", "{}"), result=result)
    if "<|end|>" not in text:
        assert not parsed(text, calls=syntax, is_cut=True).calls, "its arguments may have followed"


def test_calls_without_arguments_follow_each_other() -> None:
    text = "[TOOL_CALLS]a[ARGS][TOOL_CALLS]b[ARGS]{}"
    result = at_every_cut(text, CallSyntax.MISTRAL_NAMED)
    assert result == _calls(("a", "{}"), ("b", "{}"), result=result)


def test_an_unknown_name_without_arguments_is_content() -> None:
    assert at_every_cut("[TOOL_CALLS]none", CallSyntax.MISTRAL) == Result("[TOOL_CALLS]none")


# -- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        "<|channel|>commentary to=a <|constrain|>json",
        " to=a<|channel|>commentary json",
        "<|channel|>commentary to=a",
        "<|channel|>analysis to=a code",
        "<|channel|>commentary to=assistant to=functions.a",
    ],
)
def test_gpt_oss_may_leave_out_the_namespace_of_a_tool(header: str) -> None:
    result = at_every_cut(f'{header}<|message|>{{"n":7}}<|call|>', CallSyntax.HARMONY)
    assert result == _calls(("a", '{"n":7}'), result=result)


def test_a_recipient_that_is_no_tool_is_none_of_the_clients() -> None:
    text = '<|channel|>commentary to=python<|message|>{"n":7}<|call|>'
    assert at_every_cut(text, CallSyntax.HARMONY) == Result('{"n":7}')


@pytest.mark.parametrize("syntax", CallSyntax)
def test_a_namespace_that_no_tool_has_is_left_out(syntax: CallSyntax) -> None:
    arguments = '{"other": "x"}'
    result = at_every_cut(_said(syntax, arguments, name="functions.a"), syntax)
    assert result.calls == [("a", arguments)]
    unknown = at_every_cut(_said(syntax, arguments, name="functions.b"), syntax)
    assert [name.removeprefix("functions.") for name, _ in unknown.calls] == ["b"]


# -- several calls, and too much around them -----------------------------------------------------

_B4 = '{"name": "a", "arguments": {"b": 4}}'
_B5 = _B4.replace("4", "5")


@pytest.mark.parametrize(
    "inside",
    [
        f"{_B4}\n{_B5}", f"{_B4}{_B5}", f"{_B4}, {_B5}", f"{_B4};\n{_B5}", f"[{_B4}, {_B5}]",
        f"[{_B4}\n{_B5}]", f"{_B4}}}\n{_B5}}}", f"[{_B4},\n{_B5},]",
    ],
)  # fmt: skip
@pytest.mark.parametrize("end", ["\n</tool_call>", ""])
def test_calls_in_one_mark_are_all_found(inside: str, end: str) -> None:
    result = at_every_cut(f"<tool_call>\n{inside}{end}", CallSyntax.HERMES)
    assert result == _calls(("a", '{"b": 4}'), ("a", '{"b": 5}'), result=result)


@pytest.mark.parametrize("syntax", _JSON)
@pytest.mark.parametrize("more", ["}", "}}", "\n}", " } }"])
def test_a_brace_too_many_is_dropped(syntax: CallSyntax, more: str) -> None:
    call = _said(syntax, '{"b": "y"}')
    is_member = syntax in (CallSyntax.HERMES, CallSyntax.LLAMA, CallSyntax.MISTRAL)
    text = call.replace('y"}' + "}" * is_member, 'y"}' + "}" * is_member + more)
    result = at_every_cut(text, syntax)
    assert result == _calls(("a", '{"b": "y"}'), result=result)


def test_text_in_front_of_the_end_mark_stays_and_the_mark_goes() -> None:
    result = at_every_cut(f"<tool_call>{_B4} done\n</tool_call>\nyes", CallSyntax.HERMES)
    assert result == _calls(("a", '{"b": 4}'), result=result, content="done\n\nyes")
    prose = "The mark </tool_call> ends a call."
    assert at_every_cut(prose, CallSyntax.HERMES) == Result(prose)


# -- calls and reasoning -------------------------------------------------------------------------


@pytest.mark.parametrize("syntax", _MARKED)
@pytest.mark.parametrize("starts", [False, True])
@pytest.mark.parametrize("behind", ["", "\n"])
def test_a_call_in_reasoning_that_never_ends_is_a_call(
    syntax: CallSyntax, starts: bool, behind: str
) -> None:
    options: dict[str, Any] = {"reasoning": _THINK, "starts_in_reasoning": starts}
    begin = "" if starts else "<think>"
    text = f"{begin}I will call. {_said(syntax, '{}')} {_said(syntax, '{}')}{behind}"
    result = at_every_cut(text, syntax, **options)
    arguments = '{"other": "x"}' if syntax is CallSyntax.QWEN_XML else "{}"
    assert result.reasoning == "I will call."
    assert result.calls == [("a", arguments)] * 2
    assert result.content == ""


def test_a_draft_of_a_call_stays_reasoning() -> None:
    draft = f"Maybe {_said(CallSyntax.HERMES, '{}')}, or not"
    for text, content in (("yes", "yes"), ("", "")):
        result = at_every_cut(
            f"<think>{draft}</think>\n{text}", CallSyntax.HERMES, reasoning=_THINK
        )
        assert result == Result(content, draft)


@pytest.mark.parametrize(
    "thought",
    [
        "The mark <tool_call> begins a call",
        "<tool_call>{oh <tool_call>",
        '<tool_call>{"name": "a", "arguments": {"b": ',
        '<tool_call>{"name": "a", "arguments": {"b" 4}}</tool_call>',
    ],
)
def test_reasoning_that_has_a_mark_and_no_whole_call_stays_reasoning(thought: str) -> None:
    result = at_every_cut(f"<think>{thought}", CallSyntax.HERMES, reasoning=_THINK)
    assert result == Result(reasoning=thought)


def test_reasoning_that_max_tokens_cuts_has_no_calls() -> None:
    thought = f"Maybe {_said(CallSyntax.HERMES, '{}')}"
    result = at_every_cut(f"<think>{thought}", CallSyntax.HERMES, reasoning=_THINK, is_cut=True)
    assert result == Result(reasoning=thought)


def test_prose_about_a_mark_is_reasoning_at_once() -> None:
    parser = OutputParser(
        ("j", 0), calls=CallSyntax.HERMES, reasoning=_THINK, starts_in_reasoning=True
    )
    assert parser.push("The mark <tool_call> is").reasoning == "The mark <tool_call> is"
    assert parser.push(f" here: {_B4} and on").reasoning == f" here: {_B4} and on"


# -- texts that max_tokens cuts ------------------------------------------------------------------


@pytest.mark.parametrize("syntax", CallSyntax)
@pytest.mark.parametrize("reasoning", [None, _THINK])
def test_no_part_of_a_call_that_is_cut_off_is_content(
    syntax: CallSyntax, reasoning: Reasoning | None
) -> None:
    text = _said(syntax, '{"b": "y"}')
    first = 2 if syntax is not CallSyntax.LLAMA else text.index('"a"') + 3
    for end in range(first, len(text)):
        result = parsed([text[:end]], calls=syntax, reasoning=reasoning, is_cut=True)
        assert (result.content, result.reasoning) == ("", ""), text[:end]
        if result.calls:
            assert text[:end].count(result.calls[0][1]) or syntax is CallSyntax.QWEN_XML


@pytest.mark.parametrize("syntax", _MARKED)
def test_text_before_a_call_that_is_cut_off_stays(syntax: CallSyntax) -> None:
    text = f"Let me see.\n{_said(syntax, '{}')}"
    for end in range(len("Let me see.\n") + 2, len(text)):
        assert parsed([text[:end]], calls=syntax, is_cut=True).content == "Let me see."


@pytest.mark.parametrize("text", ["a <", "a < b", "1 [", "x\n", "<tool_calls are", "{'na"])
def test_other_text_that_is_cut_off_stays(text: str) -> None:
    for syntax in (CallSyntax.HERMES, CallSyntax.LLAMA, CallSyntax.MISTRAL):
        assert parsed(text, calls=syntax, is_cut=True) == Result(text)


def test_json_of_llama_that_is_cut_off_and_names_no_tool_stays() -> None:
    for text in ('{"name": "Bob", "pa', '{"na', '{"answer": {"a'):
        assert parsed(text, calls=CallSyntax.LLAMA, is_cut=True) == Result(text)


def test_no_part_of_the_mark_behind_reasoning_is_reasoning() -> None:
    for end in ("</", "\n</thin", "</think"):
        text = f"<think>hm{end}"
        assert at_every_cut(text, CallSyntax.HERMES, reasoning=_THINK, is_cut=True) == Result(
            reasoning="hm"
        )
    text = "<think>a < b <"
    assert at_every_cut(text, CallSyntax.HERMES, reasoning=_THINK, is_cut=True) == Result(
        reasoning="a < b <"
    )


# -- cost ----------------------------------------------------------------------------------------

_OPEN = {
    CallSyntax.HERMES: "<tool_call>{a:“",
    CallSyntax.LLAMA: "<|python_tag|>{a:“",
    CallSyntax.MISTRAL: "[TOOL_CALLS][{a:“",
    CallSyntax.MISTRAL_NAMED: "[TOOL_CALLS]a[ARGS]“",
    CallSyntax.HARMONY: "<|channel|>final to=a<|message|>“<|end|>",
    CallSyntax.DEEPSEEK_NAMED: "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>a<｜tool▁sep｜>“",
}
"""The begin of a call with a text that never ends."""


@pytest.mark.parametrize("syntax", _OPEN)
@pytest.mark.parametrize("around", [("", ""), ("<think>", ""), ("<think>", "”}x")])
def test_texts_that_never_end_are_read_in_linear_time(
    syntax: CallSyntax, around: tuple[str, str]
) -> None:
    options: dict[str, Any] = {"calls": syntax, "reasoning": _THINK if around[0] else None}
    short, long = (around[0] + _OPEN[syntax] * n + around[1] for n in (50, 200))
    assert is_linear(lambda: parsed([short], **options), lambda: parsed([long], **options))
    assert parsed([long], **options).calls == []


def test_a_call_is_found_behind_a_few_marks_that_begin_none() -> None:
    text = "<tool_call>{a:“ " * 8 + _said(CallSyntax.HERMES, "{}")
    assert at_every_cut(text, CallSyntax.HERMES).calls == [("a", "{}")]
