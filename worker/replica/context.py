"""The parts of the replica process that its tasks use. Built once, before the first task."""

from collections.abc import Callable
from dataclasses import dataclass, field

import redis

from shared.denylist.file import DenylistFile
from shared.queue.job_queue import JobQueue
from shared.queue.lease import JobLeases
from worker.replica.engine_loop import EngineLoop
from worker.replica.in_flight import InFlightJobs
from worker.replica.prompt import PromptBuilder
from worker.replica.publisher import Publisher
from worker.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class ReplicaContext:
    id: str
    client: "redis.Redis"
    """Its writes pass on a full Redis."""
    queue: JobQueue
    leases: JobLeases
    loop: EngineLoop
    publisher: Publisher
    prompts: PromptBuilder
    vocabulary: Vocabulary
    running_ttl_s: int
    """How long what belongs to a job stays in Redis while it may run."""
    max_queue_s: float
    """How long after its arrival a job may begin; 0 = up to its deadline."""
    is_draining: Callable[[], bool]
    """Whether jobs that arrive now are for other replicas."""
    on_busy: Callable[[], None]
    """Called when the first job arrives after a pause: the registry must show it soon. Must not
    block."""
    denylist: DenylistFile | None = None
    in_flight: InFlightJobs = field(default_factory=InFlightJobs)
