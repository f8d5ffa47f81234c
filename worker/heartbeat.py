"""The heartbeat: one thread that tells the registry of this replica and looks after its jobs.

Twice a second it writes the replica's record, learns who reads its jobs, and stops those that
carry a flag (for a revocation that this process did not hear), that are past their deadline, that
get no token any more, or whose events reach nobody. It lets the lower classes of its model's
queue take their turns. When the engine loop has died, it ends the process.
"""

import logging
import threading
import time
from collections.abc import Callable

import redis

from shared import essential, names, registry
from shared.connections import payload_bytes
from shared.denylist_file import DenylistFile
from shared.errors import DeadlineExceeded, EngineError, RequestCancelled
from shared.messages import Priority, ReplicaRecord
from worker.engine_loop import EngineLoop
from worker.job_run import GiveBack, JobRun
from worker.publisher import Publisher
from worker.thread_names import name_this_thread

_log = logging.getLogger(__name__)
_LOADING_BEAT_S = 0.2
"""While the model loads: its progress is watched."""


class Heartbeat:
    def __init__(
        self,
        client: "redis.Redis",
        record: Callable[[], ReplicaRecord],
        publisher: Publisher,
        orphan_grace_s: float,
        job_ttl_s: int,
        max_step_gap_s: float,
        *,
        take_turns: Callable[[], object],
        on_wedged: Callable[[], None],
        is_kept: Callable[[], bool] = lambda: True,
        on_abandoned: Callable[[], None] = lambda: None,
        denylist: DenylistFile | None = None,
    ) -> None:
        """`take_turns` is called with every beat of a loaded model. `is_kept` says whether an
        agent keeps this process; when none does any more, `on_abandoned` is called once."""
        self._client = client
        self._record = record
        self._publisher = publisher
        self._orphan_grace_s = orphan_grace_s
        self._job_ttl_s = job_ttl_s
        self._max_step_gap_s = max_step_gap_s
        self._take_turns = take_turns
        self._on_wedged = on_wedged
        self._is_kept = is_kept
        self._on_abandoned = on_abandoned
        self._denylist = denylist
        self._loop: EngineLoop | None = None
        self._is_abandoned = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Announce the replica, then go on twice a second. Raises redis.RedisError."""
        registry.announce(self._client, self._record())
        self._thread.start()

    def look_after(self, loop: EngineLoop) -> None:
        """The model is loaded: from now on the jobs of its loop are looked after too."""
        self._loop = loop

    def announce(self) -> None:
        """Say at once what has changed."""
        try:
            registry.announce(self._client, self._record())
        except redis.RedisError as exc:
            _log.warning("heartbeat missed: %s", exc)

    def stop(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        try:
            registry.withdraw(self._client, self._record().id)
        except redis.RedisError as exc:
            _log.warning("could not withdraw from the registry, the record expires: %s", exc)

    def _run(self) -> None:
        name_this_thread()
        while not self._stop.wait(registry.BEAT_S if self._loop else _LOADING_BEAT_S):
            loop = self._loop
            if (loop is not None and loop.is_wedged) or self._publisher.is_wedged:
                self._on_wedged()
                return
            if not self._is_kept() and not self._is_abandoned:
                _log.warning("no agent keeps this replica any more, it stops")
                self._is_abandoned = True
                self._on_abandoned()
            try:
                if self._denylist is not None:
                    self._denylist.look()
                registry.announce(self._client, self._record())
                if loop is not None:
                    self._look_after_jobs(loop)
                    self._take_turns()
            except redis.RedisError as exc:
                _log.warning("heartbeat missed: %s", exc)
            except Exception:
                # A replica without a pulse is taken for dead although it works: go on.
                _log.exception("heartbeat failed")

    def _look_after_jobs(self, loop: EngineLoop) -> None:
        runs = loop.running()
        unheard = self._unheard({channel for run in runs for channel in run.channels})
        if not runs:
            return
        pipe = self._client.pipeline(transaction=False)
        for run in runs:
            pipe.get(names.cancel_key(run.id))
            pipe.smembers(names.readers_key(run.id))
        replies = pipe.execute()
        for run, flag, readers in zip(runs, replies[::2], replies[1::2], strict=True):
            run.channels = tuple(sorted(payload_bytes(reader).decode() for reader in readers))
            if flag == names.LEFT or (flag is None and self._is_unread(run, unheard)):
                loop.give_back(run.id, GiveBack.LEFT)
            elif flag is not None:
                loop.cancel(run.id, RequestCancelled("The request was cancelled."))
            elif time.time() > run.job.deadline_at:
                loop.cancel(run.id, DeadlineExceeded("The request ran until its deadline."))
            elif self._is_stuck(run, loop.step_age_s):
                loop.cancel(run.id, EngineError("The engine gives no more tokens to the request."))

    def _is_stuck(self, run: JobRun, step_age_s: float) -> bool:
        """Whether a run gets no token although the engine makes steps: one that makes none is its
        agent's business."""
        gap_s, longest_s = time.monotonic() - run.last_token_at, self._max_step_gap_s
        return bool(run.last_token_at) and 0 < longest_s < gap_s and step_age_s < longest_s

    def _is_unread(self, run: JobRun, unheard: set[str]) -> bool:
        """Whether nobody has read a job for the grace time that somebody should read."""
        if run.job.priority is not Priority.INTERACTIVE or not unheard.issuperset(run.channels):
            return False
        if not run.channels:
            return False  # its readers have just been lost, or the last one leaves
        # Should one of them come back, it is not to think that the job is still read.
        _log.warning("nobody reads the job any more", extra={"request_id": run.id})
        pipe = self._client.pipeline(transaction=True)
        pipe.srem(names.readers_key(run.id), *run.channels)
        key = names.cancel_key(run.id)
        essential.write(pipe, "SET", key, names.LEFT, "NX", "EX", self._job_ttl_s)
        pipe.execute()
        return True

    def _unheard(self, in_use: set[str]) -> set[str]:
        """Channels in use that nobody has heard for the grace time, nor listens to now."""
        unheard = self._publisher.unheard_channels(self._orphan_grace_s)
        if not unheard:
            return set()
        counts = dict(self._client.pubsub_numsub(*unheard))
        silent = {channel for channel in unheard & in_use if not counts.get(channel.encode())}
        self._publisher.forget_channels(unheard - silent)
        return silent
