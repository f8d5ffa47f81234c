"""`llmis` on a terminal of its own: Ctrl-C, Ctrl-D, the progress bar."""

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.conftest import ROOT
from tests.support.cli_answers import HOSTILE, chat_events, completion_events
from tests.support.fake_service import FakeService, Reply
from tests.unit.cli.test_operation_progress import LOAD, LOADED

CHAT = "POST /v1/chat/completions"
_TIMEOUT_S = 60.0


class Terminal:
    """A command on a pseudo-terminal."""

    def __init__(self) -> None:
        self._master, self._slave = pty.openpty()
        self._process: subprocess.Popen[bytes] | None = None
        self.shown = ""
        self._seen = 0

    def start(self, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "cli", *arguments],
            cwd=ROOT,
            stdin=self._slave,
            stdout=self._slave,
            stderr=self._slave,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
            start_new_session=True,
            # A shell that runs the tests in the background has them ignore Ctrl-C.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )

    def expect(self, text: str) -> None:
        """Wait for a text after the one expected before."""
        deadline = time.monotonic() + _TIMEOUT_S
        while text not in self.shown[self._seen :]:
            if time.monotonic() > deadline:
                pytest.fail(f"not shown: {text!r} in {self.shown[self._seen :]!r}")
            self._read(0.1)
        self._seen = self.shown.index(text, self._seen) + len(text)

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def interrupt(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)

    def interrupt_prompt(self, text: str) -> None:
        """Ctrl-C at a prompt, until it shows.

        The prompt is shown a moment before Python listens for signals at it.
        """
        deadline = time.monotonic() + _TIMEOUT_S
        while text not in self.shown[self._seen :] and time.monotonic() < deadline:
            self.interrupt()
            self._read(0.3)
        self.expect(text)

    def _read(self, timeout_s: float) -> None:
        if select.select([self._master], [], [], timeout_s)[0]:
            self.shown += os.read(self._master, 65536).decode(errors="replace")

    def wait(self) -> int:
        assert self._process is not None
        status = self._process.wait(_TIMEOUT_S)
        while select.select([self._master], [], [], 0)[0]:
            self.shown += os.read(self._master, 65536).decode(errors="replace")
        return status

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        os.close(self._master)
        os.close(self._slave)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    opened = Terminal()
    yield opened
    opened.close()


def test_ctrl_c_stops_the_answer_and_the_conversation_goes_on(
    fake: FakeService, terminal: Terminal
) -> None:
    fake.replies[CHAT] = Reply(events=chat_events("half an ans")[:-2], is_endless=True)
    terminal.start("chat")
    terminal.expect("counter")
    terminal.expect("> ")
    terminal.type("one\n")
    terminal.expect("half an ans")
    terminal.interrupt()
    terminal.expect("[stopped]")
    assert fake.client_gone.wait(_TIMEOUT_S)
    fake.replies[CHAT] = Reply(events=chat_events("whole"))
    terminal.expect("> ")
    terminal.type("two\n")
    terminal.expect("whole")
    terminal.expect("> ")
    terminal.interrupt_prompt("Ctrl-D or /exit leaves")
    terminal.expect("> ")
    terminal.type("\x04")
    assert terminal.wait() == 0
    said = [(m["role"], m["content"]) for m in fake.bodies(CHAT)[1]["messages"]]
    assert said == [("user", "one"), ("assistant", "half an ans"), ("user", "two")]


def test_an_error_does_not_end_the_conversation(fake: FakeService, terminal: Terminal) -> None:
    fake.replies[CHAT] = Reply({"error": {"message": "The queue is full."}}, 503)
    terminal.start("chat", "--model", "m")
    terminal.expect("> ")
    terminal.type("one\n")
    terminal.expect("llmis: The queue is full.")
    fake.replies[CHAT] = Reply(events=chat_events(HOSTILE))
    terminal.type("two\n")
    terminal.expect("[red]x[/red] ␛]0;owned␇ \\u009b2J")
    terminal.type("/exit\n")
    assert terminal.wait() == 0
    assert len(fake.bodies(CHAT)[1]["messages"]) == 1


def test_complete_is_harmless_on_a_terminal_and_ctrl_c_cancels(
    fake: FakeService, terminal: Terminal
) -> None:
    fake.replies["POST /v1/completions"] = Reply(
        events=completion_events(HOSTILE)[:-1], is_endless=True
    )
    terminal.start("complete", "x")
    terminal.expect("[red]x[/red] ␛]0;owned␇ \\u009b2J")
    terminal.interrupt()
    assert terminal.wait() == 130
    assert fake.client_gone.wait(_TIMEOUT_S)
    assert "Traceback" not in terminal.shown


def test_load_shows_a_bar(fake: FakeService, terminal: Terminal) -> None:
    fake.replies[LOAD] = Reply(events=LOADED[:4], is_endless=True)
    terminal.start("models", "load", "counter")
    terminal.expect("counter: reading weights")
    terminal.expect("60%")
    terminal.interrupt()
    terminal.expect("the operation continues")
    assert terminal.wait() == 130
    assert fake.client_gone.wait(_TIMEOUT_S)
    assert "\x1b[?25h" in terminal.shown, "the cursor is shown again"


def test_a_terminal_has_colour(fake: FakeService, terminal: Terminal) -> None:
    terminal.start("ps")
    terminal.expect("counter-abc123")
    terminal.expect("\x1b[")
    assert terminal.wait() == 0
