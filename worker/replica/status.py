"""What a replica says of itself: the content of its record in the registry.

Written by the main thread while it loads, read by the heartbeat.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import psutil

from shared.lifecycle import STAGES, Assignment
from shared.messages import Capability, ReplicaRecord, ReplicaState
from worker.engine_loop import EngineLoop

_RATE_WINDOW_S = 5.0


@dataclass(frozen=True, slots=True)
class Capacity:
    """What the engine has to offer now."""

    free_slots: int
    context_length: int
    device: str
    capabilities: list[Capability] = field(default_factory=list)
    device_bytes: dict[str, int] = field(default_factory=dict)
    """See `ReplicaRecord.device_bytes`."""
    kv_usage: float | None = None
    """See `ReplicaRecord.kv_usage`."""


class VitalSigns:
    def __init__(self, assignment: Assignment, replica_id: str, versions: dict[str, str]) -> None:
        self._assignment = assignment
        self._replica_id = replica_id
        self._versions = versions
        self._state = ReplicaState.LOADING
        self._stage = "spawning"
        self._fraction = STAGES["spawning"]
        self._started_at = time.time()
        self._process = psutil.Process()
        self._loop: EngineLoop | None = None
        self._publish_age_s: Callable[[], float] = lambda: 0.0
        spec = assignment.spec
        self._capacity: Callable[[], Capacity] = lambda: Capacity(
            spec.slots, spec.context_length, spec.device
        )
        self._sampling = threading.Lock()  # the heartbeat samples, and a job that comes first
        self._samples: deque[tuple[float, int]] = deque()
        """(monotonic time, tokens generated until then) of the last seconds."""

    def enter(self, stage: str) -> None:
        """A stage of `shared.lifecycle.STAGES` begins."""
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
        capacity: Callable[[], Capacity],
        publish_age_s: Callable[[], float],
    ) -> None:
        """The model is loaded: its engine loop has something to tell from now on."""
        self._loop, self._capacity, self._publish_age_s = loop, capacity, publish_age_s

    def record(self) -> ReplicaRecord:
        assignment, spec, loop = self._assignment, self._assignment.spec, self._loop
        memory = self._process.memory_info()
        capacity = self._capacity()
        return ReplicaRecord(
            id=self._replica_id,
            model=spec.name,
            engine=spec.engine,
            device=capacity.device,
            node=assignment.node,
            assignment_id=assignment.id,
            pid=os.getpid(),
            versions=self._versions,
            state=self._state,
            stage=self._stage,
            fraction=round(self._fraction, 3),
            slots=spec.slots,
            busy_slots=spec.slots - capacity.free_slots,
            waiting_sequences=loop.num_waiting if loop else 0,
            context_length=capacity.context_length,
            capabilities=capacity.capabilities,
            steps=loop.num_steps if loop else 0,
            step_age_s=loop.step_age_s if loop else 0.0,
            publish_age_s=self._publish_age_s(),
            generated_tokens=loop.num_generated_tokens if loop else 0,
            tokens_per_s=self._tokens_per_s(loop.num_generated_tokens if loop else 0),
            slot_s=round(loop.mean_slot_s, 4) if loop else 0.0,
            memory_bytes=memory.rss,
            mapped_bytes=memory.shared,
            estimated_bytes=assignment.memory_bytes,
            device_bytes=capacity.device_bytes,
            kv_usage=capacity.kv_usage,
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
