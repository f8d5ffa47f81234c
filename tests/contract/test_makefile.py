"""What `make` says when it cannot make its virtual environment."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

_PYTHON = """\
#!/bin/sh
case "$2" in
    venv) mkdir -p "$3/bin"; touch "$3/pyvenv.cfg"; {venv} ;;
    *venv*) {has_module} ;;
    *) exec {python} "$@" ;;
esac
"""
_HINT = "has no venv module. On Debian: apt install python3-venv"


def _make(tmp_path: Path, venv: str, has_module: str) -> tuple[int, str]:
    """Exit status and output of the target, with a Python whose `venv` and import do this."""
    python = tmp_path / "python"
    script = _PYTHON.format(venv=venv, has_module=has_module, python=sys.executable)
    python.write_text(script)
    python.chmod(0o755)
    folder = tmp_path / "venv"
    done = subprocess.run(
        ["make", "-s", f"PYTHON={python}", f"VENV={folder}", f"{folder}/bin/python"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    "reason", ["[Errno 28] No space left on device", "[Errno 13] Permission denied: '.venv'"]
)
def test_the_reason_of_python_is_shown_and_no_other(tmp_path: Path, reason: str) -> None:
    status, said = _make(tmp_path, f'echo "Error: {reason}" >&2; exit 1', "exit 0")
    assert status != 0
    assert reason in said
    assert "failed for the reason above" in said
    assert "no venv module" not in said and "apt install" not in said
    assert not (tmp_path / "venv").exists(), "half an environment would be taken for a whole one"


def test_a_python_without_the_module_is_named_with_its_package(tmp_path: Path) -> None:
    status, said = _make(tmp_path, "echo 'No module named venv' >&2; exit 1", "exit 1")
    assert status != 0
    assert "No module named venv" in said and _HINT in said


def test_an_environment_that_is_made_is_kept(tmp_path: Path) -> None:
    status, said = _make(tmp_path, 'touch "$3/bin/python"', "exit 0")
    assert status == 0, said
    assert (tmp_path / "venv" / "bin" / "python").exists()
    assert "failed" not in said
