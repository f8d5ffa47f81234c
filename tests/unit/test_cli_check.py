"""`llmis check` without a name finds what runs."""

import subprocess
import sys

import pytest

from cli.check import _running
from tests.conftest import wait_for


@pytest.mark.parametrize(
    ("name", "word"),
    [("web", "python:app.gunicorn_conf"), ("agent", "worker.agent"), ("flower", "flower")],
)
def test_a_process_is_known_by_its_command_line(name: str, word: str) -> None:
    command = [sys.executable, "-c", "import sys; sys.stdin.read()", word]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        wait_for(lambda: name in _running(), "it is found")
        assert process.stdin is not None
        process.stdin.close()
