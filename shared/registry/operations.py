"""Loads and unloads of models: commands, locks and progress in Redis.

An operation is a command, a lock per model and kind, and a list of progress events whose last one
is final. The agent that runs it renews the lock. If the lock expires before a final event, the
operation is lost, and its readers report it as failed.
"""

import logging
import uuid

import msgspec
import redis

from shared import names
from shared.clock import clock
from shared.errors import LlmisError, ModelFailed
from shared.model_spec import ModelSpec
from shared.redis.connection import payload_bytes
from shared.wire import codec
from shared.wire.codec import DecodeError
from shared.wire.operations import (
    STAGES,
    Failure,
    LoadCommand,
    OperationKind,
    OperationProgress,
    OperationState,
    UnloadCommand,
)

_log = logging.getLogger(__name__)
LOCK_TTL_S = 15
_KEEP_S = 3600
"""How long the command and the progress of an operation stay in Redis."""
UNDER_WAY = {
    OperationKind.LOAD: OperationState.LOADING,
    OperationKind.UNLOAD: OperationState.UNLOADING,
}
"""Kind → the state of an operation without a final event."""


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

    A model has one load at a time: while one is under way, its id is returned. The caller sends
    a new one to the first node. Raises redis.RedisError.
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
    holder = _begin(client, OperationKind.LOAD, command.id, spec.name, codec.encode(command))
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
    """Write an unload command, like `begin_load`. A load under way loses its lock, which cancels
    it. `grace_s` 0 cancels an unload under way, too: it need not wait for one that drains."""
    command = UnloadCommand(
        id=f"unload-{uuid.uuid4().hex[:16]}",
        model=model,
        grace_s=grace_s,
        is_draining=is_draining,
        is_forgotten=is_forgotten,
        num_nodes=num_nodes,
    )
    if grace_s == 0.0:
        client.delete(names.operation_lock_key(OperationKind.UNLOAD, model))
    payload = codec.encode(command)
    holder = _begin(client, OperationKind.UNLOAD, command.id, model, payload)
    if holder == command.id:
        client.delete(names.operation_lock_key(OperationKind.LOAD, model))
    return holder, holder == command.id


def _begin(
    client: "redis.Redis", kind: OperationKind, operation_id: str, model: str, command: bytes
) -> str:
    """Take the model's lock; return the id of its holder: this operation or an earlier one. The
    command is written first: the holder of a lock always has one to read."""
    client.set(names.command_key(operation_id), command, ex=_KEEP_S)
    lock_key = names.operation_lock_key(kind, model)
    for _ in range(3):  # the holder's lock may expire between the two calls
        if client.set(lock_key, operation_id, nx=True, ex=LOCK_TTL_S):
            client.sadd(names.OPERATIONS_IN_FLIGHT, f"{kind}:{model}")
            first = OperationProgress(
                id=operation_id,
                kind=kind,
                model=model,
                state=UNDER_WAY[kind],
                stage="checking",
                fraction=STAGES["checking"],
            )
            append(client, first)
            return operation_id
        holder = client.get(lock_key)
        if holder is not None:
            client.delete(names.command_key(operation_id))
            return payload_bytes(holder).decode()
    raise redis.RedisError(f"the lock of {model!r} was taken and freed three times in a row")


def append(client: "redis.Redis", event: OperationProgress) -> None:
    """Append a progress event unless it equals the last one. Raises redis.RedisError."""
    payload = codec.encode(event)
    if client.lindex(names.progress_key(event.id), -1) == payload:
        return
    pipe = client.pipeline(transaction=False)
    pipe.rpush(names.progress_key(event.id), payload)
    pipe.expire(names.progress_key(event.id), _KEEP_S)
    pipe.execute()


def read_load(client: "redis.Redis", operation_id: str) -> LoadCommand | None:
    return codec.decode(client.get(names.command_key(operation_id)), LoadCommand)


def read_unload(client: "redis.Redis", operation_id: str) -> UnloadCommand | None:
    return codec.decode(client.get(names.command_key(operation_id)), UnloadCommand)


def rewrite(client: "redis.Redis", command: LoadCommand) -> None:
    """Replace a load command, for the next node."""
    client.set(names.command_key(command.id), codec.encode(command), ex=_KEEP_S)


def count_down(client: "redis.Redis", command: UnloadCommand) -> bool:
    """Note that one node has stopped its replicas; True for the last node."""
    key = names.stopped_nodes_key(command.id)
    done = int(client.incr(key))
    client.expire(key, _KEEP_S)
    return done >= command.num_nodes


def progress(client: "redis.Redis", operation_id: str, since: int = 0) -> list[OperationProgress]:
    """The progress events from number `since` on; [] for an unknown operation."""
    payloads = client.lrange(names.progress_key(operation_id), since, -1)
    events = [codec.decode(payload, OperationProgress) for payload in payloads]
    return [event for event in events if event is not None]


def lost(last: OperationProgress) -> OperationProgress:
    """The final event that readers show for a lost operation."""
    reason = (
        f"The {last.kind} of {last.model!r} was given up: its node is gone, or it was replaced."
    )
    failure = failure_of(ModelFailed(reason), 0.0)
    return msgspec.structs.replace(
        last, state=OperationState.FAILED, stage="failed", message=reason, failure=failure
    )


def loads_of(client: "redis.Redis", node: str) -> list[str]:
    """Ids of the loads under way that a node has to carry out at present."""
    ids = [last.id for (kind, _), last in in_flight(client).items() if kind is OperationKind.LOAD]
    commands = [command for i in ids if (command := read_load(client, i)) is not None]
    return [command.id for command in commands if command.nodes[:1] == [node]]


def is_under_way(client: "redis.Redis", kind: OperationKind, model: str) -> bool:
    return bool(client.exists(names.operation_lock_key(kind, model)))


def is_lost(client: "redis.Redis", last: OperationProgress) -> bool:
    """Whether the lock is gone, or another operation's. `last` must not be a final event."""
    holder = client.get(names.operation_lock_key(last.kind, last.model))
    return holder is None or payload_bytes(holder).decode() != last.id


def in_flight(client: "redis.Redis") -> dict[tuple[OperationKind, str], OperationProgress]:
    """The last event of each operation under way. Removes the others from the set."""
    members = [payload_bytes(m).decode() for m in client.smembers(names.OPERATIONS_IN_FLIGHT)]
    if not members:
        return {}
    keys = [member.partition(":")[::2] for member in members]
    holders = client.mget([names.operation_lock_key(kind, model) for kind, model in keys])
    found: dict[tuple[OperationKind, str], OperationProgress] = {}
    for member, (kind, model), holder in zip(members, keys, holders, strict=True):
        if holder is None:
            client.srem(names.OPERATIONS_IN_FLIGHT, member)
            continue
        last = client.lindex(names.progress_key(payload_bytes(holder).decode()), -1)
        try:
            event = codec.decode(last, OperationProgress)
        except DecodeError as exc:
            _log.warning("undecodable progress of %s: %s", member, exc)
            continue
        if event is not None and not event.is_ended:
            found[OperationKind(kind), model] = event
    return found


def failure_of(error: LlmisError, retry_s: float) -> Failure:
    """The record of an error. For `retry_s` seconds no request loads the model again."""
    now = clock.now()
    return Failure(
        status=error.status,
        code=error.code,
        message=error.message,
        param=error.param,
        at=now,
        retry_at=now + retry_s,
    )
