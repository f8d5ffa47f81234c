"""Child processes: start, watch, restart, stop. No child outlives the supervisor."""

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_MIN_BACKOFF_S = 0.2
_MAX_BACKOFF_S = 30.0
_HEALTHY_S = 5.0
"""A child that ran this long did not end because it cannot start: the next start after it has the
shortest back-off. Clients wait for that."""

_libc = ctypes.CDLL(None, use_errno=True)


def _die_with_parent() -> None:
    """In the child, before exec: have the kernel send SIGTERM when the supervisor dies."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@dataclass
class Child:
    """One supervised process."""

    name: str
    command: list[str]
    log_path: Path
    env: Mapping[str, str]
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    restart_at: float | None = None
    """Monotonic time of the next start; None = no start is due."""
    backoff_s: float = _MIN_BACKOFF_S

    def start(self) -> None:
        self.restart_at = None
        self.started_at = time.monotonic()
        with self.log_path.open("ab") as log:
            # A session of its own: Ctrl-C reaches the supervisor alone, which stops all in order.
            self.process = subprocess.Popen(  # nosec B603 # fixed arguments, no shell
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(self.env),
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def watch(self) -> str | None:
        """Restart the process if it ended. Returns a message if there is something to report."""
        if self.is_running:
            return None
        if self.restart_at is None:
            if time.monotonic() - self.started_at > _HEALTHY_S:
                self.backoff_s = _MIN_BACKOFF_S
            self.restart_at = time.monotonic() + self.backoff_s
            code = self.process.returncode if self.process else None
            wait_s, self.backoff_s = self.backoff_s, min(2 * self.backoff_s, _MAX_BACKOFF_S)
            return f"{self.name} ended ({_exit_text(code)}), starting it again in {wait_s:g} s"
        if time.monotonic() >= self.restart_at:
            self.start()
        return None

    def send(self, signum: int) -> None:
        """Signal the process; SIGKILL goes to its process group."""
        if self.process is not None and self.is_running:
            with contextlib.suppress(ProcessLookupError):
                if signum == signal.SIGKILL:
                    os.killpg(self.process.pid, signum)
                else:
                    self.process.send_signal(signum)

    def tail(self, num_lines: int = 15) -> str:
        """The end of the log, for an error message."""
        try:
            lines = self.log_path.read_text(errors="replace").splitlines()
        except OSError:
            return ""
        return "\n".join(lines[-num_lines:])


def stop(children: list[Child], timeout_s: float) -> None:
    """Stop children together: SIGTERM, then SIGKILL for those still running after `timeout_s`."""
    for child in children:
        child.send(signal.SIGTERM)
    deadline = time.monotonic() + timeout_s
    for child in children:
        if child.process is None:
            continue
        try:
            child.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.send(signal.SIGKILL)
            child.process.wait()
        # Processes of its group may be left, above all after a SIGKILL.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.process.pid, signal.SIGKILL)


def _exit_text(code: int | None) -> str:
    if code is None:
        return "never started"
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit status {code}"
