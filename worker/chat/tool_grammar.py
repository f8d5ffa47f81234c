"""Grammars for chats, in llguidance's dialect of Lark: forced calls, reasoning before JSON.

Syntax: guidance-ai/llguidance@main:docs/syntax.md. `%json` embeds a schema in a grammar, `<[5]>`
is the token with the id 5.
"""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple

from shared.errors import InvalidRequest
from shared.json_schema import closed, enforceable, quoted, without_finite_patterns
from shared.wire.job import Grammar, GrammarKind, Job, Tool, ToolChoice
from worker.chat import harmony, tool_call_formats
from worker.chat.conversation import may_call
from worker.chat.output_parser import Reasoning
from worker.chat.parameter_schemas import of_objects
from worker.chat.tool_call_formats import CallSyntax
from worker.chat.xml_grammar import SHARED_RULES, parameter_rules
from worker.chat.xml_tool_calls import CALL, CALL_END, FUNCTION, FUNCTION_END
from worker.grammar.guided_schema import guided_schema
from worker.grammar.notation import as_lark, origin
from worker.grammar.patterns import ascii_classes, lark_regex


class _CallTemplate(NamedTuple):
    """The text of calls around their arguments. In `before`, NAME stands for the plain name and
    "NAME" for the name as a JSON string."""

    before: str
    after: str
    separator: str = ""
    first: str = ""
    last: str = ""


_SHAPES = {
    CallSyntax.HERMES: _CallTemplate(
        f'{CALL}\n{{"name": "NAME", "arguments": ', f"}}\n{CALL_END}", "\n"
    ),
    CallSyntax.QWEN_XML: _CallTemplate(
        f"{CALL}\n{FUNCTION}NAME>\n", f"{FUNCTION_END}\n{CALL_END}", "\n"
    ),
    CallSyntax.HARMONY: _CallTemplate(
        f"{harmony.CHANNEL}commentary to=functions.NAME {harmony.CONSTRAIN}json{harmony.MESSAGE}",
        "",
    ),
    CallSyntax.LLAMA: _CallTemplate('{"name": "NAME", "parameters": ', "}", "; "),
    CallSyntax.MISTRAL: _CallTemplate(
        '{"name": "NAME", "arguments": ', "}", ", ", f"{tool_call_formats.TOOL_CALLS}[", "]"
    ),
    CallSyntax.MISTRAL_NAMED: _CallTemplate(
        f"{tool_call_formats.TOOL_CALLS}NAME{tool_call_formats.ARGS}", ""
    ),
    CallSyntax.DEEPSEEK: _CallTemplate(
        f"{tool_call_formats.CALL_BEGIN}function{tool_call_formats.SEPARATOR}NAME\n```json\n",
        f"\n```{tool_call_formats.FENCED_CALL_END}",
        "\n",
        tool_call_formats.CALLS_BEGIN,
        tool_call_formats.CALLS_END,
    ),
    CallSyntax.DEEPSEEK_NAMED: _CallTemplate(
        f"{tool_call_formats.CALL_BEGIN}NAME{tool_call_formats.SEPARATOR}",
        tool_call_formats.FENCED_CALL_END,
        "",
        tool_call_formats.CALLS_BEGIN,
        tool_call_formats.CALLS_END,
    ),
}
_BEFORE_CONTENT = {CallSyntax.HARMONY: f"{harmony.CHANNEL}final{harmony.MESSAGE}"}
_HARMONY_REASONING = Reasoning(
    f"{harmony.CHANNEL}analysis{harmony.MESSAGE}", f"{harmony.END}{harmony.START}assistant"
)
_LAYOUT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""The layout of the training data. With free blanks, a constrained model may write them forever."""


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
        # Llama's calls are bare JSON: beside JSON content they need a mark to tell them apart.
        needs_mark = content is not None and syntax is CallSyntax.LLAMA
        lark.add_calls(job, mark=tool_call_formats.PYTHON_TAG if needs_mark else "")
    thinking = lark.thinking(reasoning, starts_in_reasoning) if reasoning else ""
    start = f"start: {thinking}({' | '.join(bodies)})"
    param = job.grammar.param if job.grammar and content is not None else "tools"
    return Grammar(GrammarKind.LARK, "\n".join([start, *lark.rules]), param)


def _content_rule(grammar: Grammar | None) -> str | None:
    """The job's own grammar as a rule; None without one, or with an invalid one, which the
    engine refuses with a better reason."""
    if grammar is None:
        return None
    if grammar.kind is GrammarKind.REGEX:
        return f"content: {lark_regex(ascii_classes(grammar.source))}"
    if grammar.kind is GrammarKind.LARK:
        with suppress(Exception):  # of llguidance's converter
            return f"content: %lark {{\n{as_lark(grammar.source)}\n}}"
        return None
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
            for mark in [*marks, *tool_call_formats.MARKS[syntax]]
            if mark in control_tokens
        }
        self._shape = _SHAPES[syntax]
        self._syntax = syntax
        self.rules: list[str] = []

    def add_calls(self, job: Job, mark: str) -> None:
        """Add the rule `calls`: one call or more of the permitted tools."""
        shape, names = self._shape, []
        for i, tool in enumerate(_callable_tools(job)):
            before = shape.before.replace('"NAME"', json.dumps(tool.name, ensure_ascii=False))
            before = before.replace("NAME", tool.name) if before == shape.before else before
            parts = [*self.literals(before), f"arguments_{i}", *self.literals(shape.after)]
            self.rules.append(f"call_{i}: {' '.join(parts)}")
            self.rules.append(origin(f"the JSON schema of the tool {tool.name!r}"))
            schema = _arguments_schema(tool)
            if self._syntax is CallSyntax.QWEN_XML:
                self.rules += parameter_rules(i, tool.name, schema, _options(tool))
            else:
                self.rules.append(f"arguments_{i}: %json {json.dumps(schema | _options(tool))}")
            names.append(f"call_{i}")
        if self._syntax is CallSyntax.QWEN_XML:
            self.rules += SHARED_RULES
        self.rules.append(f"call: {' | '.join(names)}")
        more = [*self.literals(shape.separator), "call"]
        # gpt-oss ends its turn with a call.
        is_single = self._syntax is CallSyntax.HARMONY or not job.parallel_tool_calls
        repeated = [] if is_single else [f"({' '.join(more)})*"]
        first, last = self.literals(mark + shape.first), self.literals(shape.last)
        self.rules.append(f"calls: {' '.join([*first, 'call', *repeated, *last])}")

    def thinking(self, reasoning: Reasoning, starts_in_reasoning: bool) -> str:
        """Add the rule `thought`; return what precedes the rest of the completion."""
        end = list(self.literals(reasoning.end))
        # `suffix` takes text only: an end mark that is a control token follows as an element.
        if not end[0].startswith('"'):
            self.rules.append(f"thought: /(.|\\n)*/ {' '.join(end)}")
        else:
            self.rules.append(f"thought[suffix={quoted(reasoning.end)}]: /(.|\\n)*/")
        self.rules.append(r"BLANKS: /[ \t\r\n]{1,4}/")
        if starts_in_reasoning:
            return "thought BLANKS? "
        return f"({' '.join(self.literals(reasoning.begin))} thought BLANKS?)? "

    def literals(self, text: str) -> Iterator[str]:
        """Split a text into elements of a rule: control tokens by their ids, the rest quoted."""
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
        reason = f"tool_choice names {job.tool_name!r}, which is not one of the tools."
        raise InvalidRequest(reason, param="tool_choice")
    return tools[:1]


def _arguments_schema(tool: Tool) -> dict[str, Any]:
    """The closed schema of the arguments; without parameters an empty object, as OpenAI does."""
    enforced = tool.parameters if tool.is_strict else enforceable(tool.parameters)
    schema = without_finite_patterns(closed(enforced or {"properties": {}}))
    return of_objects(schema, tool.name)


def _options(tool: Tool) -> dict[str, Any]:
    return {"x-guidance": {**_LAYOUT, "lenient": not tool.is_strict}}
