"""One load or unload, for the agent that runs it: its lock, its progress and its end.

See `shared.registry.operations` for what an operation is.
"""

import redis

from shared import names
from shared.model_spec import ModelSpec
from shared.redis.connection import payload_bytes
from shared.redis.scripts import script_text
from shared.registry.operations import LOCK_TTL_S, UNDER_WAY, append
from shared.wire import codec
from shared.wire.operations import STAGES, Failure, OperationKind, OperationProgress, OperationState

_DONE = {OperationKind.LOAD: OperationState.READY, OperationKind.UNLOAD: OperationState.UNLOADED}
"""Kind → the state when it has succeeded."""

_REMEMBER = script_text("remember")
_UNLOCK = script_text("unlock")


class RunningOperation:
    """Its methods raise redis.RedisError."""

    def __init__(
        self, client: "redis.Redis", kind: OperationKind, operation_id: str, model: str
    ) -> None:
        self._client = client
        self._lock_key = names.operation_lock_key(kind, model)
        self.id = operation_id
        self.kind = kind
        self.model = model

    def renew(self) -> bool:
        """Renew the lock; False when it is gone, or another operation's."""
        holder = self._client.get(self._lock_key)
        if holder is None or payload_bytes(holder).decode() != self.id:
            return False
        pipe = self._client.pipeline(transaction=False)
        pipe.expire(self._lock_key, LOCK_TTL_S)
        pipe.sadd(names.OPERATIONS_IN_FLIGHT, f"{self.kind}:{self.model}")
        pipe.execute()
        return True

    def report(self, stage: str, fraction: float | None = None, message: str = "") -> None:
        """Append a progress event. `fraction`: 0 to 1; None = the beginning of the stage."""
        at = STAGES.get(stage, 0.0) if fraction is None else fraction
        self._append(UNDER_WAY[self.kind], stage, at, message)

    def finish(self) -> None:
        """Append the event of success and free the lock."""
        state = _DONE[self.kind]
        self._append(state, state.value, 1.0, "")
        self._free_lock()

    def finish_load(self, spec: ModelSpec | None) -> bool:
        """Remember the model and finish; False when the load was cancelled before."""
        if not self.remember(spec):
            return False
        self.finish()
        return True

    def remember(self, spec: ModelSpec | None) -> bool:
        """Store the spec of the loaded model, if any, and drop its last failure; False when the
        load was cancelled.

        An unload deletes the load's lock before it forgets the model, and the script checks the
        lock: in either order, an unloaded model is not remembered.
        """
        keys = [self._lock_key, names.MODELS, names.FAILURES]
        payload = codec.encode(spec) if spec else b""
        return bool(self._client.eval(_REMEMBER, len(keys), *keys, self.id, self.model, payload))

    def fail(self, failure: Failure) -> None:
        """Append the event of failure and free the lock."""
        self._append(OperationState.FAILED, "failed", 1.0, failure.message, failure)
        self._free_lock()

    def _append(
        self,
        state: OperationState,
        stage: str,
        fraction: float,
        message: str,
        failure: Failure | None = None,
    ) -> None:
        event = OperationProgress(
            id=self.id,
            kind=self.kind,
            model=self.model,
            state=state,
            stage=stage,
            fraction=round(fraction, 3),
            message=message,
            failure=failure,
        )
        append(self._client, event)

    def _free_lock(self) -> None:
        keys = [self._lock_key, names.OPERATIONS_IN_FLIGHT]
        self._client.eval(_UNLOCK, len(keys), *keys, self.id, f"{self.kind}:{self.model}")
