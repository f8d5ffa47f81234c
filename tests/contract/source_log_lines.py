"""The fields that the source gives to its log lines with `extra=`, found in its syntax tree.

So a line is known wherever its module lies, and also when no test can bring it about.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path(__file__).parent.parent.parent
_FOLDERS = ("app", "worker", "shared", "cli")
_LEVELS = {"debug", "info", "warning", "error", "exception", "critical", "log"}
OPEN = "…"
"""Stands for fields that are put together at run time."""


def fields_of_lines() -> dict[str, list[str]]:
    """Message → its fields; lines with the same message come together."""
    found: dict[str, set[str]] = {}
    for folder in _FOLDERS:
        for path in sorted((_ROOT / folder).rglob("*.py")):
            for message, fields in _lines(ast.parse(path.read_text("utf-8"))):
                found.setdefault(message, set()).update(fields)
    return {message: sorted(fields) for message, fields in found.items()}


def _lines(tree: ast.Module) -> Iterator[tuple[str, set[str]]]:
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef):
            continue
        for call in ast.walk(function):
            extra = _extra_of(call)
            if extra is not None:
                assert isinstance(call, ast.Call)
                yield _message(call), _fields(extra, function)


def _extra_of(node: ast.AST) -> ast.expr | None:
    is_call = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    if not is_call or node.func.attr not in _LEVELS:
        return None
    return next((word.value for word in node.keywords if word.arg == "extra"), None)


def _message(call: ast.Call) -> str:
    texts = [
        argument.value
        for argument in call.args
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
    ]
    return texts[0]


def _fields(extra: ast.expr, function: ast.FunctionDef) -> set[str]:
    if isinstance(extra, ast.Dict):
        return {key.value if isinstance(key, ast.Constant) else OPEN for key in extra.keys}
    if isinstance(extra, ast.BinOp):
        return _fields(extra.left, function) | _fields(extra.right, function)
    if isinstance(extra, ast.Name):
        for node in ast.walk(function):
            if isinstance(node, ast.Assign) and ast.dump(node.targets[0]).startswith(
                f"Name(id='{extra.id}'"
            ):
                return _fields(node.value, function)
    return {OPEN}
