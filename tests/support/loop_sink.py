"""For tests of an engine loop: jobs to put in, and a sink for what comes out."""

import queue
from typing import Any

from shared.errors import LlmisError
from shared.wire.events import FinishReason
from shared.wire.job import Sampling
from tests.support.jobs import completion_job
from worker.replica.attempt import Attempt, AttemptEvent, JobDropped, JobEnded
from worker.sequence import Sequence, StepResult


def make_run(job_id: str, num_choices: int = 1, **options: Any) -> Attempt:
    """`options`: fields of the sequences."""
    job = completion_job(id=job_id, prompts=["abc"], num_choices=num_choices, deadline_at=1e12)
    fields = {"prompt": [1, 2, 3], "max_tokens": 5, "sampling": Sampling()} | options
    sequences = [Sequence(key=(job_id, i), **fields) for i in range(num_choices)]
    return Attempt(job, 0, sequences)


class Sink:
    """Collects what the loop emits and lets a test wait for it."""

    def __init__(self) -> None:
        self._queue: queue.Queue[AttemptEvent] = queue.Queue()
        self.seen: list[AttemptEvent] = []
        self.urgent: list[AttemptEvent] = []
        """What would end the publisher's rest."""

    def emit(self, emissions: list[AttemptEvent], *, is_urgent: bool = True) -> None:
        if is_urgent:
            self.urgent += emissions
        for emission in emissions:
            self._queue.put(emission)

    def wait_for_ends(self, num_jobs: int) -> None:
        ended = 0
        while ended < num_jobs:
            ended += isinstance(self._next()[1], JobEnded | JobDropped)

    def wait_for_text(self, job_id: str) -> None:
        while not self.text(job_id):
            self._next()

    def _next(self) -> AttemptEvent:
        emission = self._queue.get(timeout=60)
        self.seen.append(emission)
        return emission

    def of(self, job_id: str) -> list[object]:
        return [item for run, item in self.seen if run.id == job_id]

    def steps(self, job_id: str, index: int = 0) -> list[StepResult]:
        items = self.of(job_id)
        return [i for i in items if isinstance(i, StepResult) and i.key[1] == index]

    def text(self, job_id: str, index: int = 0) -> str:
        return "".join(step.text for step in self.steps(job_id, index))

    def tokens(self, job_id: str, index: int = 0) -> list[int]:
        return [token for step in self.steps(job_id, index) for token in step.token_ids]

    def finish_reason(self, job_id: str, index: int = 0) -> FinishReason | None:
        return self.steps(job_id, index)[-1].finish_reason

    def end(self, job_id: str) -> JobEnded:
        ended = self.of(job_id)[-1]
        assert isinstance(ended, JobEnded), ended
        return ended

    def error(self, job_id: str) -> LlmisError:
        dropped = self.of(job_id)[-1]
        assert isinstance(dropped, JobDropped), dropped
        return dropped.error
