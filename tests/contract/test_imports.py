"""Who may import whom: app → shared ← worker, never across."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
_ALLOWED = {
    "shared": {"shared"},
    "app": {"app", "shared"},
    "worker": {"worker", "shared"},
    "cli": {"cli", "shared"},
}


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add((node.module or "").split(".")[0])
    return found


def test_no_side_imports_the_other() -> None:
    own = set(_ALLOWED)
    for side, allowed in _ALLOWED.items():
        for path in (ROOT / side).rglob("*.py"):
            across = (_imports(path) & own) - allowed
            assert not across, f"{path.relative_to(ROOT)} imports {across}"


def test_shared_needs_little() -> None:
    allowed = set(sys.stdlib_module_names) | {
        "shared",
        "redis",
        "celery",
        "kombu",
        "msgspec",
        "hiredis",
        "re2",
    }
    for path in (ROOT / "shared").rglob("*.py"):
        assert not _imports(path) - allowed, path.name


def test_the_web_app_loads_no_engine_and_no_worker_module() -> None:
    code = (
        "import sys, app.factory, app.gunicorn_conf\n"
        "bad = [m for m in sys.modules if m.split('.')[0] in "
        "('torch', 'exllamav2', 'xllamacpp', 'numpy', 'llguidance', 'tokenizers', 'worker')]\n"
        "sys.exit(', '.join(bad) or 0)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def test_an_engine_is_loaded_only_where_one_runs() -> None:
    """Importing torch takes seconds and exllamav2 initialises CUDA: not in the agent, and not
    in a replica of another engine."""
    code = (
        "import sys, worker.agent.__main__, worker.agent.tasks\n"
        "assert 'numpy' not in sys.modules, 'the agent loads numpy'\n"
        "import worker.replica\n"
        "bad = [m for m in sys.modules if m.split('.')[0] in "
        "('torch', 'exllamav2', 'xllamacpp', 'llguidance', 'tokenizers')]\n"
        "sys.exit(', '.join(bad) or 0)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def test_nothing_is_pickled() -> None:
    for side in _ALLOWED:
        for path in (ROOT / side).rglob("*.py"):
            assert not _imports(path) & {"pickle", "marshal", "shelve", "dill"}, path.name
