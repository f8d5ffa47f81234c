"""Working trees of llmis that are measured against each other, each with a Python of its own.

What a benchmark needs of another version runs there, in its folder, by its Python: messages and
keys of two versions may differ.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from bench.measure import Stalled
from bench.processes import ROOT

_FACTS = """\
import json, platform
from importlib.metadata import version
packages = ("xllamacpp", "celery", "kombu", "redis", "hiredis", "gevent", "gunicorn")
print(json.dumps({"python": platform.python_version(), **{p: version(p) for p in packages}}))
"""
_FACTS_LIMIT_S = 30.0


@dataclass(frozen=True)
class Checkout:
    """A working tree and the Python that runs it."""

    label: str
    """In tables: `llmis`, or the commit of another one."""
    root: Path
    python: str

    def command(self, *arguments: str) -> list[str]:
        """The command line that runs Python in the working tree."""
        return ["env", "-C", str(self.root), self.python, *arguments]

    def environment(self, environment: dict[str, str]) -> dict[str, str]:
        """As given, but modules come from the working tree."""
        cleared = {k: v for k, v in environment.items() if k != "VIRTUAL_ENV"}
        return cleared | {"PYTHONPATH": str(self.root)}

    def run(self, script: str, *arguments: str, limit_s: float) -> bytes:
        """What a script prints that runs in the working tree. Raises RuntimeError with the end of
        its messages when it fails, Stalled when it takes too long."""
        try:
            done = subprocess.run(
                self.command("-c", script, *arguments),
                env=self.environment(_own_environment()),
                capture_output=True,
                timeout=limit_s,
            )
        except subprocess.TimeoutExpired as exc:
            raise Stalled(f"{self.label} has not ended after {limit_s:g} s") from exc
        if done.returncode != 0:
            raise RuntimeError(f"{self.label} failed:\n{done.stderr.decode()[-3000:]}")
        return done.stdout

    def facts(self) -> dict[str, str]:
        """Commit, and versions of Python and of the packages that decide about the speed."""
        found: dict[str, str] = json.loads(self.run(_FACTS, limit_s=_FACTS_LIMIT_S))
        return {"commit": _git(self.root, "rev-parse", "HEAD"), **found}


HERE = Checkout("llmis", ROOT, sys.executable)


def other(path: Path) -> Checkout:
    """The working tree at `path`, run by the Python of its `.venv`. Raises ValueError when there
    is none, or when it has another build of llama.cpp: that would be measured, too."""
    root = path.resolve()
    python = root / ".venv" / "bin" / "python"
    if not python.exists():
        raise ValueError(f"{path} has no .venv: create one there and install its requirements")
    found = Checkout(_git(root, "rev-parse", "--short", "HEAD") or root.name, root, str(python))
    here, there = HERE.facts()["xllamacpp"], found.facts()["xllamacpp"]
    if here != there:
        raise ValueError(f"{path} has xllamacpp {there}, and this one {here}: install the same")
    return found


def _own_environment() -> dict[str, str]:
    settings = ("LLMIS_", "REDIS_URL")
    return {k: v for k, v in os.environ.items() if not k.startswith(settings)}


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True)
    return done.stdout.strip()
