"""A relay and its supervisor with scripted borders.

The stream is a real one whose waits pass on the clock of the test.
"""

from collections.abc import Callable
from typing import Any

import msgspec
import redis

from app.events.job_stream import JobStream
from app.jobs.dispatcher import Subscription
from app.jobs.status import JobStatus
from app.metrics.request_record import RequestRecord
from app.streaming.job_supervisor import RelayParts
from app.streaming.queue_monitor import QueuePositions
from app.streaming.relay import Relay
from shared.errors import EngineError, LlmisError
from shared.queue.snapshot import QueuePosition, QueueSnapshot
from shared.settings.fields import Settings
from shared.wire import codec
from shared.wire import job as messages
from shared.wire.events import Delta, Event, Failed, Finished, Started, Timings, Usage
from shared.wire.operations import OperationKind, OperationProgress, OperationState
from tests.support.chat_jobs import chat_job

EPOCH = 1_000_000.0
DEADLINE_GRACE_S = 5.0
STARTED = Started(0, 0, 3)
DELTA = Delta(1, 0, 0, "a", [1])
FINISHED = Finished(2, 0, Usage(3, 1), Timings(0, 0, 0))
LOADING = OperationProgress(
    id="o", kind=OperationKind.LOAD, model="m", state=OperationState.LOADING, stage="x", fraction=0
)
QUEUED = JobStatus(None, False, False, 0)
GIVEN_BACK = JobStatus("", False, False, 0)
RUNNING = JobStatus("r", False, False, 0)
CANCELLED = JobStatus(None, True, False, 0)


def failed(seq: int, error: type[LlmisError] = EngineError) -> Failed:
    return Failed(seq, 0, error.status, error.code, "it broke")


class Clock:
    """All clocks of the process; sleeping moves them."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return EPOCH + self.now

    def sleep(self, duration_s: float) -> None:
        self.now += duration_s


class _Log:
    """The job's log in Redis, as much as a stream uses of it."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.is_away = False
        self.num_reads = 0

    def lrange(self, _key: str, first: int, last: int) -> list[bytes]:
        self.num_reads += 1
        if self.is_away:
            raise redis.ConnectionError("cut")
        return [codec.encode_event(event) for event in self.events[first : last + 1]]


class _Stream(JobStream):
    """Before each wait one step of `meanwhile` is made; a wait for nothing moves the clock."""

    def __init__(self, clock: Clock, log: _Log) -> None:
        super().__init__("j", log)  # type: ignore[arg-type]
        self._clock = clock
        self.meanwhile: list[Callable[[], None]] = []

    def read(self, timeout_s: float) -> list[Event]:
        if self._queue.empty() and self.meanwhile:
            self.meanwhile.pop(0)()
        if self._queue.empty():
            self._clock.now += timeout_s
            return []
        return super().read(0)


class _Registry:
    """Stands for the directory and the loader."""

    def __init__(self) -> None:
        self.is_served_now, self.is_coming_now, self.is_assigned_now = True, False, False
        self.alive: set[str] = set()
        self.load: OperationProgress | None = None
        self.refusal: Exception | None = None
        self.ensured: list[tuple[str, float]] = []

    def is_served(self, _model: str) -> bool:
        return self.is_served_now

    def is_coming(self, _model: str) -> bool:
        return self.is_coming_now

    def is_assigned(self, _model: str) -> bool:
        return self.is_assigned_now

    def has(self, replica_id: str) -> bool:
        return replica_id in self.alive

    def replicas(self, _model: str) -> list[Any]:
        return []

    def ensure(self, model: str, deadline_at: float) -> OperationProgress | None:
        self.ensured.append((model, deadline_at))
        if self.refusal is not None:
            raise self.refusal
        return self.load


class _Queue:
    """Stands for what is known of the queues."""

    def __init__(self) -> None:
        self.is_lacking = False
        self.lacked_since: list[float] = []
        self.positions: list[int | None] = []

    def lacks(self, _model: str, _job_id: str, enqueued_at: float) -> bool:
        self.lacked_since.append(enqueued_at)
        return self.is_lacking

    def all(self) -> dict[str, int]:
        return {"m": 7}

    def snapshot(self, _model: str) -> QueueSnapshot:
        return QueueSnapshot(
            [0, 2], [[], [QueuePosition(2, 1, 1), QueuePosition(2, 1, 2)]], [[], [0, 1]]
        )


class _Border:
    """Stands for the dispatcher and the watchdog: records what it is asked for."""

    def __init__(self) -> None:
        self.requeued: list[str] = []
        self.released: list[str] = []
        self.watched: set[Any] = set()

    def requeue(self, job: messages.Job) -> None:
        self.requeued.append(job.id)

    def release(self, subscription: Subscription) -> None:
        self.released.append(subscription.job.id)

    def watch(self, reader: Any) -> None:
        self.watched.add(reader)

    def forget(self, reader: Any) -> None:
        self.watched.discard(reader)


class RelayBench:
    """A relay and its borders."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.log, self.registry, self.queue, self.border = _Log(), _Registry(), _Queue(), _Border()
        self.stream = _Stream(clock, self.log)
        self.settings = Settings(keepalive_s=10.0, replica_wait_s=15.0)
        self.positions = QueuePositions(self.queue)  # type: ignore[arg-type]
        self.record = RequestRecord("/v1/chat/completions")
        self.job = chat_job(created_at=clock.time(), deadline_at=clock.time() + 600)

    def relay(self, **more: Any) -> Relay:
        border: Any = self.border
        registry: Any = self.registry
        queue: Any = self.queue
        parts = RelayParts(self.settings, border, registry, queue, registry, border, self.positions)
        return Relay(parts, Subscription(self.job, self.stream, **more), self.record)

    def set(self, **settings: Any) -> None:
        self.settings = msgspec.structs.replace(self.settings, **settings)

    def push(self, *events: Event) -> None:
        for event in events:
            self.stream.push(event)

    def tell(self, relay: Relay, found: JobStatus | redis.RedisError, after_s: float = 0) -> None:
        """The reader waits, and the watchdog finds this."""

        def note() -> None:
            self.clock.now += after_s
            relay.note(found)

        self.stream.meanwhile.append(note)


def begun(bench: RelayBench, **more: Any) -> tuple[Relay, Any]:
    """A relay whose job has been seen to, and its batches of events."""
    relay = bench.relay(**more)
    batches = relay.events([])
    assert next(batches) == []
    bench.registry.ensured.clear()
    return relay, batches
