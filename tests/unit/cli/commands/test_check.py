"""`llmis check` finds what runs, and asks it."""

import subprocess
import sys

import pytest

from cli.commands.check import _running
from tests.conftest import free_port, wait_for
from tests.support.cli_answers import run
from tests.support.fake_service import FakeService, Reply


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


def test_the_web_tier_is_asked_for_its_health(
    fake: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMIS_PORT", fake.url.rpartition(":")[2])
    fake.replies["GET /healthz"] = Reply(b"OK")
    assert run("check", "web").exit_code == 0
    fake.replies["GET /healthz"] = Reply(b"not yet", 503)
    failed = run("check", "web")
    assert (failed.exit_code, failed.stderr) == (
        1,
        f"llmis: {fake.url}/healthz answers with status 503\n",
    )


def test_flower_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMIS_FLOWER_PORT", str(port := free_port()))
    failed = run("check", "flower")
    assert failed.exit_code == 1
    assert f"http://127.0.0.1:{port}/healthcheck does not answer: " in failed.stderr
    assert "Connection refused" in failed.stderr
