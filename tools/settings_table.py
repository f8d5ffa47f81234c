"""Writes the tables of docs/settings.md: `make tables`.

Names, types and defaults are those of the classes of `shared.settings`; the meaning is the
docstring under the field.
"""

import ast
import inspect
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.inspect import (
    BoolType,
    DictType,
    Field,
    FloatType,
    IntType,
    ListType,
    LiteralType,
    NoneType,
    StrType,
    StructType,
    Type,
    UnionType,
    type_info,
)

from shared.settings import fields, model_settings
from shared.settings.fields import Settings
from shared.settings.load import NOT_IN_ENVIRONMENT, env_name
from tools.marked_tables import filled, markdown

DOCUMENT = Path(__file__).parent.parent / "docs" / "settings.md"
_NO_SETTINGS = {"base_dir"}


class UndocumentedError(Exception):
    """A setting has no docstring, or a type that this module cannot describe."""


@dataclass(frozen=True)
class _Table:
    """A class of settings, and the place of its fields in llmis.toml."""

    shape: type
    place: str
    """Empty = at the top; else `models`, `models.sampling`."""
    is_list: bool


def tables(shape: type = Settings, source: str = "") -> dict[str, str]:
    """The text between the marks. `source`: the text of the shape's module, if another one.

    Raises UndocumentedError.
    """
    meanings = _docstrings(source or inspect.getsource(fields) + inspect.getsource(model_settings))
    parts = []
    for table in _found(_Table(shape, "", is_list=False)):
        if table.place:
            mark = f"[[{table.place}]]" if table.is_list else f"[{table.place}]"
            parts.append(f"## `{mark}`\n\n{inspect.getdoc(table.shape)}")
        parts.append(_written(table, meanings[table.shape.__name__]))
    return {"settings": "\n\n".join(parts)}


def _found(table: _Table) -> list[_Table]:
    """The table and the tables in it, depth first."""
    found = [table]
    for field in _fields(table.shape):
        kind = field.type
        is_list = isinstance(kind, ListType)
        inner = kind.item_type if isinstance(kind, ListType) else kind
        if isinstance(inner, StructType):
            place = f"{table.place}.{field.name}" if table.place else field.name
            found += _found(_Table(inner.cls, place, is_list))
    return found


def _fields(shape: type) -> list[Field]:
    info = type_info(shape)
    assert isinstance(info, StructType)
    return [field for field in info.fields if field.name not in _NO_SETTINGS]


def _written(table: _Table, meanings: dict[str, str]) -> str:
    in_environment = not table.place
    heading = ["setting", *(["environment"] if in_environment else []), "type", "default", "what"]
    rows = [heading, ["---"] * len(heading)]
    for field in _fields(table.shape):
        if field.name not in meanings:
            raise UndocumentedError(f"{table.shape.__name__}.{field.name} has no docstring")
        has_variable = in_environment and field.name not in NOT_IN_ENVIRONMENT
        variable = f"`{env_name(field.name)}`" if has_variable else ""
        rows.append(
            [
                f"`{field.name}`",
                *([variable] if in_environment else []),
                _type(field.type),
                _default(field),
                meanings[field.name].rstrip("."),
            ]
        )
    return markdown(rows)


def _docstrings(source: str) -> dict[str, dict[str, str]]:
    """Class → field → the string under it, on one line."""
    return {
        node.name: {
            field.target.id: " ".join(text.value.value.split())
            for field, text in zip(node.body, node.body[1:], strict=False)
            if isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
            and isinstance(text.value.value, str)
        }
        for node in ast.parse(source).body
        if isinstance(node, ast.ClassDef)
    }


def _type(kind: Type) -> str:
    match kind:
        case BoolType():
            return "true or false"
        case IntType() | FloatType():
            return f"{'integer' if isinstance(kind, IntType) else 'number'} {_range(kind)}".strip()
        case StrType():
            return "text"
        case LiteralType():
            return ", ".join(f"`{value}`" for value in kind.values)
        case ListType(item_type=StructType()):
            return "tables"
        case ListType():
            return f"list of {_type(kind.item_type)}"
        case StructType() | DictType():
            return "table"
        case UnionType():
            return " or ".join(_type(t) for t in kind.types if not isinstance(t, NoneType))
    raise UndocumentedError(f"tools/settings_table.py cannot describe the type {kind}")


def _range(kind: IntType | FloatType) -> str:
    low = f"from {kind.ge}" if kind.ge is not None else ""
    if kind.gt is not None:
        low = f"over {kind.gt}"
    if kind.le is None:
        return low
    return f"{low}{',' if kind.gt is not None else ''} to {kind.le}".strip()


def _default(field: Field) -> str:
    if field.required:
        return "required"
    is_made = field.default is msgspec.NODEFAULT
    value: Any = field.default_factory() if is_made else field.default
    if value is None:
        return "none"
    if value in ("", [], {}):
        return "empty"
    if isinstance(value, list | dict | Struct):
        return "below"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{str(value).removesuffix('.0')}`"


def main() -> None:
    try:
        DOCUMENT.write_text(filled(DOCUMENT.read_text(), tables()))
    except UndocumentedError as exc:
        sys.exit(f"{exc}.")


if __name__ == "__main__":
    main()
