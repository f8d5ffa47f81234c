"""The agent: keeps the replicas of one node running and writes the node's registry record.

One watch thread restarts failed processes, writes the record and stops idle models. The threads
of the operations (`load.py`, `unload.py`) act on the same `Replicas`.
"""

import logging
import os
import platform
import signal
import threading
import time
from importlib.metadata import version

import redis

from shared import model_spec, names
from shared.clock import clock
from shared.errors import SettingsError
from shared.model_spec import ModelSpec
from shared.periodic import run_periodically, run_step
from shared.queue.lost_messages import LostMessages
from shared.queue.recovery import JobRecovery
from shared.registry import records
from shared.registry.records import BEAT_S, RECORD_TTL_S
from shared.settings.fields import Settings
from shared.version import VERSION
from shared.wire import codec
from shared.wire.records import Device, NodeRecord
from worker.agent.adoption import adopt_replicas
from worker.agent.devices import GPU_ENGINES, RAM, devices
from worker.agent.managed_replica import ManagedReplica
from worker.agent.model_files import packaged
from worker.agent.placement import free_bytes
from worker.agent.replicas import Replicas

_log = logging.getLogger(__name__)
_LOADING_S = 0.2
"""How often the replicas are checked while one of them loads; else with every beat."""
_PAUSE_S = 0.03
"""Between two checks: an end whose handling failed is there at once again."""
_NO_RECORD_S = 15.0
"""A replica that was ready and has had no record for this long hangs."""
_BLIND_S = 3.0
"""If the agent's own last record is older, Redis was away: missing records prove nothing."""
_ROTATION_S = 2.0
_FAILED_RETRY_S = 60.0
"""After a model was given up, no request loads it again for this long."""
_VERSIONS = {"llmis": VERSION, "python": platform.python_version(), "celery": version("celery")}


class Agent:
    def __init__(self, settings: Settings, client: "redis.Redis") -> None:
        self.settings = settings
        self.client = client
        self.node = settings.node
        self.replicas = Replicas(settings, client)
        self._recovery = JobRecovery(client, self.replicas.queue)
        self._lost_messages = LostMessages(client, self.replicas.queue)
        self._started_at = clock.now()
        self._dead: list[ModelSpec] = []
        """Models of replicas that died with the previous agent, one entry per replica."""
        self._stopping = threading.Event()
        self.is_restarting = False
        """The program starts anew in this process: the replicas keep running."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch_forever, name="watch", daemon=True)
        self._beat_at = 0.0
        """Monotonic time at which the node's record was written last."""

    # -- start and stop ----------------------------------------------------------------------

    def start(self) -> None:
        """Claim the node's name, adopt the replicas of an earlier agent, and begin to watch.

        Raises SettingsError when another agent has the name, redis.RedisError.
        """
        self.settings.models_path.mkdir(parents=True, exist_ok=True)
        packaged.remove_partials(self.settings.models_path)
        self._claim_name()
        self._dead = adopt_replicas(self.replicas)
        self._announce()
        self._thread.start()
        # A thread of its own: a large copy must not delay the watch.
        rotation = (self.replicas.rotate_logs, _ROTATION_S, "the rotation of logs")
        threading.Thread(target=run_periodically, args=rotation, name="logs", daemon=True).start()

    def _claim_name(self) -> None:
        """Make sure that this is the node's only agent. Raises SettingsError."""
        # The record of a killed agent expires within its TTL; a beat more is slack.
        deadline = time.monotonic() + RECORD_TTL_S + BEAT_S
        key, record = names.node_key(self.node), codec.encode(self._record())
        while not self.client.set(key, record, nx=True, ex=RECORD_TTL_S):
            if time.monotonic() > deadline:
                raise SettingsError(
                    f"node_name: another agent is running under the name {self.node!r}. Stop it, "
                    "or set LLMIS_NODE_NAME on one of the hosts."
                )
            time.sleep(_LOADING_S)

    @property
    def is_stopping(self) -> bool:
        """Whether operations have to end early."""
        return self._stopping.is_set()

    def begin_stop(self) -> None:
        """Make the operations end early. `stop` follows."""
        self._stopping.set()

    def stop(self) -> None:
        """Stop all replicas, unless the agent restarts, and withdraw from the registry."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        if not self.is_restarting:
            self.replicas.stop_all()
        try:
            records.withdraw_node(self.client, self.node)
        except redis.RedisError as exc:
            _log.warning("cannot withdraw from the registry, the record expires by itself: %s", exc)

    def dead_models(self) -> dict[str, tuple[ModelSpec, int]]:
        """The models to load again, with their numbers of dead replicas, by name. A configured
        model gets its present settings; one that was unloaded in the meantime is left out."""
        wanted: dict[str, tuple[ModelSpec, int]] = {}
        for spec in self._dead:
            configured = self.settings.model(spec.name)
            if configured is not None:
                spec = model_spec.spec_of(self.settings, configured)
            elif not self.client.hexists(names.MODELS, spec.name):
                continue
            _, count = wanted.get(spec.name, (spec, 0))
            wanted[spec.name] = (spec, count + 1)
        return wanted

    # -- watch -------------------------------------------------------------------------------

    def _watch_forever(self) -> None:
        while not self._stop.wait(_PAUSE_S):
            # Clients wait for the jobs of a replica that has died: its end is handled at once.
            is_loading = any(replica.ready_at is None for replica in self.replicas.all())
            self.replicas.wait_for_exit(_LOADING_S if is_loading else BEAT_S)
            try:
                run_step(self._watch, "the watch", let_through=redis.RedisError)
            except redis.RedisError as exc:
                _log.warning("Redis does not answer: %s", exc)

    def _watch(self) -> None:
        self.replicas.refresh()
        now = time.monotonic()
        was_blind = now - self._beat_at > _BLIND_S
        for replica in self.replicas.all():
            if was_blind:
                # Redis was away or refused writes: a missing record is no sign of a hang.
                replica.seen_at = now
            with self.replicas.lock:
                self._check(replica, now)
        if now - self._beat_at >= BEAT_S:
            self._announce()
            self.replicas.rewrite_assignments()
            self._recovery.check()
            self._lost_messages.check()
            self._unload_idle()

    def _check(self, replica: ManagedReplica, now: float) -> None:
        """Act on the state of one replica: recover, restart, kill or give up."""
        if replica.is_stopping:
            if not replica.is_alive:
                self.replicas.recover_jobs(replica.assignment.replica_id)
                self.replicas.remove(replica)
            else:
                replica.kill_if_late()
        elif replica.restart_at is not None:
            if now >= replica.restart_at:
                self.replicas.launch(replica)
        elif not replica.is_alive:
            self._on_death(replica)
        elif reason := self._hang_reason(replica, now):
            replica.send(signal.SIGKILL)
            self._on_death(replica, reason)

    def _hang_reason(self, replica: ManagedReplica, now: float) -> str:
        """Why a running process has to be killed; empty if it is in order."""
        settings, record = self.settings, replica.record
        if replica.ready_at is None:
            if now - replica.started_at > settings.load_timeout_s:
                return f"it was not ready after {settings.load_timeout_s:g} s (load_timeout_s)"
        elif now - replica.seen_at > _NO_RECORD_S:
            return f"it has written no record for {_NO_RECORD_S:g} s"
        elif record is not None and record.is_stalled(settings.stall_timeout_s):
            return (
                f"it had jobs and made no progress: no step for {record.step_age_s:.0f} s, "
                f"nothing published for {record.publish_age_s:.0f} s (stall_timeout_s)"
            )
        return ""

    def _on_death(self, replica: ManagedReplica, reason: str = "") -> None:
        self.replicas.recover_jobs(replica.assignment.replica_id)
        replica.fail(reason)
        fields = {"model": replica.model, "replica": replica.assignment.replica_id}
        if replica.is_given_up:
            _log.error("replica ended and is given up: %s", replica.error, extra=fields)
            self.replicas.abandon(replica, _FAILED_RETRY_S)
        else:
            _log.error("replica ended and is started again: %s", replica.error, extra=fields)

    def _announce(self) -> None:
        clock.measure(self.client)
        records.announce_node(self.client, self._record())
        self._beat_at = time.monotonic()

    def _record(self) -> NodeRecord:
        replicas = self.replicas.all()
        return NodeRecord(
            id=self.node,
            pid=os.getpid(),
            versions=_VERSIONS,
            started_at=self._started_at,
            clock_ahead_s=round(clock.host_ahead_s, 2),
            cpus=os.cpu_count() or 1,
            devices=self._devices(),
            promised_bytes=sum(replica.promised_bytes for replica in replicas),
            models=sorted({r.model for r in replicas if not r.is_stopping}),
        )

    def _devices(self) -> list[Device]:
        """The node's devices with the memory that another replica could take on each."""
        present = devices()
        occupants = self.replicas.occupants()
        found = []
        for device in present:
            engine = "llamacpp" if device.id == RAM else GPU_ENGINES[0]
            probe = ModelSpec(name="probe", path="", engine=engine, device=device.id)
            visible = self.replicas.occupants_beside(probe, occupants, present)
            free = free_bytes(self.replicas.limits([device]), visible)
            promised = sum(max(0, one.estimated_bytes - one.resident_bytes) for one in visible)
            found.append(Device(device.id, device.name, device.total_bytes, free, promised))
        return found

    def _unload_idle(self) -> None:
        """Stop replicas that had no request for the model's `ttl_s`."""
        limited = [replica for replica in self.replicas.all() if replica.assignment.spec.ttl_s]
        used_at = records.read_used_at(self.client) if limited else {}
        for replica in limited:
            idle_s = clock.now() - self.replicas.used_at(replica, used_at)
            if idle_s > replica.assignment.spec.ttl_s and self.replicas.is_idle(replica):
                _log.info("model unloaded, it was idle", extra={"model": replica.model})
                self.replicas.evict(replica)
