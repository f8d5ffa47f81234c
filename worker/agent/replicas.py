"""The replicas of one node: list, start and stop them, and what memory they take.

Shared by the agent's watch thread and the threads of its operations. `lock` guards the set of
replicas and their fields. No thread waits for a replica while it holds the lock: the watch
thread needs it to see that the replica has ended.
"""

import logging
import os
import select
import threading
import time
import uuid
from dataclasses import replace
from pathlib import Path

import redis

from shared import log_files, names
from shared.clock import clock
from shared.errors import LlmisError, ModelFailed
from shared.model_spec import ModelSpec
from shared.queue.job_queue import JobQueue
from shared.queue.recovery import recover_jobs
from shared.registry import operations
from shared.registry.records import read, read_used_at, withdraw
from shared.settings.fields import Settings
from shared.wire import codec
from shared.wire.records import Assignment, StopOrder
from worker.agent.devices import RAM, DeviceMemory, share_device
from worker.agent.managed_replica import ManagedReplica
from worker.agent.placement import MemoryLimits, Occupant

_log = logging.getLogger(__name__)
_STOP_ORDER_MARGIN_S = 60
"""A stop order outlives the grace time by this, so that a slow replica still finds it."""
_POLL_S = 0.1


class Replicas:
    def __init__(self, settings: Settings, client: "redis.Redis") -> None:
        self.settings = settings
        self.client = client
        self.node = settings.node
        self.queue = JobQueue(client, int(settings.request_timeout_s) + settings.job_ttl_s)
        self.lock = threading.RLock()
        self._replicas: dict[str, ManagedReplica] = {}
        self.assignments_key = names.assignments_key(self.node)
        self._log_folder = settings.data_path / "logs"
        self._log_folder.mkdir(parents=True, exist_ok=True)
        self._environment = dict(os.environ) | {
            "LLMIS_NODE_NAME": self.node,
            "LLMIS_AGENT_PID": str(os.getpid()),
            "REDIS_URL": settings.redis_url,
            # Without it ggml starts a debugger at every abort.
            "GGML_NO_BACKTRACE": "1",
        }

    # -- list --------------------------------------------------------------------------------

    def all(self) -> list[ManagedReplica]:
        with self.lock:
            return list(self._replicas.values())

    def get(self, assignment_id: str) -> ManagedReplica | None:
        with self.lock:
            return self._replicas.get(assignment_id)

    def find(self, replica_id: str) -> ManagedReplica | None:
        return next((r for r in self.all() if r.assignment.replica_id == replica_id), None)

    def replicas_of(self, model: str, *, with_leaving: bool = False) -> list[ManagedReplica]:
        """The replicas that run or restart, and those that are stopping if asked for."""
        return [r for r in self.all() if r.model == model and (with_leaving or not r.is_stopping)]

    def wait_for_exit(self, timeout_s: float) -> None:
        """Return when a process has ended whose end is not handled yet, or after the timeout."""
        poll = select.poll()
        with self.lock:
            for replica in self._replicas.values():
                if replica.exit_fd is not None:
                    poll.register(replica.exit_fd, select.POLLIN)
        poll.poll(1000 * timeout_s)

    def refresh(self) -> None:
        """Read the records of the replicas. Raises redis.RedisError."""
        records = {record.id: record for record in read(self.client)}
        for replica in self.all():
            replica.observe(records.get(replica.assignment.replica_id))

    # -- start -------------------------------------------------------------------------------

    def start(self, spec: ModelSpec, memory_bytes: int) -> ManagedReplica:
        """Promise memory to a new replica and start its process. Raises ModelFailed."""
        assignment = Assignment(
            id=f"{spec.name}@{self.node}-{uuid.uuid4().hex[:6]}",
            node=self.node,
            spec=spec,
            memory_bytes=memory_bytes,
        )
        with self.lock:
            replica = ManagedReplica(assignment, self.log_path(spec.name))
            try:
                replica.log_path.unlink(missing_ok=True)
                self.launch(replica)
            except (OSError, redis.RedisError) as exc:
                raise ModelFailed(f"The replica could not be started: {exc}") from exc
            self.add(replica)
        return replica

    def add(self, replica: ManagedReplica) -> None:
        with self.lock:
            self._replicas[replica.id] = replica

    def launch(self, replica: ManagedReplica) -> None:
        """Start the replica's process. Raises OSError, redis.RedisError."""
        assignment = replica.renewed()
        # Before the process: it reads the assignment, and a later agent finds it.
        self._write_assignment(assignment)
        replica.start(assignment, self._environment)

    # -- stop --------------------------------------------------------------------------------

    def stop(self, replica: ManagedReplica, order: StopOrder) -> None:
        """Begin to stop a replica for good, or sooner than an earlier order said. It has stopped
        when `get` returns None. Raises redis.RedisError."""
        try:
            # Before the signal: the replica reads the order when the signal comes.
            key = names.stop_key(replica.assignment.replica_id)
            ttl_s = int(order.grace_s) + _STOP_ORDER_MARGIN_S
            self.client.set(key, codec.encode(order), ex=ttl_s)
            self.client.hdel(self.assignments_key, replica.id)
        finally:
            with self.lock:
                replica.stop(order.grace_s)

    def evict(self, replica: ManagedReplica) -> None:
        """Stop an idle replica. A job that it took in this moment runs to its end."""
        grace_s = self.settings.request_timeout_s
        self.stop(replica, StopOrder(grace_s, "The model was unloaded.", hands_over=True))

    def recover_jobs(self, replica_id: str) -> None:
        """Requeue the jobs of a process that has ended. Raises redis.RedisError."""
        # The record first: from here on, no reader of the registry counts on the replica.
        withdraw(self.client, replica_id)
        recover_jobs(self.client, self.queue, replica_id)

    def remove(self, replica: ManagedReplica) -> None:
        """Forget a replica whose process has ended for good."""
        with self.lock:
            replica.forget_exit()
            self._replicas.pop(replica.id, None)

    def abandon(self, replica: ManagedReplica, retry_s: float) -> None:
        """Remove a replica that failed too often; requests load its model after `retry_s`."""
        self.client.hdel(self.assignments_key, replica.id)
        self.remove(replica)
        self.note_failure(replica.assignment.spec, ModelFailed(replica.error), retry_s)

    def note_failure(self, spec: ModelSpec, error: LlmisError, retry_s: float) -> None:
        """Keep the reason why a model is not served, for requests that name it. For a model that
        is neither configured nor loaded, only its load reports the reason."""
        if spec.is_configured or self.client.hexists(names.MODELS, spec.name):
            failure = codec.encode(operations.failure_of(error, retry_s))
            self.client.hset(names.FAILURES, spec.name, failure)

    def stop_all(self) -> None:
        """Stop all replicas and wait for their ends.

        The assignments of models that were loaded at run time stay: the next agent loads them
        again. Works without Redis: then the assignments of configured models stay, too.
        """
        replicas = self.all()
        for replica in replicas:
            with self.lock:
                replica.stop(self.settings.drain_grace_s)
        configured = [r.id for r in replicas if r.assignment.spec.is_configured]
        try:
            if configured:
                self.client.hdel(self.assignments_key, *configured)
        except redis.RedisError as exc:
            _log.warning("assignments are kept, Redis does not answer: %s", exc)
        while any(replica.is_alive for replica in replicas):
            for replica in replicas:
                replica.kill_if_late()
            time.sleep(_POLL_S)
        try:
            for replica in replicas:
                self.recover_jobs(replica.assignment.replica_id)
        except redis.RedisError as exc:
            _log.warning("jobs were not requeued, Redis does not answer: %s", exc)

    def rewrite_assignments(self) -> None:
        """Write all assignments again: a restarted Redis may have lost its last second, and the
        next agent stops a replica without an assignment."""
        with self.lock:
            for replica in self._replicas.values():
                if not replica.is_stopping:
                    self._write_assignment(replica.assignment)

    def _write_assignment(self, assignment: Assignment) -> None:
        self.client.hset(self.assignments_key, assignment.id, codec.encode(assignment))

    # -- memory ------------------------------------------------------------------------------

    def limits(self, on: list[DeviceMemory]) -> MemoryLimits:
        """The limits that hold for a replica on these devices."""
        settings = self.settings
        is_ram = any(device.id == RAM for device in on)
        return MemoryLimits(
            available_bytes=sum(device.available_bytes for device in on),
            memory_limit_bytes=settings.memory_limit_bytes if is_ram else 0,
            reserve_bytes=settings.memory_reserve_bytes * len(on),
            max_occupants=settings.max_loaded_models,
        )

    def occupants(self) -> list[Occupant]:
        """The replicas as placement sees them. Raises redis.RedisError."""
        used_at = read_used_at(self.client)
        return [self._occupant(replica, self.used_at(replica, used_at)) for replica in self.all()]

    def occupants_beside(
        self, spec: ModelSpec, occupants: list[Occupant], present: list[DeviceMemory]
    ) -> list[Occupant]:
        """The occupants as a new model sees them: on other devices they take no memory, but they
        still count towards `max_loaded_models`."""
        specs = {replica.id: replica.assignment.spec for replica in self.all()}
        return [
            occupant
            if occupant.id in specs and share_device(spec, specs[occupant.id], present)
            else replace(occupant, estimated_bytes=0, resident_bytes=0, mapped_bytes=0)
            for occupant in occupants
        ]

    def _occupant(self, replica: ManagedReplica, used_at: float) -> Occupant:
        return Occupant(
            id=replica.id,
            path=replica.assignment.spec.path,
            estimated_bytes=replica.assignment.memory_bytes,
            resident_bytes=replica.held_bytes,
            mapped_bytes=replica.mapped_bytes,
            is_leaving=replica.is_stopping,
            is_evictable=(
                _ready_for_s(replica) >= self.settings.min_residence_s and self.is_idle(replica)
            ),
            is_pinned=replica.assignment.spec.pin,
            used_at=used_at,
        )

    def used_at(self, replica: ManagedReplica, used_at: dict[str, float]) -> float:
        """Unix time at which a replica was last used, from the last requests of the models.

        Becoming ready counts as use, and so does every moment of a long answer.
        """
        ready_at = clock.now() - _ready_for_s(replica)
        return max(used_at.get(replica.model, 0.0), ready_at, replica.busy_at)

    def is_idle(self, replica: ManagedReplica) -> bool:
        """Whether no request would notice its stop. Raises redis.RedisError."""
        return (
            replica.is_ready
            and not replica.is_stopping
            and not replica.assignment.spec.pin
            and not replica.is_busy
            and self.queue_length(replica.model) == 0
        )

    def queue_length(self, model: str) -> int:
        """Jobs that wait for the model. Raises redis.RedisError."""
        pipe = self.client.pipeline(transaction=False)
        for key in names.priority_lists(model):
            pipe.llen(key)
        return sum(pipe.execute())

    def rotate_logs(self) -> None:
        """Raises OSError."""
        for replica in self.all():
            log_files.rotate(replica.log_path, self.settings)

    def log_path(self, model: str) -> Path:
        """A free `replica-<model>.log`; numbered from the second replica of a model on."""
        taken = {replica.log_path for replica in self._replicas.values()}
        path = self._log_folder / f"replica-{model}.log"
        count = 1
        while path in taken:
            count += 1
            path = path.with_name(f"replica-{model}-{count}.log")
        return path


def _ready_for_s(replica: ManagedReplica) -> float:
    now = time.monotonic()
    return now - (replica.ready_at or now)
