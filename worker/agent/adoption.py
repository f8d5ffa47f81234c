"""Takes over the replica processes that an earlier agent of this node left. Runs once, at the
agent's start, before its watch thread and its operations: no lock is needed."""

import logging

import psutil

from shared import names
from shared.model_spec import ModelSpec
from shared.wire import codec
from shared.wire.codec import DecodeError
from shared.wire.records import Assignment, StopOrder
from worker.agent.managed_replica import ManagedReplica, find_processes
from worker.agent.replicas import Replicas

_log = logging.getLogger(__name__)


def adopt_replicas(replicas: Replicas) -> list[ModelSpec]:
    """Adopt the running replicas and return the models of the dead ones, one entry per replica.
    Raises redis.RedisError."""
    # A process has no assignment only if it was ordered to stop: the assignment is written
    # before the start and removed with the order.
    processes = find_processes(replicas.node, replicas.settings.redis_url)
    dead: list[ModelSpec] = []
    for field, payload in replicas.client.hgetall(replicas.assignments_key).items():
        try:
            assignment = codec.decode(payload, Assignment)
        except DecodeError as exc:
            _log.warning("an assignment cannot be decoded and is dropped: %s", exc)
            replicas.client.hdel(replicas.assignments_key, field)
            continue
        assert assignment is not None, "hgetall returns no empty payload"
        process = processes.pop(assignment.id, None)
        if process is not None:
            _adopt(replicas, assignment, process)
        else:
            replicas.client.hdel(replicas.assignments_key, assignment.id)
            replicas.recover_jobs(assignment.replica_id)
            dead.append(assignment.spec)
    for assignment_id, process in processes.items():
        _adopt_stopping(replicas, assignment_id, process)
    return dead


def _adopt(replicas: Replicas, assignment: Assignment, process: psutil.Process) -> None:
    spec = assignment.spec
    replica = ManagedReplica(assignment, replicas.log_path(spec.name))
    replica.adopt(process)
    replicas.add(replica)
    if not spec.is_configured:
        # The agent may have died before its load registered the model.
        replicas.client.hset(names.MODELS, spec.name, codec.encode(spec))
    _log.info("replica adopted", extra={"replica": assignment.replica_id})


def _adopt_stopping(replicas: Replicas, assignment_id: str, process: psutil.Process) -> None:
    """Adopt a process without an assignment, which was ordered to stop, and see that it ends."""
    try:
        replica_id = process.cmdline()[4]
    except (psutil.Error, IndexError):
        return  # it has ended since it was found
    spec = ModelSpec(name=assignment_id.partition("@")[0], path="")
    assignment = Assignment(
        id=assignment_id, node=replicas.node, spec=spec, memory_bytes=0, replica_id=replica_id
    )
    replica = ManagedReplica(assignment, replicas.log_path(spec.name))
    replica.adopt(process)
    order = codec.decode(replicas.client.get(names.stop_key(replica_id)), StopOrder)
    replica.stop(order.grace_s if order else replicas.settings.drain_grace_s)
    replicas.add(replica)
    _log.warning("replica without an assignment is stopped: %s", assignment_id)
