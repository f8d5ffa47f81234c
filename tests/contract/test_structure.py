"""The shape of the source: sizes of folders, files, functions and constructors; names; excepts."""

import ast
import io
import re
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import grimp

ROOT = Path(__file__).parent.parent.parent
SIDES = ("app", "worker", "shared", "cli")
_MAX_MODULES = {"app": 13, "worker": 20, "shared": 20, "cli": 20}
"""Side → modules of one folder, without its `__init__`."""
_MAX_FILE_LINES = 300
_MAX_FUNCTION_LINES = 50
_MAX_PARAMETERS = 7
_MAX_BROAD_EXCEPTS = 12
_MAX_UNFORMATTED = 5
_MIN_LINES = 25
"""Of a module with one user: a shorter one is a part of it."""

_LONG_FUNCTIONS = {
    "worker/engines/exllamav2/attention/kernels.py": "Triton compiles a kernel as one function",
    "worker/engines/exllamav2/attention/flash_api.py": "the signature is flash-attn's",
}
_UNFORMATTED_FOLDER = "worker/engines/exllamav2/attention/"
"""Its kernels take 20 to 30 arguments, which stand in groups: one a line, they take a page."""
_SHORT_MODULES: dict[str, str] = {}
"""Module → why it stands apart from its only user."""
_NAMES_IN_TWO_PLACES: dict[str, str] = {}
"""Class name → why two classes have it."""


@cache
def _sources() -> dict[str, str]:
    """Path from the root → text."""
    paths = sorted(path for side in SIDES for path in (ROOT / side).rglob("*.py"))
    return {path.relative_to(ROOT).as_posix(): path.read_text() for path in paths}


@cache
def _nodes() -> list[tuple[str, ast.AST]]:
    """Every node with the path of its file."""
    return [(path, node) for path, text in _sources().items() for node in ast.walk(ast.parse(text))]


def _functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for path, node in _nodes():
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield path, node


def _assert_none(found: list[str]) -> None:
    assert not found, "\n" + "\n".join(found)


def test_a_folder_has_few_modules() -> None:
    modules: dict[str, int] = defaultdict(int)
    for path in _sources():
        folder, _, name = path.rpartition("/")
        modules[folder] += name != "__init__.py"
    assert modules.keys() >= set(SIDES)
    _assert_none(
        [
            f"{folder}: {number} modules"
            for folder, number in modules.items()
            if number > _MAX_MODULES[folder.partition("/")[0]]
        ]
    )


def test_a_folder_says_what_it_owns() -> None:
    folders = {path.rpartition("/")[0] for path in _sources()}
    texts = {folder: _sources().get(f"{folder}/__init__.py", "") for folder in folders}
    _assert_none([name for name, text in texts.items() if not ast.get_docstring(ast.parse(text))])


def test_a_file_is_short() -> None:
    lengths = {path: text.count("\n") for path, text in _sources().items()}
    _assert_none([f"{path}: {n} lines" for path, n in lengths.items() if n > _MAX_FILE_LINES])


def test_a_function_is_short() -> None:
    lengths = {
        f"{path}:{node.lineno} {node.name}": (node.end_lineno or 0) - node.lineno + 1
        for path, node in _functions()
        if path not in _LONG_FUNCTIONS
    }
    _assert_none([f"{at}: {n} lines" for at, n in lengths.items() if n > _MAX_FUNCTION_LINES])


def test_a_constructor_has_few_parameters() -> None:
    numbers = {
        f"{path}:{node.lineno}": len(node.args.args + node.args.kwonlyargs) - 1  # without self
        for path, node in _functions()
        if node.name == "__init__"
    }
    _assert_none([f"{at}: {n} parameters" for at, n in numbers.items() if n > _MAX_PARAMETERS])


def test_a_class_has_a_name_of_its_own() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for path, node in _nodes():
        if isinstance(node, ast.ClassDef):
            places[node.name].append(f"{path}:{node.lineno}")
    doubled = {name for name, found in places.items() if len(found) > 1}
    _assert_none([f"{n}: {places[n]}" for n in sorted(doubled - _NAMES_IN_TWO_PLACES.keys())])
    assert _NAMES_IN_TWO_PLACES.keys() <= doubled, "take the others off the list"


def test_broad_excepts_are_few_and_have_reasons() -> None:
    """A reason is a comment on the line of the except."""
    handlers = [
        (path, node.lineno)
        for path, node in _nodes()
        if isinstance(node, ast.ExceptHandler) and _is_broad(node)
    ]
    _assert_none([f"{path}:{n} has no reason" for path, n in handlers if not _has_reason(path, n)])
    assert len(handlers) <= _MAX_BROAD_EXCEPTS, handlers


def _is_broad(handler: ast.ExceptHandler) -> bool:
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    names = {kind.id for kind in kinds if isinstance(kind, ast.Name)}
    return handler.type is None or not names.isdisjoint({"Exception", "BaseException"})


def _has_reason(path: str, line: int) -> bool:
    comment = re.sub(r"# *(noqa|type: ignore|pragma)[^#]*", "", _comments(path).get(line, ""))
    return bool(comment.strip("# "))


@cache
def _comments(path: str) -> dict[int, str]:
    """Line → the comment on it."""
    tokens = tokenize.generate_tokens(io.StringIO(_sources()[path]).readline)
    return {token.start[0]: token.string for token in tokens if token.type == tokenize.COMMENT}


def test_the_formatter_is_seldom_switched_off() -> None:
    found = [
        f"{path}:{line}"
        for path in _sources()
        if not path.startswith(_UNFORMATTED_FOLDER)
        for line, comment in _comments(path).items()
        if re.search("fmt: *(skip|off)", comment)
    ]
    assert len(found) <= _MAX_UNFORMATTED, found


def test_no_argument_is_given_by_a_starred_display() -> None:
    """`f(*(a, b))` hides from the reader, and from the formatter, which parameter gets what."""
    _assert_none(
        [
            f"{path}:{item.lineno}"
            for path, node in _nodes()
            if isinstance(node, ast.Call | ast.List | ast.Tuple | ast.Set)
            for item in (node.args if isinstance(node, ast.Call) else node.elts)
            if isinstance(item, ast.Starred) and isinstance(item.value, ast.List | ast.Tuple)
        ]
    )


def test_a_module_with_one_user_is_worth_a_file() -> None:
    graph = grimp.build_graph(*SIDES, cache_dir=None)
    found = []
    for path, text in _sources().items():
        module = path.removesuffix(".py").replace("/", ".")
        if path.endswith("/__init__.py") or text.count("\n") >= _MIN_LINES:
            continue
        users = graph.find_modules_that_directly_import(module)
        if len(users) == 1 and module not in _SHORT_MODULES:
            found.append(f"{path}: imported by {users} alone")
    _assert_none(found)
