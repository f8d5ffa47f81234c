"""Tool calls as Qwen3-Coder writes them, with the arguments as JSON for the client.

    <tool_call>
    <function=name>
    <parameter=key>
    a value, as plain text
    </parameter>
    </function>
    </tool_call>

What a value means is in the tool's schema: itself for a string, JSON for anything else.
"""

import json
from typing import Any

from shared.messages import Tool
from worker.chat.call_reader import CallSink
from worker.chat.reading import BLANKS, Characters, Reading

CALL, CALL_END = "<tool_call>", "</tool_call>"
FUNCTION, FUNCTION_END = "<function=", "</function>"
PARAMETER, PARAMETER_END = "<parameter=", "</parameter>"
_MAX_NAME = 256
_COMBINED = {"$ref", "allOf", "anyOf", "oneOf", "properties", "items"}
"""Schemas that have one of these can be anything, whatever their own type is."""


def read_xml(source: Characters, sink: CallSink, tools: list[Tool]) -> Reading[None]:
    """Read calls to the end of the text. Models leave out `<tool_call>` now and then."""
    while mark := (yield from source.until(sink.say, CALL, FUNCTION)):
        is_marked = mark == CALL
        if is_marked and not (yield from source.skip(FUNCTION)):
            sink.say(CALL)
            continue
        name = yield from _name(source)
        if not name or not (yield from _is_begun(source)):
            source.put_back(f"{name}>" if name else "")
            sink.say(f"{CALL}\n{FUNCTION}" if is_marked else FUNCTION)
            continue
        sink.open_call(name)
        if (yield from _arguments(source, sink, property_schemas(name, tools))):
            yield from source.skip(CALL_END, is_end=True)


def property_schemas(name: str, tools: list[Tool]) -> dict[str, Any]:
    """The schemas of a tool's parameters; empty for an unknown one."""
    for tool in tools:
        found = tool.parameters.get("properties")
        if tool.name == name and isinstance(found, dict):
            return found
    return {}


def is_text(schema: Any) -> bool:
    """Whether values are texts that stand as they are. What is not described is one."""
    if not isinstance(schema, dict):
        return True
    return bool(schema.get("type", "string") == "string") and not _COMBINED & schema.keys()


def _name(source: Characters) -> Reading[str]:
    """Read a name and the bracket behind it; "" where there is none, and nothing is taken."""
    name = ""
    while (char := (yield from source.next())) and char not in BLANKS + "<>":
        name += char
        if len(name) > _MAX_NAME:
            break
    if name and char == ">":
        return name
    source.put_back(name + char if len(name) <= _MAX_NAME else name)
    return ""


def _is_begun(source: Characters) -> Reading[bool]:
    """Look whether a call goes on behind its name: prose speaks of `<function=…>`, too."""
    for mark in (PARAMETER, FUNCTION_END):
        if (yield from source.skip(mark)):
            source.put_back(mark)
            return True
    return False


def _arguments(source: Characters, sink: CallSink, schemas: dict[str, Any]) -> Reading[bool]:
    """Read parameters. False: the text was cut off, and the JSON is left open to say so."""
    before = "{"
    while (yield from source.skip(PARAMETER, is_end=True)):
        key = yield from _name(source)
        if source.is_over:
            return False
        if not key:
            source.put_back(PARAMETER)
            break
        sink.add_arguments(f"{before}{json.dumps(key, ensure_ascii=False)}: ")
        before = ", "
        read = _text if is_text(schemas.get(key)) else _value
        if not (yield from read(source, sink)):
            return False
    if not (yield from source.skip(FUNCTION_END, is_end=True)):
        yield from source.blanks()
        if source.is_over:
            return False
    sink.add_arguments("{}" if before == "{" else "}")
    return True


def _text(source: Characters, sink: CallSink) -> Reading[bool]:
    """Read a string, without the line breaks next to its marks."""
    sink.add_arguments('"')
    first = yield from source.next()
    if first != "\n":
        source.put_back(first)
    held = ""

    def say(text: str) -> None:
        nonlocal held
        for char in text:
            text, held = (held, char) if char == "\n" else (held + char, "")
            sink.add_arguments(_escaped(text))

    if not (yield from source.until(say, PARAMETER_END)):
        sink.add_arguments(_escaped(held))
        return False
    sink.add_arguments('"')
    return True


def _value(source: Characters, sink: CallSink) -> Reading[bool]:
    """Read JSON, or text where it is none."""
    taken: list[str] = []
    if not (yield from source.until(taken.append, PARAMETER_END)):
        return False
    text = "".join(taken).strip(BLANKS)
    for candidate in (text, text.lower()):  # Python's True, for one
        if _is_json(candidate):
            sink.add_arguments(candidate)
            return True
    sink.add_arguments(json.dumps(text, ensure_ascii=False))
    return True


def _is_json(text: str) -> bool:
    try:
        json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    return True


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _escaped(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]
