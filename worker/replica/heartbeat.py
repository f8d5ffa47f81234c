"""The heartbeat: one thread that writes this replica's record and supervises its jobs.

Twice a second it renews the record, reads who reads the running jobs, and stops the jobs that
carry a cancel flag (for a revocation that this process missed), that are past their deadline, that
get no more tokens, or whose events have no receiver. It lets the lower classes of its model's
queue take their turns. When the engine loop or the publisher has died, it ends the process.
"""

import logging
import threading
import time
from collections.abc import Callable

import redis

from shared import names
from shared.clock import clock
from shared.denylist.file import DenylistFile
from shared.errors import DeadlineExceeded, EngineError, RequestCancelled
from shared.periodic import run_step
from shared.redis.connection import payload_bytes
from shared.registry import records
from shared.registry.records import BEAT_S
from shared.settings.fields import Settings
from shared.wire.job import Priority
from shared.wire.records import ReplicaRecord
from worker.replica.attempt import Attempt, Preemption
from worker.replica.engine_loop import EngineLoop
from worker.replica.publisher import Publisher
from worker.replica.threads import daemon_thread

_log = logging.getLogger(__name__)
_LOADING_BEAT_S = 0.2
"""While the model loads: clients watch its progress."""
_PAUSE_S = 0.05
"""Between two records that are written out of turn, at least: short requests end a pause often."""


class Heartbeat:
    def __init__(
        self,
        client: "redis.Redis",
        record: Callable[[], ReplicaRecord],
        publisher: Publisher,
        settings: Settings,
        *,
        take_turns: Callable[[], object],
        on_wedged: Callable[[], None],
        denylist: DenylistFile | None = None,
    ) -> None:
        """`take_turns` is called with every beat once the model is loaded. The writes of `client`
        pass on a full Redis."""
        self._client = client
        self._record = record
        self._publisher = publisher
        self._settings = settings
        self._take_turns = take_turns
        self._on_wedged = on_wedged
        self._denylist = denylist
        self._loop: EngineLoop | None = None
        self._stop = threading.Event()
        self._wake = threading.Event()
        """Set by `announce_soon` and `stop`."""
        self._thread = daemon_thread("heartbeat", self._run)

    def start(self) -> None:
        """Announce the replica, then go on twice a second. Raises redis.RedisError."""
        records.announce(self._client, self._record())
        self._thread.start()

    def supervise(self, loop: EngineLoop) -> None:
        """The model is loaded: from now on the jobs of its loop are supervised."""
        self._loop = loop

    def announce(self) -> None:
        """Write a record that has changed at once."""
        try:
            records.announce(self._client, self._record())
        except redis.RedisError as exc:
            _log.warning("heartbeat missed: %s", exc)

    def announce_soon(self) -> None:
        """Have the heartbeat write a record that has changed. Waits for nothing."""
        self._wake.set()

    def stop(self) -> None:
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()
        try:
            records.withdraw(self._client, self._record().id)
        except redis.RedisError as exc:
            _log.warning("could not withdraw from the registry, the record expires: %s", exc)

    def _run(self) -> None:
        beat_at = time.monotonic() + self._beat_s
        while True:
            self._wake.wait(max(0.0, beat_at - time.monotonic()))
            if self._stop.is_set():
                return
            self._wake.clear()
            if time.monotonic() < beat_at:
                run_step(self.announce, "a record out of turn")
                self._stop.wait(_PAUSE_S)
                continue
            run_step(self._beat, "heartbeat")
            if self._denylist is not None:
                run_step(self._denylist.refresh, "reading the denylist")
            beat_at = time.monotonic() + self._beat_s

    @property
    def _beat_s(self) -> float:
        return BEAT_S if self._loop else _LOADING_BEAT_S

    def _beat(self) -> None:
        loop = self._loop
        if (loop is not None and loop.is_wedged) or self._publisher.is_wedged:
            self._on_wedged()
            self._stop.set()
            return
        try:
            clock.measure(self._client)
            records.announce(self._client, self._record())
            if loop is not None:
                self._check_jobs(loop)
                self._take_turns()
        except redis.RedisError as exc:
            _log.warning("heartbeat missed: %s", exc)

    def _check_jobs(self, loop: EngineLoop) -> None:
        attempts = loop.running()
        unheard = self._unheard({channel for one in attempts for channel in one.channels})
        if not attempts:
            return
        pipe = self._client.pipeline(transaction=False)
        for attempt in attempts:
            pipe.get(names.cancel_key(attempt.id))
            pipe.smembers(names.readers_key(attempt.id))
        replies = pipe.execute()
        for attempt, flag, readers in zip(attempts, replies[::2], replies[1::2], strict=True):
            attempt.channels = tuple(sorted(payload_bytes(reader).decode() for reader in readers))
            if flag == names.LEFT or (flag is None and self._is_unread(attempt, unheard)):
                loop.preempt(attempt.id, Preemption.LEFT)
            elif flag is not None:
                loop.cancel(attempt.id, RequestCancelled())
            elif clock.is_past(attempt.job.deadline_at, made_at=attempt.job.created_at):
                loop.cancel(attempt.id, DeadlineExceeded("The request ran until its deadline."))
            elif self._is_stuck(attempt, loop.step_age_s):
                error = EngineError("The engine gives no more tokens to the request.")
                loop.cancel(attempt.id, error)

    def _is_stuck(self, attempt: Attempt, step_age_s: float) -> bool:
        """Whether an attempt gets no token although the engine makes steps. An engine that makes
        none is for the agent to notice."""
        gap_s, longest_s = time.monotonic() - attempt.last_token_at, self._settings.max_step_gap_s
        return bool(attempt.last_token_at) and 0 < longest_s < gap_s and step_age_s < longest_s

    def _is_unread(self, attempt: Attempt, unheard: set[str]) -> bool:
        """Whether a job that needs a reader has had none for the grace time."""
        if attempt.job.priority is not Priority.INTERACTIVE:
            return False
        # Without channels its readers have just been lost, or the last one leaves.
        if not attempt.channels or not unheard.issuperset(attempt.channels):
            return False
        _log.warning("the job has no reader any more", extra={"request_id": attempt.id})
        # The flag lets a reader that comes back see that the job has stopped.
        pipe = self._client.pipeline(transaction=True)
        pipe.srem(names.readers_key(attempt.id), *attempt.channels)
        key, ttl_s = names.cancel_key(attempt.id), self._settings.job_ttl_s
        pipe.set(key, names.LEFT, nx=True, ex=ttl_s)
        pipe.execute()
        return True

    def _unheard(self, in_use: set[str]) -> set[str]:
        """Channels in use that have had no receiver for the grace time, and no subscriber now."""
        unheard = self._publisher.unheard_channels(self._settings.orphan_grace_s)
        if not unheard:
            return set()
        counts = dict(self._client.pubsub_numsub(*unheard))
        silent = {channel for channel in unheard & in_use if not counts.get(channel.encode())}
        self._publisher.forget_channels(unheard - silent)
        return silent
