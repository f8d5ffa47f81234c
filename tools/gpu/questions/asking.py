"""A question is a function whose docstring is its text. Each runs in its own process, so that one
that hangs or breaks the device loses only its own answer.
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent.parent
Ask = Callable[[], dict[str, Any]]
_MARK = "ANSWER "


@dataclass(frozen=True)
class Question:
    ask: Ask
    limit_s: float = 60.0

    @property
    def name(self) -> str:
        return self.ask.__name__

    @property
    def text(self) -> str:
        return " ".join((self.ask.__doc__ or "").split("\n\n")[0].split())


def answer_here(question: Question) -> None:
    print("\n" + _MARK + json.dumps(question.ask(), default=str))


def ask_apart(question: Question, command: Sequence[str]) -> dict[str, Any]:
    """Run `command`, which calls `answer_here`; return the line of the file: its answer, or why
    there is none."""
    line: dict[str, Any] = {"name": question.name, "question": question.text}
    started = time.monotonic()
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, error_output = process.communicate(timeout=question.limit_s)
    except subprocess.TimeoutExpired:
        return {**line, "error": f"no answer within {question.limit_s:g} s"}
    finally:
        _end(process)
    line["seconds"] = round(time.monotonic() - started, 1)
    answers = [text for text in output.splitlines() if text.startswith(_MARK)]
    if answers:
        return {**line, "answer": json.loads(answers[-1].removeprefix(_MARK))}
    # The last lines first: a terminal shows the beginning.
    errors = [text.strip() for text in error_output.splitlines() if text.strip()][-12:]
    return {**line, "error": f"exit status {process.returncode}: " + " <- ".join(reversed(errors))}


def _end(process: "subprocess.Popen[str]") -> None:
    """End the process and its children: they would keep the GPU and the pipes."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
