"""The status of a replica: the content of its record in the registry. Written by the main thread
while it loads, read by the heartbeat."""

import os
import threading
import time
from collections import deque
from collections.abc import Callable

import psutil

from shared.clock import clock
from shared.wire.operations import STAGES
from shared.wire.records import Assignment, ReplicaRecord, ReplicaState
from worker.engines.base import Engine
from worker.replica.engine_loop import EngineLoop
from worker.replica.prompt import PromptBuilder

_RATE_WINDOW_S = 5.0


class ReplicaStatus:
    def __init__(self, assignment: Assignment, replica_id: str, versions: dict[str, str]) -> None:
        self._assignment = assignment
        self._replica_id = replica_id
        self._versions = versions
        self._state = ReplicaState.LOADING
        self._stage = "spawning"
        self._fraction = STAGES["spawning"]
        self._started_at = clock.now()
        self._process = psutil.Process()
        self._loop: EngineLoop | None = None
        self._publish_age_s: Callable[[], float] = lambda: 0.0
        self._engine: Engine | None = None
        self._prompts: PromptBuilder | None = None
        self._sampling = threading.Lock()  # used by the heartbeat and by a job that ends a pause
        self._samples: deque[tuple[float, int]] = deque()
        """(monotonic time, tokens generated until then) of the last seconds."""

    def enter(self, stage: str) -> None:
        """A stage of `shared.wire.operations.STAGES` begins."""
        self._stage, self._fraction = stage, STAGES[stage]

    def read_weights(self, done: float) -> None:
        """How much of the weights is read, 0 to 1."""
        begin, end = STAGES["reading weights"], STAGES["warming up"]
        self._fraction = begin + done * (end - begin)

    def become(self, state: ReplicaState) -> None:
        self._state = state
        self.enter("ready")

    def observe(
        self,
        loop: EngineLoop,
        engine: Engine,
        prompts: PromptBuilder,
        publish_age_s: Callable[[], float],
    ) -> None:
        """The model is loaded: the record shows its engine loop from now on."""
        self._loop, self._engine, self._prompts = loop, engine, prompts
        self._publish_age_s = publish_age_s

    def record(self) -> ReplicaRecord:
        assignment, spec = self._assignment, self._assignment.spec
        loop, engine, prompts = self._loop, self._engine, self._prompts
        memory = self._process.memory_info()
        return ReplicaRecord(
            id=self._replica_id,
            model=spec.name,
            engine=spec.engine,
            device=engine.device if engine else spec.device,
            node=assignment.node,
            assignment_id=assignment.id,
            pid=os.getpid(),
            versions=self._versions,
            state=self._state,
            stage=self._stage,
            fraction=round(self._fraction, 3),
            slots=spec.slots,
            busy_slots=spec.slots - engine.free_slots if engine else 0,
            waiting_sequences=loop.num_waiting if loop else 0,
            context_length=engine.context_length if engine else spec.context_length,
            capabilities=prompts.capabilities if prompts else [],
            chat_error=prompts.chat_error if prompts else "",
            steps=loop.num_steps if loop else 0,
            step_age_s=loop.step_age_s if loop else 0.0,
            publish_age_s=self._publish_age_s(),
            generated_tokens=loop.num_generated_tokens if loop else 0,
            tokens_per_s=self._tokens_per_s(loop.num_generated_tokens if loop else 0),
            slot_s=round(loop.mean_slot_s, 4) if loop else 0.0,
            memory_bytes=memory.rss,
            mapped_bytes=memory.shared,
            estimated_bytes=assignment.memory_bytes,
            device_bytes=engine.device_bytes if engine else {},
            kv_usage=engine.kv_usage if engine else None,
            started_at=self._started_at,
        )

    def _tokens_per_s(self, generated: int) -> float:
        now = time.monotonic()
        with self._sampling:
            self._samples.append((now, generated))
            while now - self._samples[0][0] > _RATE_WINDOW_S:
                self._samples.popleft()
            first_at, first = self._samples[0]
        return round((generated - first) / (now - first_at), 1) if now > first_at else 0.0
