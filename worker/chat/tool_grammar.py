"""Grammars for chats, in llguidance's dialect of Lark: forced calls, reasoning before JSON.

Syntax: guidance-ai/llguidance@main:docs/syntax.md. `%json` is a schema in the middle of a
grammar, `<[5]>` the token with the id 5.
"""

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from shared.closed_schema import closed
from shared.errors import InvalidRequest
from shared.lark import quoted
from shared.lenient_schema import enforceable
from shared.messages import Grammar, GrammarKind, Job, Tool, ToolChoice
from worker.chat import calls, harmony
from worker.chat.calls import CallSyntax
from worker.chat.conversation import may_call
from worker.chat.parser import Reasoning
from worker.chat.xml_calls import (
    CALL,
    CALL_END,
    FUNCTION,
    FUNCTION_END,
    PARAMETER,
    PARAMETER_END,
    is_text,
    property_schemas,
)
from worker.guided_schema import guided_schema


class _Shape(NamedTuple):
    """The text of calls around their arguments. In `before`, NAME is the name as it is, and
    "NAME" the name as a JSON string."""

    before: str
    after: str
    separator: str = ""
    first: str = ""
    last: str = ""


_SHAPES = {
    CallSyntax.HERMES: _Shape(f'{CALL}\n{{"name": "NAME", "arguments": ', f"}}\n{CALL_END}", "\n"),
    CallSyntax.QWEN_XML: _Shape(f"{CALL}\n{FUNCTION}NAME>\n", f"{FUNCTION_END}\n{CALL_END}", "\n"),
    CallSyntax.HARMONY: _Shape(
        f"{harmony.CHANNEL}commentary to=functions.NAME {harmony.CONSTRAIN}json{harmony.MESSAGE}",
        "",
    ),
    CallSyntax.LLAMA: _Shape('{"name": "NAME", "parameters": ', "}", "; "),
    CallSyntax.MISTRAL: _Shape(
        '{"name": "NAME", "arguments": ', "}", ", ", f"{calls.TOOL_CALLS}[", "]"
    ),
    CallSyntax.MISTRAL_NAMED: _Shape(f"{calls.TOOL_CALLS}NAME{calls.ARGS}", ""),
    CallSyntax.DEEPSEEK: _Shape(
        f"{calls.CALL_BEGIN}function{calls.SEPARATOR}NAME\n```json\n",
        f"\n```{calls.FENCED_CALL_END}",
        "\n",
        calls.CALLS_BEGIN,
        calls.CALLS_END,
    ),
    CallSyntax.DEEPSEEK_NAMED: _Shape(
        f"{calls.CALL_BEGIN}NAME{calls.SEPARATOR}",
        calls.FENCED_CALL_END,
        "",
        calls.CALLS_BEGIN,
        calls.CALLS_END,
    ),
}
_BEFORE_CONTENT = {
    CallSyntax.HARMONY: f"{harmony.CHANNEL}final{harmony.MESSAGE}",
}
_HARMONY_REASONING = Reasoning(
    f"{harmony.CHANNEL}analysis{harmony.MESSAGE}", f"{harmony.END}{harmony.START}assistant"
)
_LAYOUT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""As the models have seen it; free blanks are where a constrained model loses itself."""
_ESCAPED = re.compile(r"\\.|/|\n", re.DOTALL)
_ESCAPES = {"/": r"\/", "\n": r"\n", "\\\n": r"\n"}
"""Of an expression between slashes, which stands on one line."""
_COMBINED = ("$ref", "allOf", "anyOf", "oneOf", "enum", "const", "type")


def job_grammar(
    job: Job,
    syntax: CallSyntax,
    reasoning: Reasoning | None,
    starts_in_reasoning: bool,
    control_tokens: dict[str, int],
) -> Grammar | None:
    """See `ChatFormat.grammar`."""
    if syntax is CallSyntax.HARMONY:
        reasoning = _HARMONY_REASONING
    is_forced = may_call(job) and job.tool_choice is ToolChoice.REQUIRED
    content = None if is_forced else _content_rule(job.grammar)
    if not is_forced and (content is None or not (reasoning or may_call(job))):
        return job.grammar
    lark = _Lark(control_tokens, [reasoning.begin, reasoning.end] if reasoning else [], syntax)
    before_content = lark.literals(_BEFORE_CONTENT.get(syntax, ""))
    if content is not None:
        lark.rules.append(content)
    bodies = [" ".join([*before_content, "content"])] if content is not None else []
    if may_call(job):
        bodies.append("calls")
        # In front of JSON as the other way to go on, Llama's calls have to be marked.
        lark.add_calls(job, mark=calls.PYTHON_TAG if content and _is_bare(syntax) else "")
    thinking = lark.thinking(reasoning, starts_in_reasoning) if reasoning else ""
    start = f"start: {thinking}({' | '.join(bodies)})"
    param = job.grammar.param if job.grammar and content is not None else "tools"
    return Grammar(GrammarKind.LARK, "\n".join([start, *lark.rules]), param)


def _is_bare(syntax: CallSyntax) -> bool:
    return syntax is CallSyntax.LLAMA


def _content_rule(grammar: Grammar | None) -> str | None:
    """The job's own grammar as a rule; None when it has none, or one that the engine will
    refuse with a better reason than could be given here."""
    if grammar is None:
        return None
    if grammar.kind is GrammarKind.REGEX:
        source = _ESCAPED.sub(lambda match: _ESCAPES.get(match[0], match[0]), grammar.source)
        return f"content: /{source}/"
    if grammar.kind is GrammarKind.LARK:
        return f"content: %lark {{\n{grammar.source}\n}}"
    try:
        schema = json.loads(grammar.source)
    except ValueError:
        return None
    if not isinstance(schema, dict):
        return None
    return f"content: %json {json.dumps(guided_schema(schema))}"


class _Lark:
    """Rules under construction."""

    def __init__(
        self, control_tokens: dict[str, int], marks: list[str], syntax: CallSyntax
    ) -> None:
        self._tokens = {
            mark: control_tokens[mark]
            for mark in [*marks, *calls.MARKS[syntax]]
            if mark in control_tokens
        }
        self._shape = _SHAPES[syntax]
        self._syntax = syntax
        self.rules: list[str] = []

    def add_calls(self, job: Job, mark: str) -> None:
        """Rule `calls`: one call of a tool that may be called, or several."""
        shape, names = self._shape, []
        for i, tool in enumerate(_callable_tools(job)):
            before = shape.before.replace('"NAME"', json.dumps(tool.name, ensure_ascii=False))
            before = before.replace("NAME", tool.name) if before == shape.before else before
            parts = [*self.literals(before), f"arguments_{i}", *self.literals(shape.after)]
            self.rules.append(f"call_{i}: {' '.join(parts)}")
            if self._syntax is CallSyntax.QWEN_XML:
                self.rules += _parameter_rules(i, tool)
            else:
                schema = json.dumps(_arguments_schema(tool))
                self.rules.append(f"arguments_{i}: %json {schema}")
            names.append(f"call_{i}")
        self.rules.append(f"call: {' | '.join(names)}")
        more = [*self.literals(shape.separator), "call"]
        # gpt-oss ends its turn with a call.
        is_single = self._syntax is CallSyntax.HARMONY or not job.parallel_tool_calls
        repeated = [] if is_single else [f"({' '.join(more)})*"]
        first, last = self.literals(mark + shape.first), self.literals(shape.last)
        self.rules.append(f"calls: {' '.join([*first, 'call', *repeated, *last])}")

    def thinking(self, reasoning: Reasoning, starts_in_reasoning: bool) -> str:
        """What stands in front of everything else, and the rule `thought` for it."""
        end = list(self.literals(reasoning.end))
        if not end[0].startswith('"'):
            self.rules.append(f"thought: /(.|\\n)*/ {' '.join(end)}")
        else:
            self.rules.append(f"thought[suffix={quoted(reasoning.end)}]: /(.|\\n)*/")
        self.rules.append(r"BLANKS: /[ \t\r\n]{1,4}/")
        if starts_in_reasoning:
            return "thought BLANKS? "
        return f"({' '.join(self.literals(reasoning.begin))} thought BLANKS?)? "

    def literals(self, text: str) -> Iterator[str]:
        """Return a text as elements of a rule: control tokens by their ids."""
        pattern = "|".join(map(re.escape, self._tokens))
        for part in re.split(f"({pattern})", text) if pattern else [text]:
            if part:
                token = self._tokens.get(part)
                yield quoted(part) if token is None else f"<[{token}]>"


def _callable_tools(job: Job) -> list[Tool]:
    if job.tool_name is None:
        return job.tools
    tools = [tool for tool in job.tools if tool.name == job.tool_name]
    if not tools:
        raise InvalidRequest(
            f"tool_choice names {job.tool_name!r}, which is not one of the tools.",
            param="tool_choice",
        )
    return tools[:1]


def _arguments_schema(tool: Tool) -> dict[str, Any]:
    """Closed, and without parameters an empty object, as OpenAI has it."""
    parameters = closed(_enforced(tool) or {"properties": {}})
    is_open = not any(key in parameters for key in _COMBINED)
    return {**({"type": "object"} if is_open else {}), **parameters, **_options(tool)}


def _enforced(tool: Tool) -> dict[str, Any]:
    """What the arguments are held to."""
    return tool.parameters if tool.is_strict else enforceable(tool.parameters)


def _options(tool: Tool) -> dict[str, Any]:
    return {"x-guidance": {**_LAYOUT, "lenient": not tool.is_strict}}


def _parameter_rules(index: int, tool: Tool) -> list[str]:
    """The parameters of a call in XML, in the order of their schema."""
    parameters = _enforced(tool)
    schemas = property_schemas(tool.name, [msgspec.structs.replace(tool, parameters=parameters)])
    required = parameters.get("required") or []
    defined = {key: parameters[key] for key in ("$defs", "definitions") if key in parameters}
    end = quoted(f"\n{PARAMETER_END}\n")
    elements, rules = [], []
    for i, (key, schema) in enumerate(schemas.items()):
        name, begin = f"{index}_{i}", quoted(f"{PARAMETER}{key}>\n")
        elements.append(f"parameter_{name}" + ("" if key in required else "?"))
        choices = _choices(schema)
        if choices:
            rules.append(f"value_{name}: ({' | '.join(choices)}) {end}")
        elif is_text(schema):
            rules.append(f"value_{name}[suffix={end}]: /(.|\\n)*/")
        else:
            whole = {**schema, **defined, **_options(tool)}
            rules.append(f"json_{name}: %json {json.dumps(whole)}")
            rules.append(f"value_{name}: json_{name} {end}")
        rules.append(f"parameter_{name}: {begin} value_{name}")
    return [f"arguments_{index}: {' '.join(elements) or quoted('')}", *rules]


def _choices(schema: Any) -> list[str]:
    """The texts that a string may be, if the schema lists them."""
    if not isinstance(schema, dict) or not is_text(schema):
        return []
    listed = [schema["const"]] if "const" in schema else schema.get("enum") or []
    return [quoted(text) for text in listed if isinstance(text, str)]
