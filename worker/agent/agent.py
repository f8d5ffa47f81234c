"""The agent: keeps the replicas of one node running, and takes in and lets go of models.

Threads: Celery's task threads call `load` and `unload` and wait there; one watch thread looks
after the processes, writes the node's record and lets idle models go. `_lock` guards the
replicas; nothing waits while it holds the lock.
"""

import logging
import os
import platform
import signal
import threading
import time
import uuid
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import redis

from shared import lifecycle, names, operations, registry
from shared.errors import Conflict, LlmisError, ModelFailed
from shared.lifecycle import (
    Assignment,
    Device,
    ModelSpec,
    NodeRecord,
    StopOrder,
)
from shared.messages import DecodeError, ReplicaRecord
from shared.settings import Settings
from shared.version import VERSION
from worker.agent import packaged_weights
from worker.agent.managed_replica import ManagedReplica, find_processes
from worker.agent.memory import host_memory
from worker.agent.room import Limits, Tenant, free_bytes

_log = logging.getLogger(__name__)
_WATCH_S = 0.2
_NO_PULSE_S = 15.0
"""A replica that was ready and has had no record for so long hangs."""
_BLIND_S = 3.0
"""Time between two looks at the registry that means that it could not be read."""
_FAILED_RETRY_S = 60.0
"""After a model was given up, requests do not load it again for so long."""


class Agent:
    def __init__(self, settings: Settings, client: "redis.Redis") -> None:
        self.settings = settings
        self.client = client
        self.node = settings.node
        self._id = f"{self.node}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        self._started_at = time.time()
        self._environment = dict(os.environ) | {
            "LLMIS_NODE_NAME": self.node,
            "GGML_NO_BACKTRACE": "1",  # would start a debugger at every abort
            "REDIS_URL": settings.redis_url,
        }
        self._lock = threading.RLock()
        self._replicas: dict[str, ManagedReplica] = {}
        self._lost: list[ModelSpec] = []
        """Of replicas that were assigned to this node and are dead, one entry each."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch_forever, name="watch", daemon=True)
        self._beat_at = self._watched_at = 0.0

    # -- life --------------------------------------------------------------------------------

    def start(self) -> None:
        """Find what an earlier agent of this node left, and begin to watch.

        Raises Conflict when another agent of the same name is alive, redis.RedisError.
        """
        self.settings.models_path.mkdir(parents=True, exist_ok=True)
        self._log_folder.mkdir(parents=True, exist_ok=True)
        packaged_weights.remove_partials(self.settings.models_path)
        self._take_over()
        self._announce()
        self._thread.start()

    def stop(self) -> None:
        """Stop all replicas; those of models loaded at run time come back with the next agent."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        with self._lock:
            replicas = list(self._replicas.values())
            for replica in replicas:
                replica.stop(self.settings.drain_grace_s)
                if replica.assignment.spec.is_configured:
                    self._forget(replica)
        while any(replica.is_alive for replica in replicas):
            for replica in replicas:
                if time.monotonic() > replica.kill_at:
                    replica.send(signal.SIGKILL)
            time.sleep(_WATCH_S)
        try:
            registry.withdraw_node(self.client, self.node)
        except redis.RedisError as exc:
            _log.warning("could not withdraw from the registry, the record expires: %s", exc)

    def _take_over(self) -> None:
        """Adopt living replicas, note dead ones, stop those that nobody assigned."""
        processes = find_processes(self.node, self.settings.redis_url)
        for payload in self.client.hvals(names.assignments_key(self.node)):
            try:
                assignment = lifecycle.decode(payload, Assignment)
            except DecodeError as exc:
                _log.warning("an assignment is not readable and is dropped: %s", exc)
                continue
            assert assignment is not None, "hash values are never None"
            process = processes.pop(assignment.id, None)
            replica = ManagedReplica(assignment, self._log_path(assignment.spec.name))
            if process is not None:
                replica.adopt(process)
                if not assignment.spec.is_configured:
                    # Its load may have been in the middle.
                    self.client.hset(
                        names.MODELS, assignment.spec.name, lifecycle.encode(assignment.spec)
                    )
                _log.info("replica adopted", extra={"replica": assignment.replica_id})
                self._replicas[replica.id] = replica
            else:
                self._forget(replica)
                self._lost.append(assignment.spec)
        for assignment_id, process in processes.items():
            self._take_over_leaving(assignment_id, process)

    def _take_over_leaving(self, assignment_id: str, process: psutil.Process) -> None:
        """A replica without an assignment was told to stop: see to it that it does."""
        replica_id = process.cmdline()[4]
        order = lifecycle.decode(self.client.get(names.stop_key(replica_id)), StopOrder)
        spec = ModelSpec(name=assignment_id.partition("@")[0], path="")
        assignment = Assignment(
            id=assignment_id, node=self.node, spec=spec, memory_bytes=0, replica_id=replica_id
        )
        replica = ManagedReplica(assignment, self._log_path(spec.name))
        replica.adopt(process)
        replica.stop(order.grace_s if order else self.settings.drain_grace_s)
        self._replicas[replica.id] = replica
        _log.warning("replica without an assignment is stopped: %s", assignment_id)

    def num_lost(self, model: str) -> int:
        return sum(spec.name == model for spec in self._lost)

    def lost_models(self) -> dict[str, ModelSpec]:
        """Models whose replicas died with an earlier agent and are to be loaded again: as the
        settings have them now, or as they were loaded."""
        lost: dict[str, ModelSpec] = {}
        for spec in self._lost:
            configured = self.settings.model(spec.name)
            if configured is not None:
                lost[spec.name] = lifecycle.spec_of(self.settings, configured)
            elif self.client.hexists(names.MODELS, spec.name):
                lost[spec.name] = spec
        return lost

    # -- replicas: for the operations --------------------------------------------------------

    @property
    def lock(self) -> threading.RLock:
        return self._lock

    def replicas_of(self, model: str) -> list[ManagedReplica]:
        """Those that run or come back, not those on their way out."""
        with self._lock:
            replicas = list(self._replicas.values())
        return [r for r in replicas if r.model == model and not r.is_stopping]

    def get(self, assignment_id: str) -> ManagedReplica | None:
        with self._lock:
            return self._replicas.get(assignment_id)

    def take_in(self, spec: ModelSpec, memory_bytes: int) -> ManagedReplica:
        """Promise memory to a new replica. `start_replica` comes next."""
        assignment = Assignment(
            id=f"{spec.name}@{self.node}-{uuid.uuid4().hex[:6]}",
            node=self.node,
            spec=spec,
            memory_bytes=memory_bytes,
        )
        with self._lock:
            replica = ManagedReplica(assignment, self._log_path(spec.name))
            replica.log_path.unlink(missing_ok=True)
            self._replicas[replica.id] = replica
        return replica

    def start_replica(self, replica: ManagedReplica) -> None:
        """Raises Conflict when it was let go meanwhile, ModelFailed when it cannot be started."""
        with self._lock:
            if replica.is_stopping:
                raise Conflict("The load was broken off: the model is being unloaded.")
            try:
                self._launch(replica)
            except (OSError, redis.RedisError) as exc:
                # Its promise must not outlive it.
                self._replicas.pop(replica.id, None)
                raise ModelFailed(f"The replica could not be started: {exc}") from exc

    def _launch(self, replica: ManagedReplica) -> None:
        """The assignment first: the process reads it, and a later agent finds it."""
        assignment = replica.renewed()
        key = names.assignments_key(self.node)
        self.client.hset(key, replica.id, lifecycle.encode(assignment))
        replica.start(assignment, self._environment)

    def let_go(self, replica: ManagedReplica, order: StopOrder) -> None:
        """Stop a replica for good. It is gone when `get` does not find it any more."""
        try:
            key = names.stop_key(replica.assignment.replica_id)
            self.client.set(key, lifecycle.encode(order), ex=int(order.grace_s) + 60)
            self._forget(replica)
        finally:
            with self._lock:
                replica.stop(order.grace_s)

    def _forget(self, replica: ManagedReplica) -> None:
        self.client.hdel(names.assignments_key(self.node), replica.id)

    # -- room --------------------------------------------------------------------------------

    def limits(self) -> Limits:
        settings = self.settings
        return Limits(
            host_memory().available_bytes,
            settings.memory_limit_bytes,
            settings.memory_reserve_bytes,
            settings.max_loaded_models,
        )

    def tenants(self) -> list[Tenant]:
        """Who takes room here. Raises redis.RedisError."""
        with self._lock:
            replicas = list(self._replicas.values())
        used_at = registry.read_used_at(self.client)
        return [self._tenant(replica, used_at.get(replica.model, 0.0)) for replica in replicas]

    def _tenant(self, replica: ManagedReplica, used_at: float) -> Tenant:
        resident_s = time.monotonic() - (replica.ready_at or time.monotonic())
        # Who has just come was wanted just now.
        used_at = max(used_at, time.time() - resident_s)
        return Tenant(
            id=replica.id,
            path=replica.assignment.spec.path,
            estimated_bytes=replica.assignment.memory_bytes,
            resident_bytes=replica.resident_bytes,
            mapped_bytes=replica.mapped_bytes,
            is_leaving=replica.is_stopping,
            is_evictable=(
                replica.is_ready
                and not replica.assignment.spec.pin
                and resident_s >= self.settings.min_residence_s
                and self._is_idle(replica)
            ),
            is_pinned=replica.assignment.spec.pin,
            used_at=used_at,
        )

    def _is_idle(self, replica: ManagedReplica) -> bool:
        return not replica.is_busy and self.queue_length(replica.model) == 0

    def queue_length(self, model: str) -> int:
        pipe = self.client.pipeline(transaction=False)
        for key in names.priority_lists(model):
            pipe.llen(key)
        return sum(pipe.execute())

    # -- watching ----------------------------------------------------------------------------

    def _watch_forever(self) -> None:
        while not self._stop.wait(_WATCH_S):
            try:
                self._watch()
            except redis.RedisError as exc:
                _log.warning("Redis does not answer: %s", exc)
            except Exception:
                # Without its watch the node would lose its replicas one by one: go on.
                _log.exception("the watch failed")

    def _watch(self) -> None:
        records = {record.id: record for record in registry.read(self.client)}
        now = time.monotonic()
        was_blind, self._watched_at = now - self._watched_at > _BLIND_S, now
        with self._lock:
            replicas = list(self._replicas.values())
        for replica in replicas:
            if was_blind:
                # Redis was away: what was not seen is not therefore silent.
                replica.seen_at = now
            self._observe(replica, records.get(replica.assignment.replica_id))
            with self._lock:
                self._look_after(replica)
        if time.monotonic() - self._beat_at >= registry.BEAT_S:
            self._announce()
            self._unload_idle()

    def _observe(self, replica: ManagedReplica, record: ReplicaRecord | None) -> None:
        now = time.monotonic()
        replica.record = record
        if record is not None:
            replica.seen_at = now
        if replica.is_ready and replica.ready_at is None:
            replica.ready_at = now
            _log.info(
                "replica ready",
                extra={
                    "replica": replica.assignment.replica_id,
                    "estimated_bytes": replica.assignment.memory_bytes,
                    "memory_bytes": replica.resident_bytes,
                },
            )

    def _look_after(self, replica: ManagedReplica) -> None:
        now = time.monotonic()
        if replica.is_stopping:
            if not replica.is_alive:
                registry.withdraw(self.client, replica.assignment.replica_id)
                self._replicas.pop(replica.id, None)
            elif now > replica.kill_at:
                replica.send(signal.SIGKILL)
        elif replica.restart_at is not None:
            if now >= replica.restart_at:
                self._launch(replica)
        elif replica.process is None:
            pass  # on its way: `start_replica` comes next
        elif not replica.is_alive:
            self._on_death(replica)
        elif reason := self._hang_of(replica, now):
            replica.send(signal.SIGKILL)
            self._on_death(replica, reason)

    def _hang_of(self, replica: ManagedReplica, now: float) -> str:
        """Why a living replica is of no use, or nothing."""
        settings, record = self.settings, replica.record
        if replica.ready_at is None:
            if now - replica.started_at > settings.load_timeout_s:
                return f"it was not ready after {settings.load_timeout_s:g} s (load_timeout_s)"
        elif now - replica.seen_at > _NO_PULSE_S:
            return f"it has not been heard of for {_NO_PULSE_S:g} s"
        elif record is not None and record.step_age_s > settings.stall_timeout_s:
            return f"its engine made no step for {record.step_age_s:.0f} s while jobs ran"
        return ""

    def _on_death(self, replica: ManagedReplica, reason: str = "") -> None:
        registry.withdraw(self.client, replica.assignment.replica_id)
        replica.fail(reason)
        fields = {"model": replica.model, "replica": replica.assignment.replica_id}
        if not replica.is_given_up:
            _log.error("replica ended and is started again: %s", replica.error, extra=fields)
            return
        _log.error("replica ended and is given up: %s", replica.error, extra=fields)
        self._forget(replica)
        self._replicas.pop(replica.id, None)
        self.note_failure(replica.assignment.spec, ModelFailed(replica.error), _FAILED_RETRY_S)

    def note_failure(self, spec: ModelSpec, error: LlmisError, retry_s: float) -> None:
        """Keep why a model is not there, for those who ask for it. One that was never there is
        the business of its load alone."""
        if spec.is_configured or self.client.hexists(names.MODELS, spec.name):
            failure = lifecycle.encode(operations.failure_of(error, retry_s))
            self.client.hset(names.FAILURES, spec.name, failure)

    def _announce(self) -> None:
        self._beat_at = time.monotonic()
        with self._lock:
            replicas = list(self._replicas.values())
        memory = host_memory()
        registry.announce_node(
            self.client,
            NodeRecord(
                id=self.node,
                agent_id=self._id,
                pid=os.getpid(),
                versions={"llmis": VERSION, "python": platform.python_version(),
                          "celery": version("celery"), "xllamacpp": version("xllamacpp")},
                started_at=self._started_at,
                cpus=os.cpu_count() or 1,
                devices=[
                    Device(
                        "cpu",
                        platform.processor() or platform.machine(),
                        memory.total_bytes,
                        free_bytes(self.limits(), self.tenants()),
                    )
                ],
                promised_bytes=sum(replica.promised_bytes for replica in replicas),
                models=sorted({r.model for r in replicas if not r.is_stopping}),
            ),
        )  # fmt: skip
        # A Redis that lost its last second must not cost a replica its next agent.
        with self._lock:
            kept: dict[Any, Any] = {
                replica.id: lifecycle.encode(replica.assignment)
                for replica in self._replicas.values()
                if not replica.is_stopping and replica.process is not None
            }
            if kept:
                self.client.hset(names.assignments_key(self.node), mapping=kept)

    def _unload_idle(self) -> None:
        """Let models go whose time to live is over."""
        now = time.time()
        for tenant in self.tenants():
            replica = self.get(tenant.id)
            if replica is None or not tenant.is_evictable or replica.ready_at is None:
                continue
            ttl_s = replica.assignment.spec.ttl_s
            ready_s = time.monotonic() - replica.ready_at
            if ttl_s and ready_s > ttl_s and now - tenant.used_at > ttl_s:
                _log.info("model unloaded, it was idle", extra={"model": replica.model})
                self.evict(replica)

    def evict(self, replica: ManagedReplica) -> None:
        """Let an idle replica go. A job that came in at this moment runs to its end."""
        grace_s = self.settings.request_timeout_s
        self.let_go(replica, StopOrder(grace_s, "The model was unloaded."))

    # -- small parts -------------------------------------------------------------------------

    @property
    def is_stopping(self) -> bool:
        return self._stop.is_set()

    def begin_stop(self) -> None:
        """From now on operations are broken off. `stop` comes next."""
        self._stop.set()

    @property
    def _log_folder(self) -> Path:
        return self.settings.data_path / "logs"

    def _log_path(self, model: str) -> Path:
        """`replica-<model>.log`, with a number for the second replica of a model and so on."""
        taken = {replica.log_path for replica in self._replicas.values()}
        path = self._log_folder / f"replica-{model}.log"
        count = 1
        while path in taken:
            count += 1
            path = path.with_name(f"replica-{model}-{count}.log")
        return path
