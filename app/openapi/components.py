"""The JSON schemas of msgspec types, with what their fields' docstrings say."""

import ast
import inspect
from collections.abc import Container, Iterable, Mapping
from functools import cache
from itertools import pairwise
from typing import Any, get_args, get_type_hints

import msgspec
from msgspec import Struct

_REF = "#/components/schemas/{name}"


class Components:
    """The schemas of some types and of all they consist of, each once, by name."""

    def __init__(self, types: Iterable[Any]) -> None:
        wanted = list(types)
        schemas, components = msgspec.json.schema_components(wanted, ref_template=_REF)
        for struct in _structs(wanted, set()):
            _describe(components[struct.__name__], struct)
        names = {name: _public_name(name, components) for name in components}
        self.schemas = {names[name]: _public(schema, names) for name, schema in components.items()}
        self._of = {t: _public(schema, names) for t, schema in zip(wanted, schemas, strict=True)}

    def schema(self, type_: Any) -> dict[str, Any]:
        """The schema of one of the types, by reference where it has a name."""
        schema: dict[str, Any] = self._of[type_]
        return schema

    def named(self, type_: Any) -> dict[str, Any]:
        """The schema that `schema` refers to, to change it."""
        named: dict[str, Any] = self.schemas[self.schema(type_)["$ref"].rpartition("/")[2]]
        return named


def _structs(types: Iterable[Any], seen: set[type[Struct]]) -> set[type[Struct]]:
    """All Structs that the types consist of."""
    for type_ in types:
        if isinstance(type_, type) and issubclass(type_, Struct) and type_ not in seen:
            seen.add(type_)
            _structs(get_type_hints(type_).values(), seen)
        _structs(get_args(type_), seen)
    return seen


def _describe(schema: dict[str, Any], struct: type[Struct]) -> None:
    """Add the fields' docstrings. A type without a docstring of its own gets no inherited one."""
    if not struct.__dict__.get("__doc__"):
        schema.pop("description", None)
    for base in reversed(struct.__mro__):
        for name, words in _field_docs(base).items():
            if name in schema["properties"]:
                schema["properties"][name].setdefault("description", words)


@cache
def _field_docs(class_: type) -> dict[str, str]:
    """The texts that stand under the fields of a class in its source."""
    try:
        tree = ast.parse(inspect.cleandoc("\n" + inspect.getsource(class_)))
    except (OSError, TypeError):
        return {}  # made at run time, or built in
    body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
    docs = {}
    for statement, after in pairwise(body):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
            and isinstance(after.value.value, str)
        ):
            docs[statement.target.id] = inspect.cleandoc(after.value.value)
    return docs


def _public_name(name: str, taken: Container[str]) -> str:
    """Without the underscore of our private types; a request's type of that name has the right."""
    public = name.lstrip("_")
    return f"{public}Answer" if public != name and public in taken else public


def _public(schema: Any, names: Mapping[str, str]) -> Any:
    """The schema with public names, and patterns in JavaScript's dialect."""
    if isinstance(schema, list):
        return [_public(item, names) for item in schema]
    if not isinstance(schema, dict):
        return schema
    public = {key: _public(value, names) for key, value in schema.items()}
    if isinstance(reference := public.get("$ref"), str):
        public["$ref"] = _REF.format(name=names[reference.rpartition("/")[2]])
    if isinstance(title := public.get("title"), str):
        public["title"] = names.get(title, title)
    if isinstance(pattern := public.get("pattern"), str):
        public["pattern"] = pattern.replace(r"\Z", "$")
    return public
