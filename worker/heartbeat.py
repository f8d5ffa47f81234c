"""The heartbeat: one thread that tells the registry of this replica and looks after its jobs.

Once a second it writes the replica's record, and cancels jobs that carry a cancel flag (for a
revocation that this process did not hear), that are past their deadline, or whose events reach
nobody any more. When the engine loop has died, it ends the process.
"""

import logging
import threading
import time
from collections.abc import Callable

import redis

from shared import names, registry
from shared.errors import DeadlineExceeded, LlmisError, RequestCancelled
from shared.messages import ReplicaRecord
from worker.engine_loop import EngineLoop
from worker.job_run import JobRun
from worker.publisher import Publisher

_log = logging.getLogger(__name__)


class Heartbeat:
    def __init__(
        self,
        client: "redis.Redis",
        record: Callable[[], ReplicaRecord],
        loop: EngineLoop,
        publisher: Publisher,
        orphan_grace_s: float,
        on_wedged: Callable[[], None],
    ) -> None:
        self._client = client
        self._record = record
        self._loop = loop
        self._publisher = publisher
        self._orphan_grace_s = orphan_grace_s
        self._on_wedged = on_wedged
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Announce the replica, then go on once a second. Raises redis.RedisError."""
        registry.announce(self._client, self._record())
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        try:
            registry.withdraw(self._client, self._record().id)
        except redis.RedisError as exc:
            _log.warning("could not withdraw from the registry, the record expires: %s", exc)

    def _run(self) -> None:
        while not self._stop.wait(registry.BEAT_S):
            if self._loop.is_wedged or self._publisher.is_wedged:
                self._on_wedged()
                return
            try:
                registry.announce(self._client, self._record())
                self._look_after_jobs()
            except redis.RedisError as exc:
                _log.warning("heartbeat missed: %s", exc)
            except Exception:
                # A replica without a pulse is taken for dead although it works: go on.
                _log.exception("heartbeat failed")

    def _look_after_jobs(self) -> None:
        runs = self._loop.running()
        unheard = self._unheard({run.job.reply_channel for run in runs})
        if not runs:
            return
        flags = self._client.mget([names.cancel_key(run.id) for run in runs])
        for run, flag in zip(runs, flags, strict=True):
            error = _reason_to_cancel(run, flag is not None, unheard)
            if error is not None:
                self._loop.cancel(run.id, error)

    def _unheard(self, in_use: set[str]) -> set[str]:
        """Channels in use that nobody has heard for the grace time, nor listens to now."""
        unheard = self._publisher.unheard_channels(self._orphan_grace_s)
        if not unheard:
            return set()
        counts = dict(self._client.pubsub_numsub(*unheard))
        silent = {channel for channel in unheard & in_use if not counts.get(channel.encode())}
        self._publisher.forget_channels(unheard - silent)
        return silent


def _reason_to_cancel(run: JobRun, is_flagged: bool, unheard: set[str]) -> LlmisError | None:
    if is_flagged:
        return RequestCancelled("The request was cancelled.")
    if run.job.reply_channel in unheard:
        return RequestCancelled("Nobody listens to the request any more.")
    if time.time() > run.job.deadline_at:
        return DeadlineExceeded("The request ran until its deadline.")
    return None
