"""What a tool's schema says of each parameter, for call formats that name parameters one by one."""

import json
import re
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any
from urllib.parse import unquote

from shared.errors import InvalidRequest
from shared.json_schema import all_parts, with_parts
from worker.chat.argument_form import Form, form_of

_COMBINERS = ("$ref", "allOf", "anyOf", "oneOf")
_DEFINITIONS = ("$defs", "definitions")
_ANNOTATIONS = {"$comment", "$schema", "title", "description", "default", "examples", "deprecated"}
_MAX_WAYS = 256
_MAX_STEPS = 20_000
"""Per tool; a step takes 2 µs. Without a bound, references to references double them."""
_KINDS = frozenset({"null", "boolean", "integer", "number", "string", "array", "object"})
_TOO_MANY = "A schema has too many alternatives."

Way = tuple[dict[str, Any], ...]
"""Schemas without combiners that have to hold together: one way to match a schema."""


def of_objects(schema: dict[str, Any], tool: str) -> dict[str, Any]:
    """Return the schema such that only objects match it. Raises InvalidRequest if none does."""
    try:
        found = frozenset[str]().union(*map(kinds, ToolSchema(schema).ways(schema)))
    except InvalidRequest:  # more alternatives than are followed: llguidance may take them
        return schema
    if "object" not in found:
        raise InvalidRequest(f"No object matches the parameters of {tool!r}.", param="tools")
    # With a type beside it, a recursive reference may be more than llguidance takes.
    return schema if found == {"object"} else {**schema, "type": "object"}


class ToolSchema:
    """The schema of a tool's arguments, references followed. All methods raise InvalidRequest when
    they have taken too many steps together. Not thread-safe."""

    def __init__(self, root: dict[str, Any]) -> None:
        self.root = root
        self._steps_left = _MAX_STEPS
        self._found: dict[int, tuple[Any, list[Way]]] = {}
        """By the id of a schema, which is held so that the id stays its own."""
        self._read: dict[str | None, list[Way]] = {}
        self._targets: dict[str, Any] = {}
        self._own: dict[int, dict[str, Any]] = {}
        """A schema's keywords beside the combiners, by its id: two parts of a way may be one."""
        self._kinds: dict[int, set[str]] = {}
        """By the id of such a part."""

    @cached_property
    def forms(self) -> list[Form]:
        """The forms of an object that matches the schema."""
        found = []
        for way in self.ways(self.root):
            if "object" in kinds(way):
                found.append(form_of(way))
                self._count(len(way) * (len(found[-1].members) + len(found[-1].others)))
        return found

    def ways(self, schema: Any) -> list[Way]:
        """The ways to match a schema, which must not change."""
        schema = self._unwrapped(schema, frozenset())[0]
        if id(schema) not in self._found:
            try:
                self._found[id(schema)] = (schema, self._ways(schema, frozenset()))
            except RecursionError:
                reason = "A schema's references are too deep."
                raise InvalidRequest(reason, param="tools") from None
        return self._found[id(schema)][1]

    def read_as(self, key: str | None) -> list[Way]:
        """The ways to match a parameter, whichever form the call has; None = one not named."""
        key = key if any(key in form.members for form in self.forms) else None
        if key not in self._read:
            schemas = [form.members[key] for form in self.forms if key in form.members]
            schemas += [s for form in self.forms if key not in form.members for _, s in form.others]
            self._count(len(schemas))
            self._read[key] = [way for schema in schemas for way in self.ways(schema)]
        return self._read[key]

    def standalone(self, schema: dict[str, Any]) -> dict[str, Any]:
        """Return the schema with what it refers to in the root, as a document of its own."""
        keys: dict[str, str] = {}
        waiting: list[tuple[str, Any]] = []

        def moved(part: Any) -> Any:
            if not isinstance(part, dict):
                return part
            own = with_parts({k: v for k, v in part.items() if k not in _DEFINITIONS}, moved)
            ref = str(own.get("$ref"))
            target = self._target(ref)
            if target is not None:
                if ref not in keys:
                    keys[ref] = f"d{len(keys)}"
                    waiting.append((keys[ref], target))
                own["$ref"] = f"#/$defs/{keys[ref]}"
            return own

        result, defined = moved(schema), dict[str, Any]()
        while waiting:
            key, target = waiting.pop()
            defined[key] = moved(target)
        draft = {key: self.root[key] for key in ("$schema",) if key in self.root}
        return {**draft, **result, **({"$defs": defined} if defined else {})}

    def _ways(self, schema: Any, refs: frozenset[str]) -> list[Way]:
        schema, refs = self._unwrapped(schema, refs)
        if not isinstance(schema, dict):
            return [] if schema is False else [()]
        own = {k: v for k, v in schema.items() if k not in _COMBINERS}
        found = self._possible([(self._own.setdefault(id(schema), own),)])
        for group in self._groups(schema, refs):
            found = self._possible(_without_repeats(a + b) for a in found for b in group)
            if len(found) > _MAX_WAYS:
                raise InvalidRequest(_TOO_MANY, param="tools")
        return found

    def _unwrapped(self, schema: Any, refs: frozenset[str]) -> tuple[Any, frozenset[str]]:
        """Follow what is nothing but a reference, or one part: such chains can be long."""
        self._count(1)
        while isinstance(schema, dict):
            keys = schema.keys() - _ANNOTATIONS - set(_DEFINITIONS)
            if keys == {"allOf"} and len(schema["allOf"]) == 1:
                schema = schema["allOf"][0]
            elif keys == {"$ref"} and isinstance(ref := schema["$ref"], str):
                target = self._target(ref)
                schema = False if target is None or ref in refs else target
                refs |= {ref}
            else:
                break
            self._count(1)
        return schema, refs

    def _groups(self, schema: dict[str, Any], refs: frozenset[str]) -> Iterator[list[Way]]:
        """For each combiner the ways of which one has to hold."""
        ref = schema.get("$ref")
        if isinstance(ref, str):
            target = self._target(ref)
            # One that is itself by reference has no values; an unknown one is llguidance's error.
            yield [] if target is None or ref in refs else self._ways(target, refs | {ref})
        for part in schema.get("allOf", ()):
            yield self._ways(part, refs)
        for key in ("anyOf", "oneOf"):
            if key in schema:
                yield [way for part in schema[key] for way in self._ways(part, refs)]

    def _target(self, ref: str) -> Any:
        """The schema at a JSON pointer or an anchor; None if there is none."""
        if ref not in self._targets:
            pointer = unquote(ref)
            is_anchor = re.fullmatch(r"#[^/]+", pointer)
            self._targets[ref] = (
                self._anchors.get(pointer[1:]) if is_anchor else _pointed(pointer, self.root)
            )
        return self._targets[ref]

    @cached_property
    def _anchors(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for part in all_parts(self.root):
            if isinstance(anchor := part.get("$anchor"), str):
                found.setdefault(anchor, part)
        return found

    def _possible(self, found: Iterable[Way]) -> list[Way]:
        """Those that a value can match."""
        possible = []
        for way in found:
            self._count(len(way))
            for part in way:
                if id(part) not in self._kinds:
                    self._kinds[id(part)] = _kinds(part)
            if _KINDS.intersection(*(self._kinds[id(part)] for part in way)):
                possible.append(way)
        return possible

    def _count(self, num_steps: int) -> None:
        self._steps_left -= num_steps
        if self._steps_left < 0:
            raise InvalidRequest(_TOO_MANY, param="tools")


def kinds(way: Way) -> frozenset[str]:
    """The types of the values; "number" without "integer" never stands alone for an integer."""
    return frozenset(_KINDS.intersection(*map(_kinds, way)))


def listed(way: Way) -> list[Any] | None:
    """The values that `enum` or `const` permit; None if they are not listed."""
    lists = [found for part in way if (found := _listed(part)) is not None]
    if not lists:
        return None
    types, others = kinds(way), [set(map(_identity, values)) for values in lists[1:]]
    return [v for v in lists[0] if _kind(v) in types and all(_identity(v) in o for o in others)]


def admits(value: Any, found: list[Way]) -> bool:
    """Whether types and listed values permit the value in one of the ways."""
    return any(all(_admits(part, value) for part in way) for way in found)


def bare(schema: Any) -> Any:
    """Return the schema without what says nothing about its values."""
    if not isinstance(schema, dict):
        return schema
    return {key: part for key, part in schema.items() if key not in _ANNOTATIONS}


def _without_repeats(way: Way) -> Way:
    return tuple({id(part): part for part in way}.values())


def _pointed(pointer: str, root: dict[str, Any]) -> Any:
    if pointer[:1] != "#":
        return None
    found: Any = root
    for name in pointer[1:].split("/")[1:]:
        name = name.replace("~1", "/").replace("~0", "~")
        if isinstance(found, dict):
            found = found.get(name)
        elif isinstance(found, list) and name.isdecimal() and int(name) < len(found):
            found = found[int(name)]
        else:
            return None
    return found


def _kinds(part: dict[str, Any]) -> set[str]:
    named = part.get("type", list(_KINDS))
    found = {named} if isinstance(named, str) else set(named)
    if "number" in found:
        found.add("integer")
    values = _listed(part)
    return found if values is None else found & set(map(_kind, values))


def _listed(part: dict[str, Any]) -> list[Any] | None:
    if "const" in part:
        return [part["const"]]
    values = part.get("enum")
    return values if isinstance(values, list) else None


def _kind(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else "boolean"
    names = {int: "integer", float: "number", str: "string", list: "array"}
    return names.get(type(value), "object")


def _identity(value: Any) -> tuple[str, str]:
    return _kind(value), json.dumps(value, sort_keys=True)


def _admits(part: dict[str, Any], value: Any) -> bool:
    values = _listed(part)
    return _kind(value) in _kinds(part) and (values is None or _is_in(value, values))


def _is_in(value: Any, values: list[Any]) -> bool:
    return any(v == value and _kind(v) == _kind(value) for v in values)
