"""Child processes: start, watch, restart, stop. Nothing outlives the supervisor."""

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_MAX_BACKOFF_S = 30.0
_STABLE_S = 60.0
"""A child that has run this long starts with no back-off again."""

_libc = ctypes.CDLL(None, use_errno=True)


def _die_with_parent() -> None:
    """In the child, before exec: SIGTERM when the supervisor dies, however it does."""
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
    """Monotonic time at which to start again; None = it runs, or is to stay down."""
    backoff_s: float = field(default=0.5)

    def start(self) -> None:
        self.restart_at = None
        self.started_at = time.monotonic()
        with self.log_path.open("ab") as log:
            # A session of its own: Ctrl-C reaches the supervisor alone, which stops in order.
            self.process = subprocess.Popen(  # nosec B603 # fixed words, no shell
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
        """Restart the process if it ended by itself. Returns what there is to report."""
        if self.is_running:
            return None
        if self.restart_at is None:
            if time.monotonic() - self.started_at > _STABLE_S:
                self.backoff_s = 0.5
            self.restart_at = time.monotonic() + self.backoff_s
            code = self.process.returncode if self.process else None
            wait_s, self.backoff_s = self.backoff_s, min(2 * self.backoff_s, _MAX_BACKOFF_S)
            return f"{self.name} ended ({_exit_text(code)}), starting it again in {wait_s:g} s"
        if time.monotonic() >= self.restart_at:
            self.start()
        return None

    def send(self, signum: int) -> None:
        """Signal the process and all that it started."""
        if self.process is not None and self.is_running:
            try:
                if signum == signal.SIGKILL:
                    os.killpg(self.process.pid, signum)
                else:
                    self.process.send_signal(signum)
            except ProcessLookupError:
                pass

    def tail(self, num_lines: int = 15) -> str:
        """The end of the log, for an error message."""
        try:
            lines = self.log_path.read_text(errors="replace").splitlines()
        except OSError:
            return ""
        return "\n".join(lines[-num_lines:])


def stop(children: list[Child], timeout_s: float) -> None:
    """Stop children together: SIGTERM, and SIGKILL for those that take longer."""
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
        # What a child left of its own group, after a kill above all.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.process.pid, signal.SIGKILL)


def _exit_text(code: int | None) -> str:
    if code is None:
        return "never started"
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit status {code}"
