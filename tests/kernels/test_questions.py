"""How tools/gpu/questions asks, without a GPU to ask."""

import json
import sys
from pathlib import Path

import psutil
import pytest

from tests.conftest import wait_for
from tools.gpu.questions import __main__ as questions
from tools.gpu.questions.asking import Question, ask_apart

_LOST = """
import signal, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
open(sys.argv[1], "w").write(str(child.pid))
signal.pause()
"""


def colour() -> dict[str, object]:
    """Which colour
    has it?

    Expected: green."""
    return {}


def _ask(code: str, limit_s: float = 120.0, *arguments: str) -> dict[str, object]:
    return ask_apart(Question(colour, limit_s), [sys.executable, "-c", code, *arguments])


def test_an_answer_comes_with_its_question() -> None:
    line = _ask("import json; print('a library talks'); print('ANSWER', json.dumps({'is': 7}))")
    assert line["answer"] == {"is": 7}
    assert (line["name"], line["question"]) == ("colour", "Which colour has it?")


def test_a_failure_tells_its_last_lines_first() -> None:
    error = _ask("raise ValueError('no CUDA')")["error"]
    assert isinstance(error, str) and error.startswith("exit status 1: ValueError: no CUDA <- ")


def test_one_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    for limit_s in (2, 8, 60):  # a busy machine may not have started it by then
        line = _ask(_LOST, limit_s, str(pid_file))
        assert line["error"] == f"no answer within {limit_s} s"
        if pid_file.exists() and pid_file.read_text():
            break
    pid = int(pid_file.read_text())
    wait_for(lambda: not _is_alive(pid), "what it started has ended")


def test_answers_are_appended_and_some_can_be_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(questions, "ask_apart", lambda question, _: {"name": question.name})
    monkeypatch.setenv("LLMIS_SKIP_QUESTIONS", "machine logits_with_triton")
    out = tmp_path / "answers.jsonl"
    assert questions.main([str(out)]) == 0
    questions.main([str(out), "machine"])
    names = [json.loads(line)["name"] for line in out.read_text().splitlines()]
    assert len(names) == len(questions.QUESTIONS) - 1
    assert "logits_with_triton" not in names and names[-1] == "machine"


def test_every_question_says_what_it_asks() -> None:
    assert all(question.text.endswith(("?", ".")) for question in questions.QUESTIONS)


def _is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
