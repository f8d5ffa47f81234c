"""The engine loop: one thread, sole owner of the engine, no locks, no Redis.

Drain the inbox, admit, step, route. Other threads talk to it through the inbox only; results
leave through the `emit` function it was given, which must not block.
"""

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from shared.errors import EngineError, LlmisError
from worker.engines.protocol import Engine, EngineFatal, Sequence, StepResult
from worker.job_run import (
    Emission,
    GiveBack,
    JobDropped,
    JobEnded,
    JobGivenBack,
    JobRun,
    JobStarted,
    num_prompt_tokens,
)
from worker.thread_names import name_this_thread

_log = logging.getLogger(__name__)
_NEWEST_WEIGHT = 0.1
"""Of the job that ended last, in the mean time that jobs hold slots."""


@dataclass(frozen=True, slots=True)
class _Stop:
    job_id: str
    end: JobDropped | JobGivenBack


class EngineLoop:
    def __init__(self, engine: Engine, emit: Callable[[list[Emission]], None]) -> None:
        self._engine = engine
        self._num_slots = engine.free_slots
        self._emit = emit
        self._inbox: queue.SimpleQueue[JobRun | _Stop | None] = queue.SimpleQueue()
        self._runs: dict[str, JobRun] = {}
        self._waiting: deque[Sequence] = deque()
        """Sequences without a slot yet, in the order of their jobs."""
        self._thread = threading.Thread(target=self._run, name="engine-loop", daemon=True)
        self.is_wedged = False
        """The loop itself died: the process is of no more use."""
        self.last_words = ""
        """Why it died, if the engine said so."""
        self.suspects: dict[str, int] = {}
        """See `EngineFatal`."""
        self.num_steps = 0
        self.num_generated_tokens = 0
        self.mean_slot_s = 0.0
        """See `ReplicaRecord.slot_s`."""
        self._step_ended_at = time.monotonic()
        self._handed_over: dict[str, float] = {}
        """Job → monotonic time at which it was submitted, until the loop has taken it."""

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread after the step in progress; what still runs is dropped."""
        self._inbox.put(None)
        if self._thread.is_alive():
            self._thread.join()

    def submit(self, run: JobRun) -> None:
        """Hand over a job. Its end is `run.done`."""
        self._handed_over[run.id] = time.monotonic()
        self._inbox.put(run)

    def cancel(self, job_id: str, error: LlmisError) -> None:
        """End a job between two steps. An unknown job is ignored."""
        self._inbox.put(_Stop(job_id, JobDropped(error)))

    def give_back(self, job_id: str, reason: GiveBack) -> None:
        """Stop a job between two steps, for another replica to go on. An unknown job is ignored."""
        self._inbox.put(_Stop(job_id, JobGivenBack(reason)))

    # -- for the heartbeat: read from another thread, each a single reference ----------------

    def running(self) -> list[JobRun]:
        return list(self._runs.copy().values())

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def step_age_s(self) -> float:
        """Seconds for which there was something to do and no step ended."""
        if self._runs:
            return time.monotonic() - self._step_ended_at
        handed_over = self._handed_over.copy()
        return time.monotonic() - min(handed_over.values()) if handed_over else 0.0

    # -- the loop ----------------------------------------------------------------------------

    def _run(self) -> None:
        name_this_thread()
        try:
            while self._drain_inbox():
                self._admit()
                if self._engine.has_work:
                    self._route(self._step())
                    self.num_steps += 1
                    self._step_ended_at = time.monotonic()
        except EngineFatal as error:
            _log.critical("the engine cannot go on: %s", error.message, exc_info=True)
            self.last_words = error.message
            self.suspects = error.suspects
            self._drop_all(error)
            self.is_wedged = True
        except BaseException:  # a panic in Rust is no Exception
            _log.exception("engine loop died")
            self.is_wedged = True
        finally:
            self._drop_all(EngineError("The replica stopped before the request was done."))

    def _drain_inbox(self) -> bool:
        """Take what has come; wait when there is nothing else to do. False = stop."""
        is_idle = not self._runs
        while True:
            try:
                message = self._inbox.get(block=is_idle)
            except queue.Empty:
                return True
            if message is None:
                return False
            if isinstance(message, JobRun):
                if is_idle:
                    self._step_ended_at = time.monotonic()
                self._runs[message.id] = message
                self._handed_over.pop(message.id, None)
                wanted = [s for s in message.sequences if s.key[1] not in message.ended]
                message.open_sequences = len(wanted)
                self._waiting.extend(wanted)
            else:
                self._take_out(message.job_id, message.end)
            is_idle = False

    def _admit(self) -> None:
        """Give what room there is to the sequences that have waited longest.

        Nobody overtakes: a long one at the head would wait for ever behind short ones."""
        while self._waiting and self._engine.can_admit(self._waiting[0]):
            sequence = self._waiting.popleft()
            run = self._runs[sequence.key[0]]
            try:
                self._engine.submit(sequence)
            except EngineFatal:
                raise
            except LlmisError as error:
                _log.warning("not taken by the engine: %s", error, extra={"request_id": run.id})
                self._drop(run.id, error)
                continue
            if not run.started_at:
                run.started_at = time.monotonic()
                run.queue_s = max(0.0, time.time() - run.job.created_at)
                run.prompt_tokens = num_prompt_tokens(run)
                self._emit([(run, JobStarted(run.prompt_tokens))])

    def _step(self) -> list[StepResult]:
        try:
            return self._engine.step()
        except EngineFatal:
            raise
        except EngineError as error:
            _log.exception("engine step failed, its jobs fail with it")
            # Who only waits has lost nothing.
            for run in [run for run in self._runs.values() if run.started_at]:
                self._drop(run.id, error)
            return []

    def _route(self, results: list[StepResult]) -> None:
        emissions: list[Emission] = []
        for result in results:
            run = self._runs.get(result.key[0])
            if run is None:
                continue  # another choice of the job has failed in this very step
            if result.error is not None:
                self._emit(emissions)
                emissions = []
                self._drop(run.id, result.error)
                continue
            num_tokens = len(result.token_ids)
            if num_tokens:
                run.completion_tokens += num_tokens
                self.num_generated_tokens += num_tokens
                run.last_token_at = time.monotonic()
                run.first_token_at = run.first_token_at or run.last_token_at
            if result.prefilled_tokens and result.key[1] % run.job.num_choices == 0:
                # What an earlier attempt has drawn may be in the cache, too: it is no prompt.
                num_prompt = len(run.sequences[result.key[1]].prompt)
                run.cached_by_prompt[result.key[1]] = min(result.cached_tokens, num_prompt)
            emissions.append((run, result))
            if result.finish_reason is not None:
                run.open_sequences -= 1
                if run.open_sequences == 0:
                    del self._runs[run.id]
                    self._note_slot_time(run)
                    run.outcome = "finished"
                    emissions.append((run, JobEnded(run.usage(), run.timings())))
        if emissions:
            self._emit(emissions)

    def _drop(self, job_id: str, error: LlmisError) -> None:
        self._take_out(job_id, JobDropped(error))

    def _take_out(self, job_id: str, end: JobDropped | JobGivenBack) -> None:
        run = self._runs.pop(job_id, None)
        if run is None:
            return
        try:
            for sequence in run.sequences:
                self._engine.cancel(sequence.key)
        finally:
            self._waiting = deque(s for s in self._waiting if s.key[0] != job_id)
            self._note_slot_time(run)
            if isinstance(end, JobDropped):
                run.outcome = end.error.code or end.error.type
            else:
                run.outcome = end.reason
            self._emit([(run, end)])

    def _note_slot_time(self, run: JobRun) -> None:
        """Weigh in a job that has ended. One with more sequences than slots held them all."""
        if not run.started_at:
            return
        num_held = min(len(run.sequences), self._num_slots)
        held_s = num_held * (time.monotonic() - run.started_at)
        weight = _NEWEST_WEIGHT if self.mean_slot_s else 1.0
        self.mean_slot_s += weight * (held_s - self.mean_slot_s)

    def _drop_all(self, error: LlmisError) -> None:
        for job_id in list(self._runs):
            try:
                self._drop(job_id, error)
            except Exception:
                # The others are to hear of their ends too.
                _log.exception("not cancelled", extra={"request_id": job_id})
