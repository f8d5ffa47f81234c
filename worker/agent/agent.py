"""The agent: keeps the replicas of one node running and tells the registry of the node.

One watch thread looks after the processes, writes the node's record and lets idle models go.
The threads of the operations (`loading.py`, `unloading.py`) act on the same `Fleet`.
"""

import logging
import os
import platform
import signal
import threading
import time
from importlib.metadata import version

import redis

from shared import lifecycle, names, registry
from shared.errors import SettingsError
from shared.lifecycle import Device, ModelSpec, NodeRecord
from shared.rescue import Rescuer
from shared.settings import Settings
from shared.version import VERSION
from worker.agent import packaged_weights
from worker.agent.devices import GPU_ENGINES, RAM, devices
from worker.agent.fleet import Fleet
from worker.agent.managed_replica import ManagedReplica
from worker.agent.room import free_bytes

_log = logging.getLogger(__name__)
_WATCH_S = 0.2
_PULSE_S = 0.03
"""How often it is looked whether the processes are there: clients wait for what a dead one had."""
_NO_PULSE_S = 15.0
"""A replica that was ready and has had no record for so long hangs."""
_BLIND_S = 3.0
"""So long after its own last record an agent does not trust that others could write theirs."""
_FAILED_RETRY_S = 60.0
"""After a model was given up, requests do not load it again for so long."""


class Agent:
    def __init__(self, settings: Settings, client: "redis.Redis") -> None:
        self.settings = settings
        self.client = client
        self.node = settings.node
        self.fleet = Fleet(settings, client)
        self._rescuer = Rescuer(client, self.fleet.queue)
        self._started_at = time.time()
        self._dead: list[ModelSpec] = []
        """Models of replicas that died with the agent before this one, an entry each."""
        self._breaks_off = threading.Event()
        self.is_restarting = False
        """The process is replaced by another: its replicas stay."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch_forever, name="watch", daemon=True)
        self._watched_at = 0.0
        self._beat_at = 0.0
        """Monotonic time at which the node's record was written last."""

    # -- life --------------------------------------------------------------------------------

    def start(self) -> None:
        """Take the node's name, find what an earlier agent left, and begin to watch.

        Raises SettingsError when another agent has the name, redis.RedisError.
        """
        self.settings.models_path.mkdir(parents=True, exist_ok=True)
        packaged_weights.remove_partials(self.settings.models_path)
        self._take_the_name()
        self._dead = self.fleet.take_over()
        self._announce()
        self._thread.start()

    def _take_the_name(self) -> None:
        """One agent a node. The record of one that was killed expires. Raises SettingsError."""
        deadline = time.monotonic() + registry.RECORD_TTL_S + registry.BEAT_S
        key, record = names.node_key(self.node), lifecycle.encode(self._record())
        while not self.client.set(key, record, nx=True, ex=registry.RECORD_TTL_S):
            if time.monotonic() > deadline:
                raise SettingsError(
                    f"node_name: another agent is running under the name {self.node!r}. Stop it, "
                    "or set LLMIS_NODE_NAME on one of the hosts."
                )
            time.sleep(_WATCH_S)

    @property
    def is_stopping(self) -> bool:
        """Whether operations are to be broken off."""
        return self._breaks_off.is_set()

    def begin_stop(self) -> None:
        """From now on operations are broken off. `stop` comes next."""
        self._breaks_off.set()

    def stop(self) -> None:
        """Stop all replicas, or leave them to the next agent, and leave the registry."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        if not self.is_restarting:
            self.fleet.stop_all()
        try:
            registry.withdraw_node(self.client, self.node)
        except redis.RedisError as exc:
            _log.warning("could not withdraw from the registry, the record expires: %s", exc)

    def dead_models(self) -> dict[str, tuple[ModelSpec, int]]:
        """What is to be loaded again after the end of an earlier agent: name → spec, as the
        settings have it now or as it was loaded, and how many replicas died."""
        wanted: dict[str, tuple[ModelSpec, int]] = {}
        for spec in self._dead:
            configured = self.settings.model(spec.name)
            if configured is not None:
                spec = lifecycle.spec_of(self.settings, configured)
            elif not self.client.hexists(names.MODELS, spec.name):
                continue
            _, count = wanted.get(spec.name, (spec, 0))
            wanted[spec.name] = (spec, count + 1)
        return wanted

    # -- watching ----------------------------------------------------------------------------

    def _watch_forever(self) -> None:
        while not self._stop.wait(_PULSE_S):
            is_due = time.monotonic() - self._watched_at >= _WATCH_S
            try:
                if is_due or self.fleet.has_lost_one():
                    self._watch()
            except redis.RedisError as exc:
                _log.warning("Redis does not answer: %s", exc)
            except Exception:
                # Without its watch the node would lose its replicas one by one: go on.
                _log.exception("the watch failed")

    def _watch(self) -> None:
        self.fleet.refresh()
        now = time.monotonic()
        was_blind, self._watched_at = now - self._beat_at > _BLIND_S, now
        for replica in self.fleet.all():
            if was_blind:
                # Redis was away, or took no writes: what was not seen is not therefore silent.
                replica.seen_at = now
            with self.fleet.lock:
                self._look_after(replica, now)
        if now - self._beat_at >= registry.BEAT_S:
            self._announce()
            self.fleet.rewrite_assignments()
            self._rescuer.look()
            self._unload_idle()

    def _look_after(self, replica: ManagedReplica, now: float) -> None:
        if replica.is_stopping:
            if not replica.is_alive:
                self.fleet.bury(replica.assignment.replica_id)
                self.fleet.drop(replica)
            else:
                replica.kill_if_late()
        elif replica.restart_at is not None:
            if now >= replica.restart_at:
                self.fleet.launch(replica)
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
        elif record is not None and record.is_stalled(settings.stall_timeout_s):
            return (
                f"it had jobs and made no progress: no step for {record.step_age_s:.0f} s, "
                f"nothing published for {record.publish_age_s:.0f} s (stall_timeout_s)"
            )
        return ""

    def _on_death(self, replica: ManagedReplica, reason: str = "") -> None:
        self.fleet.bury(replica.assignment.replica_id)
        replica.fail(reason)
        fields = {"model": replica.model, "replica": replica.assignment.replica_id}
        if replica.is_given_up:
            _log.error("replica ended and is given up: %s", replica.error, extra=fields)
            self.fleet.give_up(replica, _FAILED_RETRY_S)
        else:
            _log.error("replica ended and is started again: %s", replica.error, extra=fields)

    def _announce(self) -> None:
        registry.announce_node(self.client, self._record())
        self._beat_at = time.monotonic()

    def _record(self) -> NodeRecord:
        replicas = self.fleet.all()
        return NodeRecord(
            id=self.node,
            pid=os.getpid(),
            versions={
                "llmis": VERSION,
                "python": platform.python_version(),
                "celery": version("celery"),
            },
            started_at=self._started_at,
            cpus=os.cpu_count() or 1,
            devices=self._devices(),
            promised_bytes=sum(replica.promised_bytes for replica in replicas),
            models=sorted({r.model for r in replicas if not r.is_stopping}),
        )

    def _devices(self) -> list[Device]:
        """The node's devices with what another replica could take on each."""
        there = devices()
        tenants = self.fleet.tenants()
        found = []
        for device in there:
            engine = "llamacpp" if device.id == RAM else GPU_ENGINES[0]
            probe = ModelSpec(name="probe", path="", engine=engine, device=device.id)
            beside = self.fleet.beside(probe, tenants, there)
            free = free_bytes(self.fleet.limits([device]), beside)
            promised = sum(max(0, one.estimated_bytes - one.resident_bytes) for one in beside)
            found.append(Device(device.id, device.name, device.total_bytes, free, promised))
        return found

    def _unload_idle(self) -> None:
        """Let models go whose time to live is over."""
        mortal = [replica for replica in self.fleet.all() if replica.assignment.spec.ttl_s]
        used_at = registry.read_used_at(self.client) if mortal else {}
        for replica in mortal:
            idle_s = time.time() - self.fleet.used_at(replica, used_at)
            if idle_s > replica.assignment.spec.ttl_s and self.fleet.is_idle(replica):
                _log.info("model unloaded, it was idle", extra={"model": replica.model})
                self.fleet.evict(replica)
