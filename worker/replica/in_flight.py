"""The jobs that the task threads of this process have taken. Used by several threads."""

import threading


class InFlightJobs:
    """Each job once: Celery may deliver a message again while its first copy runs."""

    def __init__(self) -> None:
        self._flags: dict[str, bytes | None] = {}
        """Job id → the cancel flag that a revocation has brought, see `names.cancel_key`."""
        self._lock = threading.Lock()

    def begin(self, job_id: str) -> bool:
        """False when another thread has it."""
        with self._lock:
            is_new = job_id not in self._flags
            if is_new:
                self._flags[job_id] = None
            return is_new

    def end(self, job_id: str) -> None:
        with self._lock:
            del self._flags[job_id]

    def flag(self, job_id: str, flag: bytes) -> None:
        """Keep a revocation that may come before the job is in the engine loop. Ignored for a
        job that no thread has taken: the thread that takes it reads the flag in Redis."""
        with self._lock:
            if job_id in self._flags:
                self._flags[job_id] = flag

    def flag_of(self, job_id: str) -> bytes | None:
        with self._lock:
            return self._flags[job_id]
