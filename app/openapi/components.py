"""The JSON schemas of msgspec types, with the docstrings of their fields as descriptions."""

import ast
import inspect
import sys
from collections.abc import Iterable
from functools import cache
from itertools import pairwise
from types import ModuleType
from typing import Any, get_args, get_type_hints

import msgspec
from msgspec import Struct

from shared.admin_api import AdminObject

_REF = "#/components/schemas/{name}"


class Components:
    """The schemas of some types and of all types in them, each once, by name."""

    def __init__(self, types: Iterable[Any]) -> None:
        wanted = list(types)
        schemas, components = msgspec.json.schema_components(wanted, ref_template=_REF)
        for struct in _structs(wanted, set()):
            _describe(components[struct.__name__], struct)
        self.schemas: dict[str, dict[str, Any]] = _for_javascript(components)
        self._of: dict[Any, dict[str, Any]] = dict(zip(wanted, schemas, strict=True))

    def schema(self, type_: Any) -> dict[str, Any]:
        """The schema of one of the types, by reference where it has a name."""
        return self._of[type_]

    def named(self, type_: Any) -> dict[str, Any]:
        """The schema that `schema` refers to; callers may change it."""
        return self.schemas[self._of[type_]["$ref"].rpartition("/")[2]]


def _structs(types: Iterable[Any], seen: set[type[Struct]]) -> set[type[Struct]]:
    """All Structs in the types."""
    for type_ in types:
        if isinstance(type_, type) and issubclass(type_, Struct) and type_ not in seen:
            seen.add(type_)
            _structs(get_type_hints(type_).values(), seen)
        _structs(get_args(type_), seen)
    return seen


def _describe(schema: dict[str, Any], struct: type[Struct]) -> None:
    """Add the fields' docstrings. Remove the docstring that a type has inherited."""
    if not struct.__dict__.get("__doc__"):
        schema.pop("description", None)
    if issubclass(struct, AdminObject):  # its defaults are for readers; every field is sent
        schema["required"] = list(schema["properties"])
        for field in schema["properties"].values():
            field.pop("default", None)
    for base in reversed([base for base in struct.__mro__ if issubclass(base, Struct)]):
        for name, text in _field_docs(base).items():
            if name in schema["properties"]:
                schema["properties"][name].setdefault("description", text)


@cache
def _field_docs(class_: type) -> dict[str, str]:
    """Read the docstrings under the fields of a class from its source: Python drops them."""
    module = sys.modules.get(class_.__module__)
    body = _class_bodies(module).get(class_.__qualname__, []) if module else []
    docs = {}
    for statement, after in pairwise(body):
        match statement, after:
            case ast.AnnAssign(ast.Name(name)), ast.Expr(ast.Constant(str(text))):
                docs[name] = inspect.cleandoc(text)
    return docs


@cache
def _class_bodies(module: ModuleType) -> dict[str, list[ast.stmt]]:
    """The statements of the classes at the top of a module, by name. `inspect.getsource` would
    parse the module anew for each class."""
    try:
        tree = ast.parse(inspect.getsource(module))
    except (OSError, TypeError):
        return {}  # the module has no source: it is built in
    return {node.name: node.body for node in tree.body if isinstance(node, ast.ClassDef)}


def _for_javascript(schema: Any) -> Any:
    """The schema with its patterns in JavaScript's dialect."""
    if isinstance(schema, list):
        return [_for_javascript(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    described = {key: _for_javascript(value) for key, value in schema.items()}
    if isinstance(pattern := described.get("pattern"), str):
        described["pattern"] = pattern.replace(r"\Z", "$")
    return described
