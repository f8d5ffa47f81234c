"""Which jobs the task threads of this process have in hand."""

import threading


class AtWork:
    """Each job once: Celery may deliver a message again while its first copy runs."""

    def __init__(self) -> None:
        self._job_ids: set[str] = set()
        self._lock = threading.Lock()

    def begin(self, job_id: str) -> bool:
        """False when another thread has it."""
        with self._lock:
            is_new = job_id not in self._job_ids
            self._job_ids.add(job_id)
            return is_new

    def end(self, job_id: str) -> None:
        with self._lock:
            self._job_ids.discard(job_id)
