"""Loads and unloads: one at a time for each model, and where each one stands.

An operation is a command in Redis, a lock that says that somebody works on it, and a list of
progress events whose last one is final. Whoever works on it renews the lock; when that expires
before a final event, the operation is lost and its readers say so.
"""

import logging
import time
import uuid

import msgspec
import redis

from shared import lifecycle, names
from shared.connections import payload_bytes
from shared.errors import LlmisError, ModelFailed
from shared.lifecycle import (
    STAGES,
    Failure,
    LoadCommand,
    ModelSpec,
    OperationKind,
    OperationState,
    Progress,
    UnloadCommand,
)
from shared.messages import DecodeError

_log = logging.getLogger(__name__)
LOCK_TTL_S = 15
_KEEP_S = 3600
"""How long what is known of an operation stays in Redis."""

_WORKING = {OperationKind.LOAD: OperationState.LOADING,
            OperationKind.UNLOAD: OperationState.UNLOADING}  # fmt: skip
_DONE = {OperationKind.LOAD: OperationState.READY, OperationKind.UNLOAD: OperationState.UNLOADED}


_REMEMBER = """
if redis.call('get', KEYS[1]) ~= ARGV[1] then return 0 end
if ARGV[3] ~= '' then redis.call('hset', KEYS[2], ARGV[2], ARGV[3]) end
redis.call('hdel', KEYS[3], ARGV[2])
return 1
"""


class Operation:
    """One load or unload, for those who work on it."""

    def __init__(
        self, client: "redis.Redis", kind: OperationKind, operation_id: str, model: str
    ) -> None:
        self._client = client
        self._lock_key = names.operation_lock_key(kind, model)
        self.id = operation_id
        self.kind = kind
        self.model = model

    def is_ours(self) -> bool:
        """Whether the operation still is the model's current one; renews the lock then."""
        holder = self._client.get(self._lock_key)
        if holder is None or payload_bytes(holder).decode() != self.id:
            return False
        pipe = self._client.pipeline(transaction=False)
        pipe.expire(self._lock_key, LOCK_TTL_S)
        pipe.sadd(names.OPERATIONS_IN_FLIGHT, f"{self.kind}:{self.model}")
        pipe.execute()
        return True

    def report(self, stage: str, fraction: float | None = None, message: str = "") -> None:
        """Write where the operation stands."""
        at = STAGES.get(stage, 0.0) if fraction is None else fraction
        self._write(_WORKING[self.kind], stage, at, message)

    def finish(self) -> None:
        state = _DONE[self.kind]
        self._write(state, state.value, 1.0, "")
        self._end()

    def finish_load(self, spec: ModelSpec | None) -> bool:
        """End a load and remember what was loaded; False when it was broken off before."""
        if not self.remember(spec):
            return False
        self.finish()
        return True

    def remember(self, spec: ModelSpec | None) -> bool:
        """Note that the model is there; False when the load was broken off.

        An unload takes the lock first and forgets the model then: whatever comes first, a
        model that was unloaded is not remembered.
        """
        keys = [self._lock_key, names.MODELS, names.FAILURES]
        payload = lifecycle.encode(spec) if spec else b""
        return bool(self._client.eval(_REMEMBER, len(keys), *keys, self.id, self.model, payload))

    def fail(self, failure: Failure) -> None:
        self._write(OperationState.FAILED, "failed", 1.0, failure.message, failure)
        self._end()

    def _write(
        self,
        state: OperationState,
        stage: str,
        fraction: float,
        message: str,
        failure: Failure | None = None,
    ) -> None:
        progress = Progress(
            id=self.id,
            kind=self.kind,
            model=self.model,
            state=state,
            stage=stage,
            fraction=round(fraction, 3),
            message=message,
            failure=failure,
        )
        payload = lifecycle.encode(progress)
        if self._client.lindex(names.progress_key(self.id), -1) == payload:
            return  # no news
        pipe = self._client.pipeline(transaction=False)
        pipe.rpush(names.progress_key(self.id), payload)
        pipe.expire(names.progress_key(self.id), _KEEP_S)
        pipe.execute()

    def _end(self) -> None:
        if self.is_ours():
            self._client.delete(self._lock_key)
            self._client.srem(names.OPERATIONS_IN_FLIGHT, f"{self.kind}:{self.model}")


def begin_load(
    client: "redis.Redis",
    spec: ModelSpec,
    *,
    replicas: int,
    nodes: list[str],
    node: str | None = None,
    deadline_at: float,
    is_on_demand: bool,
    replaces: str = "",
) -> tuple[str, bool]:
    """Write a load command; return its id, and True when it is new.

    There is one load a model at a time: while one is under way, its id is returned. The caller
    of a new one hands it to the first node. Raises redis.RedisError.
    """
    command = LoadCommand(
        id=f"load-{uuid.uuid4().hex[:16]}",
        spec=spec,
        replicas=replicas,
        nodes=nodes,
        node=node,
        is_on_demand=is_on_demand,
        deadline_at=deadline_at,
        replaces=replaces,
    )
    holder = _begin(client, OperationKind.LOAD, command.id, spec.name, lifecycle.encode(command))
    return holder, holder == command.id


def begin_unload(
    client: "redis.Redis",
    model: str,
    *,
    grace_s: float,
    is_draining: bool,
    is_forgotten: bool,
    num_nodes: int,
) -> tuple[str, bool]:
    """The same for unloading. A load that is under way loses its lock, and so is broken off."""
    command = UnloadCommand(
        id=f"unload-{uuid.uuid4().hex[:16]}",
        model=model,
        grace_s=grace_s,
        is_draining=is_draining,
        is_forgotten=is_forgotten,
        num_nodes=num_nodes,
    )
    if grace_s == 0.0:
        # It is not to wait for one that drains: that one finds its lock gone, and ends.
        client.delete(names.operation_lock_key(OperationKind.UNLOAD, model))
    payload = lifecycle.encode(command)
    holder = _begin(client, OperationKind.UNLOAD, command.id, model, payload)
    if holder == command.id:
        client.delete(names.operation_lock_key(OperationKind.LOAD, model))
    return holder, holder == command.id


def _begin(
    client: "redis.Redis", kind: OperationKind, operation_id: str, model: str, command: bytes
) -> str:
    """Take the model's lock for an operation, or return the id of the one that has it."""
    client.set(names.command_key(operation_id), command, ex=_KEEP_S)
    lock_key = names.operation_lock_key(kind, model)
    for _ in range(3):
        if client.set(lock_key, operation_id, nx=True, ex=LOCK_TTL_S):
            client.sadd(names.OPERATIONS_IN_FLIGHT, f"{kind}:{model}")
            Operation(client, kind, operation_id, model).report("checking")
            return operation_id
        holder = client.get(lock_key)
        if holder is not None:
            client.delete(names.command_key(operation_id))
            return payload_bytes(holder).decode()
    raise redis.RedisError(f"the lock of {model!r} comes and goes")


def read_load(client: "redis.Redis", operation_id: str) -> LoadCommand | None:
    return lifecycle.decode(client.get(names.command_key(operation_id)), LoadCommand)


def read_unload(client: "redis.Redis", operation_id: str) -> UnloadCommand | None:
    return lifecycle.decode(client.get(names.command_key(operation_id)), UnloadCommand)


def rewrite(client: "redis.Redis", command: LoadCommand) -> None:
    """Replace a load command, for the next node."""
    client.set(names.command_key(command.id), lifecycle.encode(command), ex=_KEEP_S)


def count_down(client: "redis.Redis", command: UnloadCommand) -> bool:
    """A node has done its part; True when it was the last one."""
    key = f"{names.command_key(command.id)}:done"
    done = int(client.incr(key))
    client.expire(key, _KEEP_S)
    return done >= command.num_nodes


def progress(client: "redis.Redis", operation_id: str, since: int = 0) -> list[Progress]:
    """The progress events from number `since` on; [] for an unknown operation."""
    payloads = client.lrange(names.progress_key(operation_id), since, -1)
    events = [lifecycle.decode(payload, Progress) for payload in payloads]
    return [event for event in events if event is not None]


def lost(last: Progress) -> Progress:
    """What a reader sees as the end of an operation that nobody works on any more."""
    reason = (
        f"The {last.kind} of {last.model!r} was given up: its node is gone, or it was replaced."
    )
    failure = failure_of(ModelFailed(reason), 0.0)
    return msgspec.structs.replace(
        last, state=OperationState.FAILED, stage="failed", message=reason, failure=failure
    )


def is_under_way(client: "redis.Redis", kind: OperationKind, model: str) -> bool:
    return bool(client.exists(names.operation_lock_key(kind, model)))


def is_lost(client: "redis.Redis", last: Progress) -> bool:
    """Whether nobody works any more on an operation that has not ended."""
    holder = client.get(names.operation_lock_key(last.kind, last.model))
    return holder is None or payload_bytes(holder).decode() != last.id


def in_flight(client: "redis.Redis") -> dict[tuple[OperationKind, str], Progress]:
    """Where each operation stands that is under way; forgets those that are not."""
    members = [payload_bytes(m).decode() for m in client.smembers(names.OPERATIONS_IN_FLIGHT)]
    if not members:
        return {}
    keys = [member.partition(":")[::2] for member in members]
    holders = client.mget([names.operation_lock_key(kind, model) for kind, model in keys])
    found: dict[tuple[OperationKind, str], Progress] = {}
    for member, (kind, model), holder in zip(members, keys, holders, strict=True):
        if holder is None:
            client.srem(names.OPERATIONS_IN_FLIGHT, member)
            continue
        last = client.lindex(names.progress_key(payload_bytes(holder).decode()), -1)
        try:
            event = lifecycle.decode(last, Progress)
        except DecodeError as exc:
            _log.warning("undecodable progress of %s: %s", member, exc)
            continue
        if event is not None and not event.is_ended:
            found[OperationKind(kind), model] = event
    return found


def failure_of(error: LlmisError, retry_s: float) -> Failure:
    """An error as it is kept; for `retry_s` no request tries to load the model again."""
    now = time.time()
    return Failure(
        status=error.status,
        code=error.code,
        message=error.message,
        param=error.param,
        at=now,
        retry_at=now + retry_s,
    )
