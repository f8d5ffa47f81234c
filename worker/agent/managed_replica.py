"""One replica as its agent sees it: an assignment and its present process."""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import psutil

from shared.clock import clock
from shared.wire.records import Assignment, ReplicaRecord, ReplicaState
from worker.agent.devices import GPU_ENGINES

_log = logging.getLogger(__name__)
_USEFUL_S = 5.0
"""A replica that was ready for this long and generated a token starts a new row of failures."""
MAX_FAILURES = 3
"""Failures in a row after which a replica is given up."""
STABLE_S = 60.0
"""A replica that was ready for this long starts a new row of failures, used or not."""
_MAX_BACKOFF_S = 30.0
_KILL_MARGIN_S = 8.0
"""After its grace time a replica has this long to exit before it is killed."""
_EXIT_UNUSABLE = 1
"""Exit status of a replica that reported why it cannot serve this model."""
_EXIT_RETRY = os.EX_TEMPFAIL
"""Exit status of a replica that found no Redis: no failure of its own."""
_CRASHES = {-signal.SIGABRT, -signal.SIGSEGV, -signal.SIGILL, -signal.SIGFPE, -signal.SIGBUS}
"""A crash during the load would repeat: the model counts as unusable at once."""
_ERROR_PREFIX = "llmis replica: "
"""Begins the line of the log in which `worker.replica` reports a fatal error."""


@dataclass
class ManagedReplica:
    """Mutable, guarded by the lock of `Replicas`. Times are monotonic seconds."""

    assignment: Assignment
    log_path: Path
    process: psutil.Process | None = None
    record: ReplicaRecord | None = None
    """Its registry record; None while there is none."""
    started_at: float = field(default_factory=time.monotonic)
    seen_at: float = 0.0
    """When its record was last seen."""
    ready_at: float | None = None
    restart_at: float | None = None
    num_failures: int = 0
    error: str = ""
    """Why the last process ended."""
    is_given_up: bool = False
    is_unusable: bool = False
    """With `is_given_up`: the cause is the model, not the node."""
    is_stopping: bool = False
    kill_at: float = 0.0
    """While it stops: when SIGKILL is due."""
    busy_at: float = 0.0
    """Unix time at which its record last showed jobs."""
    log_offset: int = 0
    """Where the log of the present process begins."""
    exit_fd: int | None = None
    """Becomes readable when the process ends; None once its end is handled."""

    @property
    def id(self) -> str:
        return self.assignment.id

    @property
    def model(self) -> str:
        return self.assignment.spec.name

    @property
    def is_ready(self) -> bool:
        return self.record is not None and self.record.state is ReplicaState.READY

    @property
    def is_busy(self) -> bool:
        record = self.record
        return record is not None and record.busy_slots + record.waiting_sequences > 0

    @property
    def is_alive(self) -> bool:
        if self.process is None:
            return False
        if isinstance(self.process, psutil.Popen):
            return bool(self.process.poll() is None)
        # Adopted: not our child, so its zombie is left to its parent.
        try:
            return bool(self.process.is_running() and self.process.status() != psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return False

    @property
    def resident_bytes(self) -> int:
        return self._memory("rss")

    @property
    def mapped_bytes(self) -> int:
        """Resident pages that are backed by files: the system counts them as free."""
        return 0 if self._is_on_gpu else self._memory("shared")

    @property
    def held_bytes(self) -> int:
        """The part of its estimated memory that it has allocated.

        On a GPU: nothing until the replica is ready, then the whole estimate. The driver's
        figures for a process are unreliable, and weights and cache are allocated by then.
        """
        if self._is_on_gpu:
            return self.assignment.memory_bytes if self.ready_at is not None else 0
        return self.resident_bytes

    @property
    def _is_on_gpu(self) -> bool:
        return self.assignment.spec.engine in GPU_ENGINES

    def _memory(self, kind: str) -> int:
        with contextlib.suppress(psutil.Error):
            if self.process is not None and self.is_alive:
                return int(getattr(self.process.memory_info(), kind))
        return 0

    @property
    def promised_bytes(self) -> int:
        """The part of the estimate that is not allocated yet."""
        return max(0, self.assignment.memory_bytes - self.held_bytes)

    def observe(self, record: ReplicaRecord | None) -> None:
        """Take over the replica's latest registry record."""
        now = time.monotonic()
        self.record = record
        if record is not None:
            self.seen_at = now
        if self.is_busy:
            self.busy_at = clock.now()
        if self.is_ready and self.ready_at is None:
            self.ready_at = now
            _log.info(
                "replica ready",
                extra={
                    "replica": self.assignment.replica_id,
                    "estimated_bytes": self.assignment.memory_bytes,
                    "memory_bytes": self.resident_bytes,
                },
            )

    # -- the process -------------------------------------------------------------------------

    def renewed(self) -> Assignment:
        """The assignment with a new replica id, for the next process: leases and records belong
        to one process."""
        replica_id = f"{self.id}-{uuid.uuid4().hex[:6]}"
        return msgspec.structs.replace(self.assignment, replica_id=replica_id)

    def start(self, assignment: Assignment, environment: dict[str, str]) -> None:
        """Start the process. The assignment must be in Redis by now. Raises OSError."""
        self.assignment = assignment
        self.record = self.ready_at = self.restart_at = None
        command = [sys.executable, "-m", "worker.replica", self.id, self.assignment.replica_id]
        self.started_at = self.seen_at = time.monotonic()
        with self.log_path.open("ab") as log:
            self.log_offset = log.tell()
            # Its own session: the process survives the agent and signals to the agent's group.
            self.process = psutil.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
        self._watch_exit()

    def adopt(self, process: psutil.Process) -> None:
        """Take over a process that an earlier agent started."""
        self.process = process
        self.seen_at = time.monotonic()
        self._watch_exit()

    def _watch_exit(self) -> None:
        self.forget_exit()
        with contextlib.suppress(ProcessLookupError):  # it has ended: the next check finds that
            if self.process is not None:
                self.exit_fd = os.pidfd_open(self.process.pid)

    def forget_exit(self) -> None:
        """The end of the process is handled, or no longer of interest."""
        if self.exit_fd is not None:
            os.close(self.exit_fd)
            self.exit_fd = None

    def send(self, signum: int) -> None:
        with contextlib.suppress(psutil.Error):
            if self.process is not None and self.is_alive:
                self.process.send_signal(signum)

    def stop(self, grace_s: float) -> None:
        """Send SIGTERM and set when SIGKILL is due. A second call can only bring it forward."""
        kill_at = time.monotonic() + grace_s + _KILL_MARGIN_S
        if self.is_stopping:
            self.kill_at = min(kill_at, self.kill_at)
            return  # a second SIGTERM would end it at once; it reads its stop order again
        self.is_stopping, self.kill_at = True, kill_at
        self.send(signal.SIGTERM)

    def kill_if_late(self) -> None:
        if time.monotonic() > self.kill_at:
            self.send(signal.SIGKILL)

    def fail(self, reason: str = "") -> None:
        """The process ended by itself, or was killed for `reason`: set `restart_at`, or after an
        error of the model or too many failures `is_given_up`."""
        self.forget_exit()
        now = time.monotonic()
        code = self.process.poll() if isinstance(self.process, psutil.Popen) else None
        ready_s = now - self.ready_at if self.ready_at is not None else 0.0
        has_served = self.record is not None and self.record.generated_tokens > 0
        if ready_s > STABLE_S or (has_served and ready_s > _USEFUL_S):
            self.num_failures = 0
        was_ready, self.record, self.ready_at = self.ready_at is not None, None, None
        self.num_failures += code != _EXIT_RETRY
        self.error = reason or self._reported_error(code)
        self.is_unusable = not was_ready and (code == _EXIT_UNUSABLE or code in _CRASHES)
        self.is_given_up = self.is_unusable or self.num_failures >= MAX_FAILURES
        self.restart_at = now + min(0.25 * 2**self.num_failures, _MAX_BACKOFF_S)

    def _reported_error(self, code: int | None) -> str:
        """The last error in the process's log, or how the process ended."""
        with contextlib.suppress(OSError):
            for line in reversed(self._tail()):
                if line.startswith(_ERROR_PREFIX):
                    return line.removeprefix(_ERROR_PREFIX)
        if code is None:
            return "the process ended"
        if code < 0:
            return f"the process was killed by {signal.Signals(-code).name}"
        return f"the process ended with exit status {code}; see {self.log_path.name}"

    def _tail(self, num_bytes: int = 65536) -> list[str]:
        with self.log_path.open("rb") as log:
            size = os.fstat(log.fileno()).st_size
            begin = self.log_offset if self.log_offset <= size else 0  # it was rotated since
            log.seek(max(begin, size - num_bytes))
            return log.read().decode("utf-8", "replace").splitlines()


def find_processes(node: str, redis_url: str) -> dict[str, psutil.Process]:
    """Find the running replica processes of this node and service: assignment id → process."""
    found: dict[str, psutil.Process] = {}
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        # As `ManagedReplica.start` makes it: python -m worker.replica ASSIGNMENT REPLICA.
        if len(command) != 5 or command[1:3] != ["-m", "worker.replica"]:
            continue
        with contextlib.suppress(psutil.Error):
            # Several services may run on one host: their replicas have another Redis.
            is_ours = process.environ().get("REDIS_URL") == redis_url
            if is_ours and command[3].rpartition("-")[0].endswith(f"@{node}"):
                found[command[3]] = process
    return found
