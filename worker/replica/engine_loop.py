"""The engine loop: one thread, sole owner of the engine, no locks, no Redis.

Drain the inbox, admit, step, route. Other threads talk to it through the inbox only; results
leave through the `emit` function it was given, which must not block.
"""

import logging
import queue
import time
from collections import deque
from dataclasses import dataclass

from shared.clock import clock
from shared.errors import EngineError, LlmisError
from worker.engines.base import Engine, EngineFatal
from worker.replica.attempt import (
    Attempt,
    AttemptEvent,
    Emit,
    JobDropped,
    JobEnded,
    JobPreempted,
    JobStarted,
    Preemption,
    num_prompt_tokens,
)
from worker.replica.threads import daemon_thread
from worker.sequence import Sequence, StepResult

_log = logging.getLogger(__name__)
_SHORT_PROMPT = 256
"""Tokens. The engine reads up to so many in its first step, mostly, so that the start of such a job
is published together with its first token."""
_NEWEST_WEIGHT = 0.1
"""Of the latest job, in the moving mean of the time that jobs hold slots."""


@dataclass(frozen=True, slots=True)
class _Stop:
    job_id: str
    end: JobDropped | JobPreempted


class EngineLoop:
    def __init__(self, engine: Engine, emit: Emit) -> None:
        self._engine = engine
        self._num_slots = engine.free_slots
        self._emit = emit
        self._inbox: queue.SimpleQueue[Attempt | _Stop | None] = queue.SimpleQueue()
        self._attempts: dict[str, Attempt] = {}
        self._waiting: deque[Sequence] = deque()
        """Sequences without a slot yet, in the order of their jobs."""
        self._begun: list[AttemptEvent] = []
        """The starts of jobs that are still to be emitted, before all else."""
        self._thread = daemon_thread("engine-loop", self._run)
        self.is_wedged = False
        """The loop itself died: the process cannot serve any more."""
        self.fatal_reason = ""
        """Why it died, if the engine said so."""
        self.poison: dict[str, int] = {}
        """`EngineFatal.poison`, if the engine raised it."""
        self.num_steps = 0
        self.num_generated_tokens = 0
        self.mean_slot_s = 0.0
        """See `ReplicaRecord.slot_s`."""
        self._step_ended_at = time.monotonic()
        self._submitted_at: dict[str, float] = {}
        """Job → monotonic time, until the loop has taken it from the inbox."""

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread after the step in progress; what still runs is dropped."""
        self._inbox.put(None)
        if self._thread.is_alive():
            self._thread.join()

    def submit(self, attempt: Attempt) -> None:
        """Put a job into the inbox. Its end is `attempt.done`."""
        self._submitted_at[attempt.id] = time.monotonic()
        self._inbox.put(attempt)

    def cancel(self, job_id: str, error: LlmisError) -> None:
        """End a job between two steps. An unknown job is ignored."""
        self._inbox.put(_Stop(job_id, JobDropped(error)))

    def preempt(self, job_id: str, reason: Preemption) -> None:
        """Stop a job between two steps without an end, so that it can be resumed. An unknown job is
        ignored."""
        self._inbox.put(_Stop(job_id, JobPreempted(reason)))

    # -- for the heartbeat: read from another thread, each a single reference ----------------

    def running(self) -> list[Attempt]:
        return list(self._attempts.copy().values())

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def step_age_s(self) -> float:
        """Seconds for which there was something to do and no step ended."""
        if self._attempts:
            return time.monotonic() - self._step_ended_at
        submitted_at = self._submitted_at.copy()
        return time.monotonic() - min(submitted_at.values()) if submitted_at else 0.0

    # -- the loop ----------------------------------------------------------------------------

    def _run(self) -> None:
        is_stopped = False
        try:
            while self._drain_inbox():
                self._admit()
                if self._engine.has_work:
                    self._route(self._step())
                    self.num_steps += 1
                    self._step_ended_at = time.monotonic()
            is_stopped = True
        except EngineFatal as error:
            _log.critical("the engine cannot go on: %s", error.message, exc_info=True)
            self.fatal_reason = error.message
            self.poison = error.poison
            self._drop_all(error)
        finally:
            # Any other exception ends the thread, and `logs.configure` logs it.
            self.is_wedged = not is_stopped
            self._drop_all(EngineError("The replica stopped before the request was done."))

    def _drain_inbox(self) -> bool:
        """Process the inbox; wait for a message when no job runs. False = stop."""
        is_idle = not self._attempts
        while True:
            try:
                message = self._inbox.get(block=is_idle)
            except queue.Empty:
                return True
            if message is None:
                return False
            if isinstance(message, Attempt):
                if is_idle:
                    self._step_ended_at = time.monotonic()
                self._attempts[message.id] = message
                self._submitted_at.pop(message.id, None)
                wanted = [s for s in message.sequences if s.key[1] not in message.ended]
                message.open_sequences = len(wanted)
                self._waiting.extend(wanted)
            else:
                self._remove(message.job_id, message.end)
            is_idle = False

    def _admit(self) -> None:
        """Admit sequences in the order of their arrival, as long as the engine can.

        No overtaking: a long one at the head would wait for ever behind short ones."""
        while self._waiting and self._engine.can_admit(self._waiting[0]):
            sequence = self._waiting.popleft()
            attempt = self._attempts[sequence.key[0]]
            try:
                self._engine.submit(sequence)
            except EngineFatal:
                raise
            except LlmisError as error:
                _log.warning("not taken by the engine: %s", error, extra={"request_id": attempt.id})
                self._drop(attempt.id, error)
                continue
            if not attempt.started_at:
                attempt.started_at = time.monotonic()
                attempt.queue_s = clock.age_s(attempt.job.created_at)
                attempt.prompt_tokens = num_prompt_tokens(attempt)
                self._begun.append((attempt, JobStarted(attempt.prompt_tokens)))
        if any(attempt.prompt_tokens > _SHORT_PROMPT for attempt, _ in self._begun):
            self._emit(self._take_begun())

    def _take_begun(self) -> list[AttemptEvent]:
        begun, self._begun = self._begun, []
        return begun

    def _step(self) -> list[StepResult]:
        try:
            return self._engine.step()
        except EngineFatal:
            raise
        except EngineError as error:
            _log.exception("engine step failed, its jobs fail with it")
            # A job that only waits has lost nothing.
            for attempt in [attempt for attempt in self._attempts.values() if attempt.started_at]:
                self._drop(attempt.id, error)
            return []

    def _route(self, results: list[StepResult]) -> None:
        events = self._take_begun()
        is_urgent = bool(events)
        for result in results:
            attempt = self._attempts.get(result.key[0])
            if attempt is None:
                continue  # another choice of the job has failed in this step
            if result.error is not None:
                self._emit(events)
                events = []
                self._drop(attempt.id, result.error)
                continue
            index = result.key[1]
            if result.token_ids:
                self._count_tokens(attempt, result)
                if index not in attempt.streaming:
                    attempt.streaming.add(index)
                    is_urgent = True
            else:
                is_urgent = True
            if result.prefilled_tokens and index % attempt.job.num_choices == 0:
                # Tokens of an earlier attempt may be in the cache, too: they are no prompt.
                num_prompt = len(attempt.sequences[index].prompt)
                attempt.cached_by_prompt[index] = min(result.cached_tokens, num_prompt)
            events.append((attempt, result))
            if result.finish_reason is not None:
                is_urgent = True
                attempt.open_sequences -= 1
                if attempt.open_sequences == 0:
                    events.append((attempt, self._end(attempt)))
        if events:
            self._emit(events, is_urgent=is_urgent)

    def _count_tokens(self, attempt: Attempt, result: StepResult) -> None:
        num_tokens = len(result.token_ids)
        attempt.completion_tokens += num_tokens
        self.num_generated_tokens += num_tokens
        if result.reasoning_tokens is not None:
            attempt.reasoning_tokens[result.key[1]] = result.reasoning_tokens
        attempt.last_token_at = time.monotonic()
        attempt.first_token_at = attempt.first_token_at or attempt.last_token_at

    def _end(self, attempt: Attempt) -> JobEnded:
        del self._attempts[attempt.id]
        self._weigh_slot_time(attempt)
        attempt.outcome = "finished"
        return JobEnded(attempt.usage(), attempt.timings())

    def _drop(self, job_id: str, error: LlmisError) -> None:
        self._remove(job_id, JobDropped(error))

    def _remove(self, job_id: str, end: JobDropped | JobPreempted) -> None:
        attempt = self._attempts.pop(job_id, None)
        if attempt is None:
            return
        try:
            for sequence in attempt.sequences:
                self._engine.cancel(sequence.key)
        finally:
            self._waiting = deque(s for s in self._waiting if s.key[0] != job_id)
            self._weigh_slot_time(attempt)
            if isinstance(end, JobDropped):
                attempt.outcome = end.error.code or end.error.type
            else:
                attempt.outcome = end.reason
            self._emit([*self._take_begun(), (attempt, end)])

    def _weigh_slot_time(self, attempt: Attempt) -> None:
        """Add an ended job to the mean. One with more sequences than slots held all slots."""
        if not attempt.started_at:
            return
        num_held = min(len(attempt.sequences), self._num_slots)
        held_s = num_held * (time.monotonic() - attempt.started_at)
        weight = _NEWEST_WEIGHT if self.mean_slot_s else 1.0
        self.mean_slot_s += weight * (held_s - self.mean_slot_s)

    def _drop_all(self, error: LlmisError) -> None:
        for job_id in list(self._attempts):
            try:
                self._drop(job_id, error)
            except Exception:  # the engine is foreign code: the other jobs must end, too
                _log.exception("not cancelled", extra={"request_id": job_id})
