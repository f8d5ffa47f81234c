"""What the grammars of chats admit, asked of llguidance itself, and what the parser makes of it."""

import json
from typing import Any

import pytest

from shared.errors import InvalidRequest
from shared.wire.job import Grammar, GrammarKind, Job, Tool, ToolChoice
from tests.support.call_grammars import World, said, xml_call
from tests.support.chat_jobs import TIME, WEATHER, chat_job
from worker.chat.conversation import TemplateStyle
from worker.chat.format import ChatFormat
from worker.chat.output_parser import Reasoning
from worker.chat.tool_call_formats import PYTHON_TAG, CallSyntax
from worker.grammar.notation import fault

_THINK = Reasoning("<think>", "</think>")
_JSON = Grammar(GrammarKind.JSON_SCHEMA, '{"type": "object", "required": ["a"], "properties": '
                '{"a": {"type": "integer"}}, "additionalProperties": false}')  # fmt: skip


@pytest.fixture(params=[False, True], ids=["marks as text", "marks as tokens"], scope="module")
def world(request: pytest.FixtureRequest) -> World:
    return World(has_control_tokens=request.param)


def _format(syntax: CallSyntax, reasoning: Reasoning | None = None) -> ChatFormat:
    return ChatFormat(syntax, reasoning, TemplateStyle())


def _forced(**fields: Any) -> Job:
    base = {"tools": [WEATHER, TIME], "tool_choice": ToolChoice.REQUIRED}
    return chat_job(**(base | fields))


@pytest.mark.parametrize("syntax", CallSyntax)
def test_forced_calls_match_their_schemas_and_can_be_parsed(
    world: World, syntax: CallSyntax
) -> None:
    form, job = _format(syntax), _forced()
    grammar = form.grammar(job, False, world.control_tokens)
    city = '{"city": "Zürich", "days": 2}'
    for calls in (
        [("get_weather", city)],
        [("get_time", "{}")],
        [("get_weather", city), ("get_time", "{}"), ("get_weather", city)],
    ):
        text = said(syntax, *calls)
        is_admitted = syntax is not CallSyntax.HARMONY or len(calls) == 1
        assert world.admits(grammar, text) is is_admitted, text
        parser = form.parser(job, 0, False)
        assert parser is not None
        parts = parser.push(text) + parser.finish()
        assert [(c.name, c.arguments) for c in parts.tool_calls] == calls
        assert parts.content == ""
    for calls in (
        [("get_weather", '{"days": 2}')],
        [("get_weather", '{"city": "x", "days": 0}')],
        [("get_weather", '{"city": "x", "strange": 0}')],
        [("get_news", "{}")],
        [("get_time", "[]")],
    ):
        assert not world.admits(grammar, said(syntax, *calls)), calls
    assert not world.admits(grammar, "no")
    assert not world.admits(grammar, "")


@pytest.mark.parametrize("parameters", [{}, {"type": "object", "properties": {}}])
def test_arguments_that_no_schema_names_are_not_made_up(
    world: World, parameters: dict[str, Any]
) -> None:
    job = _forced(tools=[Tool("get_time", "", parameters)])
    grammar = _format(CallSyntax.HERMES).grammar(job, False, world.control_tokens)
    assert world.admits(grammar, said(CallSyntax.HERMES, ("get_time", "{}")))
    assert not world.admits(grammar, said(CallSyntax.HERMES, ("get_time", '{"a": 1}')))


@pytest.mark.parametrize("syntax", CallSyntax)
def test_a_named_tool_and_a_single_call(world: World, syntax: CallSyntax) -> None:
    job = _forced(tool_name="get_time", parallel_tool_calls=False)
    grammar = _format(syntax).grammar(job, False, world.control_tokens)
    assert world.admits(grammar, said(syntax, ("get_time", "{}")))
    assert not world.admits(grammar, said(syntax, ("get_time", "{}"), ("get_time", "{}")))
    assert not world.admits(grammar, said(syntax, ("get_weather", '{"city": "x"}')))


def test_a_named_tool_that_is_not_there_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="'nothing'"):
        _format(CallSyntax.HERMES).grammar(_forced(tool_name="nothing"), False, {})


def test_reasoning_comes_before_what_is_forced(world: World) -> None:
    form = _format(CallSyntax.HERMES, _THINK)
    call = said(CallSyntax.HERMES, ("get_time", "{}"))
    grammar = form.grammar(_forced(), False, world.control_tokens)
    assert world.admits(grammar, f"<think>\nhm <tool_call>\n</think>\n\n{call}")
    assert world.admits(grammar, call)
    assert not world.admits(grammar, f"hm\n</think>\n\n{call}")
    grammar = form.grammar(_forced(), True, world.control_tokens)
    assert world.admits(grammar, f"hm\n</think>\n\n{call}")
    assert not world.admits(grammar, "hm\n</think>\n\nno")
    assert not world.admits(grammar, "hm")


@pytest.mark.parametrize(
    ("content", "good", "bad"),
    [
        (_JSON, '{"a": 5}', '{"b": 5}'),
        (Grammar(GrammarKind.REGEX, r"[ab]+/\d\\"), "ab/5\\", "ab5"),
        (Grammar(GrammarKind.REGEX, r"\d/\w"), "5/a", "٣/a"),
        (Grammar(GrammarKind.LARK, 'start: x+\nx: "y"'), "yyy", "yx"),
        (Grammar(GrammarKind.LARK, '?start: x+\nx: "y"'), "yyy", "yx"),
        (Grammar(GrammarKind.LARK, 'root ::= x+\nx ::= "y"'), "yyy", "yx"),
    ],
)
def test_a_grammar_of_the_job_holds_behind_the_reasoning(
    world: World, content: Grammar, good: str, bad: str
) -> None:
    form = _format(CallSyntax.HERMES, _THINK)
    job = chat_job(grammar=content)
    for starts, before in ((True, "hm {}</think>\n\n"), (False, "<think>hm</think>"), (False, "")):
        grammar = form.grammar(job, starts, world.control_tokens)
        assert world.admits(grammar, before + good)
        assert not world.admits(grammar, before + bad)


@pytest.mark.parametrize("syntax", CallSyntax)
@pytest.mark.parametrize("reasoning", [None, _THINK])
def test_with_tools_the_content_matches_or_there_are_calls(
    world: World, syntax: CallSyntax, reasoning: Reasoning | None
) -> None:
    form = _format(syntax, reasoning)
    job = chat_job(tools=[WEATHER, TIME], grammar=_JSON)
    grammar = form.grammar(job, False, world.control_tokens)
    tag = PYTHON_TAG if syntax is CallSyntax.LLAMA else ""
    before = "<|channel|>final<|message|>" if syntax is CallSyntax.HARMONY else ""
    assert world.admits(grammar, before + '{"a": 5}')
    assert world.admits(grammar, tag + said(syntax, ("get_time", "{}")))
    assert not world.admits(grammar, tag + said(syntax, ("get_weather", "{}")))
    assert not world.admits(grammar, before + '{"b": 5}')
    assert not world.admits(grammar, before + "no")


def test_gpt_oss_thinks_before_what_is_bound(world: World) -> None:
    thought = "<|channel|>analysis<|message|>hm {<|end|><|start|>assistant"
    grammar = _format(CallSyntax.HARMONY).grammar(
        chat_job(grammar=_JSON), False, world.control_tokens
    )
    for before in ("", thought):
        assert world.admits(grammar, before + '<|channel|>final<|message|>{"a": 5}')
        assert not world.admits(grammar, before + '<|channel|>final<|message|>{"b": 5}')
    grammar = _format(CallSyntax.HARMONY).grammar(_forced(), False, world.control_tokens)
    assert world.admits(grammar, thought + said(CallSyntax.HARMONY, ("get_time", "{}")))
    assert not world.admits(grammar, thought + '<|channel|>final<|message|>{"a": 5}')


def test_without_reasoning_or_tools_the_grammar_is_the_jobs_own() -> None:
    form = _format(CallSyntax.LLAMA)
    assert form.grammar(chat_job(), False, {}) is None
    assert form.grammar(chat_job(tools=[TIME]), False, {}) is None
    assert form.grammar(chat_job(grammar=_JSON), False, {}) is _JSON
    none = chat_job(tools=[TIME], tool_choice=ToolChoice.NONE, grammar=_JSON)
    assert form.grammar(none, False, {}) is _JSON
    thinking = _format(CallSyntax.LLAMA, _THINK)
    assert thinking.grammar(chat_job(), True, {}) is None
    assert thinking.grammar(chat_job(tools=[TIME]), True, {}) is None


def test_a_schema_that_is_no_json_is_left_to_the_engine() -> None:
    for source in ("{bad", "[1]"):
        bad = Grammar(GrammarKind.JSON_SCHEMA, source)
        assert _format(CallSyntax.HERMES, _THINK).grammar(chat_job(grammar=bad), False, {}) is bad


def test_names_and_schemas_cannot_leave_their_places(world: World) -> None:
    tool = Tool('a"b\\', "", {"type": "object", "properties": {'x" | "': {"const": "\n}%"}}})
    job = _forced(tools=[tool])
    grammar = _format(CallSyntax.HERMES).grammar(job, False, world.control_tokens)
    name = json.dumps(tool.name)
    text = f'<tool_call>\n{{"name": {name}, "arguments": {{"x\\" | \\"": "\\n}}%"}}}}\n</tool_call>'
    assert world.admits(grammar, text)
    assert not world.admits(grammar, '<tool_call>\n{"name": "a", "arguments": {}}\n</tool_call>')


def _is_admitted(parameters: dict[str, Any], text: str, *, is_strict: bool = False) -> bool:
    """Whether a forced call may have these arguments."""
    world = World(has_control_tokens=False)
    job = _forced(tools=[Tool("f", "", parameters, is_strict)])
    grammar = _format(CallSyntax.HERMES).grammar(job, False, {})
    return world.admits(grammar, said(CallSyntax.HERMES, ("f", text)))


def test_of_a_tool_that_is_not_strict_what_cannot_be_enforced_is_left_out() -> None:
    properties = {"a": {"type": "string", "pattern": "^(?=x)x"}, "b": {"type": "integer"}}
    schema = {"properties": {**properties, "c": {"contains": {"const": 5}}}, "required": ["a"]}
    assert _is_admitted(schema, '{"a": "y", "b": 5}')
    assert not _is_admitted(schema, '{"a": "y", "b": "z"}')
    with pytest.raises(AssertionError, match="contains"):
        _is_admitted(schema, '{"a": "y"}', is_strict=True)


@pytest.mark.parametrize("syntax", [CallSyntax.HERMES, CallSyntax.QWEN_XML])
def test_definitions_may_have_the_name_of_draft_7(world: World, syntax: CallSyntax) -> None:
    properties = {"days": {"$ref": "#/definitions/day"}}
    schema = {"properties": properties, "definitions": {"day": {"type": "integer"}}}
    job = _forced(tools=[Tool("f", "", schema)])
    grammar = _format(syntax).grammar(job, False, world.control_tokens)
    assert world.admits(grammar, said(syntax, ("f", '{"days": 5}')))
    assert not world.admits(grammar, said(syntax, ("f", '{"days": "x"}')))


def test_a_parameter_may_have_any_character_in_its_name(world: World) -> None:
    job = _forced(tools=[Tool("f", "", {"properties": {"a\x7fé": {"enum": ["\x7f😀"]}}})])
    grammar = _format(CallSyntax.QWEN_XML).grammar(job, False, world.control_tokens)
    assert world.admits(grammar, xml_call("f", '{"a\x7fé": "\x7f😀"}'))


def test_white_space_is_limited_behind_reasoning(world: World) -> None:
    grammar = _format(CallSyntax.HERMES, _THINK).grammar(
        chat_job(grammar=_JSON), True, world.control_tokens
    )
    assert world.admits(grammar, 'hm</think>{ "a": 5}')
    assert not world.admits(grammar, 'hm</think>{    "a": 5}')


@pytest.mark.parametrize("source", ["a\n?b", "a\\\n?b", "[\n]?a/?\n?b", r"a\n?b"])
def test_an_expression_of_several_lines_is_none_the_less_one(world: World, source: str) -> None:
    job = chat_job(tools=[TIME], grammar=Grammar(GrammarKind.REGEX, source))
    grammar = _format(CallSyntax.HERMES, _THINK).grammar(job, True, world.control_tokens)
    for text in ("ab", "a\nb", said(CallSyntax.HERMES, ("get_time", "{}"))):
        assert world.admits(grammar, f"hm</think>{text}"), text
    assert not world.admits(grammar, "hm</think>b")


def test_the_errors_of_a_grammar_name_what_asked_for_it() -> None:
    form = _format(CallSyntax.HERMES, _THINK)
    regex = Grammar(GrammarKind.REGEX, "(a", "guided_regex")
    wrapped = form.grammar(chat_job(tools=[TIME], grammar=regex), True, {})
    assert wrapped is not None and wrapped.param == "guided_regex"
    forced = form.grammar(_forced(grammar=regex), True, {})
    assert forced is not None and forced.param == "tools"


def test_values_in_xml_follow_their_schemas(world: World) -> None:
    properties = {
        "unit": {"type": "string", "enum": ["C", "F"]},
        "text": {"type": "string"},
        "days": {"type": "array", "items": {"$ref": "#/$defs/day"}},
    }
    schema = {"properties": properties, "required": ["text"], "$defs": {"day": {"type": "integer"}}}
    job = _forced(tools=[Tool("f", "", schema)])
    grammar = _format(CallSyntax.QWEN_XML).grammar(job, False, world.control_tokens)
    for arguments in ('{"unit": "C", "text": "a\\n<b>"}', '{"text": "", "days": [1, 2]}'):
        assert world.admits(grammar, xml_call("f", arguments)), arguments
    for arguments in ('{"unit": "K", "text": "a"}', '{"text": "", "days": ["x"]}', '{"unit": "C"}'):
        assert not world.admits(grammar, xml_call("f", arguments)), arguments


@pytest.mark.parametrize("syntax", CallSyntax)
@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"properties": {"a": {"contains": {}}}, "required": ["a"]}, "contains"),
        ({"properties": {"a": {"type": "nonsense"}}, "required": ["a"]}, "nonsense|cannot be"),
        ({"properties": {"a": {"$ref": "#/nowhere"}}, "required": ["a"]}, "nowhere|cannot be"),
        ({"properties": {"a": {"pattern": "(?=x)"}}, "required": ["a"]}, "look-?around"),
        ({"type": "string"}, "No object matches"),
        ({"allOf": [{"type": "object"}, {"type": "array"}]}, "No object matches|incompatible"),
    ],
)
def test_an_error_names_the_tool(
    world: World, syntax: CallSyntax, parameters: dict[str, Any], reason: str
) -> None:
    job = _forced(tools=[TIME, Tool("bad", "", parameters, is_strict=True), WEATHER])
    with pytest.raises((InvalidRequest, AssertionError), match=reason) as caught:
        grammar = _format(syntax).grammar(job, False, world.control_tokens)
        assert grammar is not None
        error = world.error(grammar)
        assert not error, fault(grammar.source, error)
    assert "'bad'" in str(caught.value).replace('"', "'").replace("\\", "")


@pytest.mark.parametrize("pattern", ["^a$", "^a.$"])
def test_patterns_of_names_keep_the_arguments_open(world: World, pattern: str) -> None:
    schema = {"type": "object", "patternProperties": {pattern: {"type": "integer"}}}
    tool = Tool("f", "", schema | {"required": ["a"]})
    grammar = _format(CallSyntax.HERMES).grammar(_forced(tools=[tool]), False, world.control_tokens)
    assert world.admits(grammar, said(CallSyntax.HERMES, ("f", '{"a": 1, "b": "x"}')))
