"""The grammar of the parameters of a call in Qwen3-Coder's XML, which it writes one by one.

A string is written as plain text, any other value as JSON: see `worker.chat.xml_tool_calls`. Where
a parameter may be either, texts that would be read as JSON are excluded.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from shared.errors import InvalidRequest
from shared.json_schema import quoted
from worker.chat.argument_form import Form
from worker.chat.parameter_schemas import ToolSchema, Way, bare, kinds, listed
from worker.chat.xml_tool_calls import PARAMETER, PARAMETER_END, is_name
from worker.grammar.patterns import ANY, FORMATS, lark_regex, whole_match

_BLANKS = r"[ \t\r\n]*"
_NAME = r"[^<>\r\n]{1,256}"
_INTEGER = "-?(0|[1-9][0-9]*)"
_SCALARS = {
    "null": "null",
    "boolean": "true|false",
    "integer": _INTEGER,
    "number": rf"{_INTEGER}(\.[0-9]+)?([eE][-+]?[0-9]+)?",
}
_BEGINS = {"array": r"\[", "object": r"\{"}
_BOUNDS = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}
_MOST_CHARS = 1 << 20
"""Of the rules of a tool, in which shared parts are repeated."""
SHARED_RULES = (
    "XML_END: " + quoted(f"\n{PARAMETER_END}\n"),
    # What ends a value for the reader.
    "XML_STOP: "
    + lark_regex(
        f"{ANY}{PARAMETER_END}{ANY}"
        rf"|(?s:(.*\n)?){PARAMETER}[^<>\r\n]+>{ANY}"
        rf"|(?s:(.*\n)?)</function>{_BLANKS}<(/?tool_call>|function=){ANY}"
    ),
    "XML_NEVER: /a/ & /b/",
)


def parameter_rules(
    index: int, name: str, schema: dict[str, Any], options: dict[str, Any]
) -> list[str]:
    """The rules of `arguments_<index>`. `name`: of the tool. `options`: for `%json`. Raises
    InvalidRequest."""
    return list(_Rules(index, name, schema, options).all())


class _Rules:
    """Rules under construction."""

    def __init__(
        self, index: int, name: str, schema: dict[str, Any], options: dict[str, Any]
    ) -> None:
        self._index = index
        self._schema = ToolSchema(schema)
        self._options = options
        self._tool = name
        self._rules: list[str] = []
        self._values: dict[str, str] = {}
        """Names of rules by what they match."""
        self._documents: dict[str, str] = {}
        self._elements: dict[tuple[int, ...], str] = {}
        """Elements by the ids of the lists and ways that they were made of."""
        self._chars_left = _MOST_CHARS

    def all(self) -> Iterator[str]:
        bodies = [self._form(form) for form in self._schema.forms]
        index = self._index
        # The schema as a whole is compiled, too: what cannot be enforced is refused as elsewhere.
        yield f"check_{index}: {self._json(self._schema.root)}"
        yield f"arguments_{index}: {' | '.join([*bodies, f'XML_NEVER check_{index}'])}"
        yield from self._rules

    def _form(self, form: Form) -> str:
        elements = []
        for key, schema in form.members.items():
            is_required = key in form.required
            if not is_name(key) or not self._schema.ways(schema):
                if is_required:
                    raise InvalidRequest(
                        f"The parameter {key[:64]!r} of {self._tool!r} cannot be written in this "
                        "model's format of calls.",
                        param="tools",
                    )
                continue
            value = self._value(schema, self._schema.read_as(key))
            begin = quoted(f"{PARAMETER}{key}>\n")
            elements.append(f"{begin} {value}" if is_required else f"({begin} {value})?")
        known = ""
        if form.members and form.others:
            known = f" & ~{self._named('KNOWN', ' | '.join(map(quoted, form.members)))}"
        elements += [self._others(form, known, *other) for other in form.others]
        return " ".join(filter(None, elements)) or quoted("")

    def _others(self, form: Form, known: str, pattern: str | None, schema: Any) -> str:
        """An element for parameters that are not named. `known` excludes the names."""
        if not self._schema.ways(schema):
            return ""
        names = [lark_regex(_NAME)]
        if pattern is not None:
            names.append(lark_regex(whole_match(pattern)))
        else:
            taken = (lark_regex(whole_match(p)) for p, _ in form.others if p is not None)
            names += [f"~{other}" for other in taken]
        end = quoted(">\n")
        begin = self._named("NAME", f"{quoted(PARAMETER)} ({' & '.join(names)}{known}) {end}")
        return f"({begin} {self._value(schema, self._schema.read_as(None))})*"

    def _value(self, schema: Any, read: list[Way]) -> str:
        found = self._schema.ways(schema)
        key = (id(found), *map(id, read))
        if key not in self._elements:
            self._elements[key] = (
                self._mixed(found, read)
                if any("string" in kinds(way) for way in found)
                else f"{self._named('json', self._json(bare(schema)))} XML_END"
            )
        return self._elements[key]

    def _read(self, read: list[Way]) -> str:
        """The terminal of the texts that are read as JSON; "" if there are none."""
        key = tuple(map(id, read))
        if key not in self._elements:
            texts = " | ".join(_excluded(read))
            self._take(len(texts))
            self._elements[key] = self._named("READ", texts) if texts else ""
        return self._elements[key]

    def _mixed(self, found: list[Way], read: list[Way]) -> str:
        """A value that may be a text."""
        excluded = f" & ~{name}" if (name := self._read(read)) else ""
        texts, documents = [], []
        for way in found:
            if "string" in kinds(way):
                texts.append(" & ".join(_text(way)) + excluded)
            if kinds(way) != {"string"}:
                scalars, schemas = _other_values(way)
                texts += scalars
                documents += [self._named("json", self._json(s)) for s in schemas]
        self._take(sum(map(len, texts)))
        terminal = self._named("VALUE", f"({' | '.join(dict.fromkeys(texts))}) XML_END")
        if not documents:
            return terminal
        return f"({terminal} | ({' | '.join(documents)}) XML_END)"

    def _json(self, schema: Any) -> str:
        schema = schema if isinstance(schema, dict) else {}
        key = json.dumps(schema)
        if key not in self._documents:
            whole = self._schema.standalone(schema)
            self._documents[key] = f"%json {json.dumps({**whole, **self._options})}"
            self._take(len(self._documents[key]))
        return self._documents[key]

    def _take(self, num_chars: int) -> None:
        self._chars_left -= num_chars
        if self._chars_left < 0:
            raise InvalidRequest(
                f"The schema of {self._tool!r} refers to large parts too often for this model's "
                "format of calls.",
                param="tools",
            )

    def _named(self, kind: str, body: str) -> str:
        """The name of the rule or terminal with this body."""
        if body not in self._values:
            self._values[body] = f"{kind}_{self._index}_{len(self._values)}"
            self._rules.append(f"{self._values[body]}: {body}")
        return self._values[body]


def _text(way: Way) -> list[str]:
    """Terminals that a string has to match."""
    texts = [value for value in listed(way) or () if isinstance(value, str)]
    found = [f"({' | '.join(map(quoted, texts))})"] if texts else []
    limits = [(part.get("minLength", 0), part.get("maxLength", "")) for part in way]
    counted = [(least, most) for least, most in limits if least or most != ""]
    for part in way:
        if "pattern" in part:
            found.append(lark_regex(whole_match(part["pattern"])))
        if part.get("format") in FORMATS:
            found.append(lark_regex(FORMATS[part["format"]]))
    if not counted:
        return [*(found or [lark_regex(ANY)]), "~XML_STOP"]
    # Without `<` nothing ends the value: each character counted while the marks are looked for
    # would be a state of the lexer for each place in a mark.
    return found + [lark_regex(f"[^<]{{{least},{most}}}") for least, most in counted]


def _other_values(way: Way) -> tuple[list[str], list[dict[str, Any]]]:
    """What is no string: terminals of single values, and schemas of the others."""
    values = listed(way)
    if values is not None:
        return [quoted(json.dumps(v)) for v in values if not isinstance(v, str)], []
    found = kinds(way) - {"string"}
    documents = [kind for kind in sorted(found) if kind in _BEGINS or _is_bounded(kind, way)]
    scalars = [lark_regex(_SCALARS[kind]) for kind in sorted(found) if kind not in documents]
    parts = list(map(bare, way))
    part = parts[0] if len(parts) == 1 else {"allOf": parts}
    return scalars, [{**part, "type": kind} for kind in documents]


def _excluded(read: list[Way]) -> Iterator[str]:
    """Expressions of the texts that are read as JSON."""
    found: set[str] = set()
    for way in read:
        values = listed(way)
        own = kinds(way) - {"string"}
        if values is not None:
            found |= {f"{_BLANKS}{_escaped(v)}{_BLANKS}" for v in values if not isinstance(v, str)}
            own &= set(_BEGINS)
        for kind in own:
            if kind in _BEGINS:
                found.add(f"{_BLANKS}{_BEGINS[kind]}{ANY}")
                continue
            # A bounded number is JSON of its own: the text must end where the number does.
            end = rf"({_BLANKS}|\n{ANY})" if _is_bounded(kind, way) else _BLANKS
            found.add(f"{_BLANKS}({_SCALARS[kind]}){end}")
    return map(lark_regex, sorted(found))


def _is_bounded(kind: str, way: Way) -> bool:
    return kind in ("integer", "number") and any(_BOUNDS & part.keys() for part in way)


def _escaped(value: Any) -> str:
    return re.escape(json.dumps(value))
