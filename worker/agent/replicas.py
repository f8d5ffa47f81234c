"""The replicas of one node: taken in, started, let go, and the room that they take.

Shared by the agent's watch thread and by the threads of its operations. `lock` guards the
replicas; nobody waits for a replica while holding it.
"""

import logging
import os
import threading
import time
import uuid
from dataclasses import replace
from pathlib import Path

import psutil
import redis

from shared import essential, lifecycle, names, operations, registry
from shared.errors import LlmisError, ModelFailed
from shared.job_queue import JobQueue
from shared.lifecycle import Assignment, ModelSpec, StopOrder
from shared.messages import DecodeError
from shared.rescue import rescue_jobs
from shared.settings import Settings
from worker.agent.devices import RAM, DeviceMemory, overlap
from worker.agent.managed_replica import ManagedReplica, find_processes
from worker.agent.room import Limits, Tenant

_log = logging.getLogger(__name__)


class Fleet:
    def __init__(self, settings: Settings, client: "redis.Redis") -> None:
        self.settings = settings
        self.client = client
        self.node = settings.node
        self.queue = JobQueue(client, int(settings.request_timeout_s) + settings.job_ttl_s)
        self.lock = threading.RLock()
        self._replicas: dict[str, ManagedReplica] = {}
        self._assignments_key = names.assignments_key(self.node)
        self._log_folder = settings.data_path / "logs"
        self._log_folder.mkdir(parents=True, exist_ok=True)
        self._environment = dict(os.environ) | {
            "LLMIS_NODE_NAME": self.node,
            "LLMIS_AGENT_PID": str(os.getpid()),
            "REDIS_URL": settings.redis_url,
            "GGML_NO_BACKTRACE": "1",  # would start a debugger at every abort
        }

    # -- who is there ------------------------------------------------------------------------

    def all(self) -> list[ManagedReplica]:
        with self.lock:
            return list(self._replicas.values())

    def get(self, assignment_id: str) -> ManagedReplica | None:
        with self.lock:
            return self._replicas.get(assignment_id)

    def find(self, replica_id: str) -> ManagedReplica | None:
        return next((r for r in self.all() if r.assignment.replica_id == replica_id), None)

    def replicas_of(self, model: str, *, with_leaving: bool = False) -> list[ManagedReplica]:
        """Those that run or come back; those on their way out only if asked for."""
        return [r for r in self.all() if r.model == model and (with_leaving or not r.is_stopping)]

    def has_lost_one(self) -> bool:
        """Whether a process has ended that nobody has seen to yet."""
        return any(r.process and r.restart_at is None and not r.is_alive for r in self.all())

    def refresh(self) -> None:
        """Read what the replicas say of themselves. Raises redis.RedisError."""
        records = {record.id: record for record in registry.read(self.client)}
        for replica in self.all():
            replica.observe(records.get(replica.assignment.replica_id))

    # -- coming ------------------------------------------------------------------------------

    def take_in(self, spec: ModelSpec, memory_bytes: int) -> ManagedReplica:
        """Promise memory to a new replica and start it. Raises ModelFailed."""
        assignment = Assignment(
            id=f"{spec.name}@{self.node}-{uuid.uuid4().hex[:6]}",
            node=self.node,
            spec=spec,
            memory_bytes=memory_bytes,
        )
        with self.lock:
            replica = ManagedReplica(assignment, self._log_path(spec.name))
            try:
                replica.log_path.unlink(missing_ok=True)
                self.launch(replica)
            except (OSError, redis.RedisError) as exc:
                raise ModelFailed(f"The replica could not be started: {exc}") from exc
            self._replicas[replica.id] = replica
        return replica

    def launch(self, replica: ManagedReplica) -> None:
        """Start its process. Raises OSError, redis.RedisError.

        The assignment first: the process reads it, and a later agent finds it.
        """
        assignment = replica.renewed()
        self._write_assignment(assignment)
        replica.start(assignment, self._environment)

    def take_over(self) -> list[ModelSpec]:
        """Adopt what an earlier agent of this node left; return the models of dead replicas."""
        processes = find_processes(self.node, self.settings.redis_url)
        dead: list[ModelSpec] = []
        for field, payload in self.client.hgetall(self._assignments_key).items():
            try:
                assignment = lifecycle.decode(payload, Assignment)
            except DecodeError as exc:
                _log.warning("an assignment is not readable and is dropped: %s", exc)
                assignment = None
            if assignment is None:
                self.client.hdel(self._assignments_key, field)
                continue
            process = processes.pop(assignment.id, None)
            if process is not None:
                self._adopt(assignment, process)
            else:
                self.client.hdel(self._assignments_key, assignment.id)
                self.bury(assignment.replica_id)
                dead.append(assignment.spec)
        for assignment_id, process in processes.items():
            self._adopt_leaving(assignment_id, process)
        return dead

    def _adopt(self, assignment: Assignment, process: psutil.Process) -> None:
        replica = ManagedReplica(assignment, self._log_path(assignment.spec.name))
        replica.adopt(process)
        self._replicas[replica.id] = replica
        spec = assignment.spec
        if not spec.is_configured:
            # Its load may have been in the middle when the agent died.
            self.client.hset(names.MODELS, spec.name, lifecycle.encode(spec))
        _log.info("replica adopted", extra={"replica": assignment.replica_id})

    def _adopt_leaving(self, assignment_id: str, process: psutil.Process) -> None:
        """A replica without an assignment was told to stop: see to it that it does."""
        try:
            replica_id = process.cmdline()[4]
        except (psutil.Error, IndexError):
            return  # it just has
        spec = ModelSpec(name=assignment_id.partition("@")[0], path="")
        assignment = Assignment(
            id=assignment_id, node=self.node, spec=spec, memory_bytes=0, replica_id=replica_id
        )
        replica = ManagedReplica(assignment, self._log_path(spec.name))
        replica.adopt(process)
        order = lifecycle.decode(self.client.get(names.stop_key(replica_id)), StopOrder)
        replica.stop(order.grace_s if order else self.settings.drain_grace_s)
        self._replicas[replica.id] = replica
        _log.warning("replica without an assignment is stopped: %s", assignment_id)

    # -- going -------------------------------------------------------------------------------

    def let_go(self, replica: ManagedReplica, order: StopOrder) -> None:
        """Stop a replica for good, or sooner than it was told before. It is gone when `get`
        does not find it any more."""
        try:
            key = names.stop_key(replica.assignment.replica_id)
            payload, ttl_s = lifecycle.encode(order), int(order.grace_s) + 60
            essential.write(self.client, "SET", key, payload, "EX", ttl_s)
            self.client.hdel(self._assignments_key, replica.id)
        finally:
            with self.lock:
                replica.stop(order.grace_s)

    def evict(self, replica: ManagedReplica) -> None:
        """Let an idle replica go. A job that came in at this moment runs to its end."""
        grace_s = self.settings.request_timeout_s
        self.let_go(replica, StopOrder(grace_s, "The model was unloaded.", hands_over=True))

    def bury(self, replica_id: str) -> None:
        """Its process has ended: others are to have its jobs. Raises redis.RedisError."""
        registry.withdraw(self.client, replica_id)
        rescue_jobs(self.client, self.queue, replica_id)

    def drop(self, replica: ManagedReplica) -> None:
        """Its process has ended for good."""
        with self.lock:
            self._replicas.pop(replica.id, None)

    def give_up(self, replica: ManagedReplica, retry_s: float) -> None:
        """It failed too often."""
        self.client.hdel(self._assignments_key, replica.id)
        self.drop(replica)
        self.note_failure(replica.assignment.spec, ModelFailed(replica.error), retry_s)

    def note_failure(self, spec: ModelSpec, error: LlmisError, retry_s: float) -> None:
        """Keep why a model is not there, for those who ask for it. One that was never there is
        the business of its load alone."""
        if spec.is_configured or self.client.hexists(names.MODELS, spec.name):
            failure = lifecycle.encode(operations.failure_of(error, retry_s))
            self.client.hset(names.FAILURES, spec.name, failure)

    def stop_all(self) -> None:
        """The node goes: all stop. What was loaded at run time comes back with the next agent.

        Needs no Redis: without one, the assignments of configured models stay, too.
        """
        replicas = self.all()
        for replica in replicas:
            with self.lock:
                replica.stop(self.settings.drain_grace_s)
        configured = [r.id for r in replicas if r.assignment.spec.is_configured]
        try:
            if configured:
                self.client.hdel(self._assignments_key, *configured)
        except redis.RedisError as exc:
            _log.warning("assignments stay, Redis does not answer: %s", exc)
        while any(replica.is_alive for replica in replicas):
            for replica in replicas:
                replica.kill_if_late()
            time.sleep(0.1)
        try:
            for replica in replicas:
                self.bury(replica.assignment.replica_id)
        except redis.RedisError as exc:
            _log.warning("jobs of replicas may have been left, Redis does not answer: %s", exc)

    def rewrite_assignments(self) -> None:
        """A Redis that lost its last second must not cost a replica its next agent."""
        with self.lock:
            for replica in self._replicas.values():
                if not replica.is_stopping:
                    self._write_assignment(replica.assignment)

    def _write_assignment(self, assignment: Assignment) -> None:
        payload = lifecycle.encode(assignment)
        essential.write(self.client, "HSET", self._assignments_key, assignment.id, payload)

    # -- room --------------------------------------------------------------------------------

    def limits(self, on: list[DeviceMemory]) -> Limits:
        """What binds a replica on these devices."""
        settings = self.settings
        is_ram = any(device.id == RAM for device in on)
        return Limits(
            sum(device.available_bytes for device in on),
            settings.memory_limit_bytes if is_ram else 0,
            settings.memory_reserve_bytes * len(on),
            settings.max_loaded_models,
        )

    def tenants(self) -> list[Tenant]:
        """Who is here. Raises redis.RedisError."""
        used_at = registry.read_used_at(self.client)
        return [self._tenant(replica, self.used_at(replica, used_at)) for replica in self.all()]

    def beside(
        self, spec: ModelSpec, tenants: list[Tenant], there: list[DeviceMemory]
    ) -> list[Tenant]:
        """The tenants as seen by a model: who takes room elsewhere counts as a head only."""
        specs = {replica.id: replica.assignment.spec for replica in self.all()}
        return [
            tenant
            if tenant.id in specs and overlap(spec, specs[tenant.id], there)
            else replace(tenant, estimated_bytes=0, resident_bytes=0, mapped_bytes=0)
            for tenant in tenants
        ]

    def _tenant(self, replica: ManagedReplica, used_at: float) -> Tenant:
        return Tenant(
            id=replica.id,
            path=replica.assignment.spec.path,
            estimated_bytes=replica.assignment.memory_bytes,
            resident_bytes=replica.held_bytes,
            mapped_bytes=replica.mapped_bytes,
            is_leaving=replica.is_stopping,
            is_evictable=_resident_s(replica) >= self.settings.min_residence_s
            and self.is_idle(replica),
            is_pinned=replica.assignment.spec.pin,
            used_at=used_at,
        )

    def used_at(self, replica: ManagedReplica, used_at: dict[str, float]) -> float:
        """Unix time at which a replica was of use last, by the last requests of the models.

        Who has just come was wanted just now; a long answer is use to its end.
        """
        came_at = time.time() - _resident_s(replica)
        return max(used_at.get(replica.model, 0.0), came_at, replica.busy_at)

    def is_idle(self, replica: ManagedReplica) -> bool:
        """Whether it could go without anybody noticing."""
        return (
            replica.is_ready
            and not replica.is_stopping
            and not replica.assignment.spec.pin
            and not replica.is_busy
            and self.queue_length(replica.model) == 0
        )

    def queue_length(self, model: str) -> int:
        pipe = self.client.pipeline(transaction=False)
        for key in names.priority_lists(model):
            pipe.llen(key)
        return sum(pipe.execute())

    def _log_path(self, model: str) -> Path:
        """`replica-<model>.log`, with a number for the second replica of a model and so on."""
        taken = {replica.log_path for replica in self._replicas.values()}
        path = self._log_folder / f"replica-{model}.log"
        count = 1
        while path in taken:
            count += 1
            path = path.with_name(f"replica-{model}-{count}.log")
        return path


def _resident_s(replica: ManagedReplica) -> float:
    now = time.monotonic()
    return now - (replica.ready_at or now)
