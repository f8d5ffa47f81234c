"""What a service must look like when the load is over and no fault comes any more."""

import http.client
import time
from collections import Counter
from collections.abc import Callable

import psutil
import redis

from shared import names
from shared.queue import lease
from shared.redis.connection import payload_bytes
from shared.registry.records import read
from shared.wire import codec
from shared.wire.events import Failed, Finished
from shared.wire.records import ReplicaState
from tests.conftest import Service
from tests.support.admin_client import Completion
from tests.support.counter_model import expected_text

_QUIET_LIMIT_S = 120.0
_MODELS = {"pair": 2, "counter": 1, "counter-small": 1}
"""Model → replicas."""
_ROLES = {
    "worker.replica": "replica",
    "worker.agent": "agent",
    "gunicorn": "web",
    "valkey-server": "redis server",
}
_KEPT = (
    "_kombu.",
    names.REPLICA_INDEX,
    names.HOLDERS,
    names.NODE_INDEX,
    names.MODELS,
    names.FAILURES,
    names.LAST_USED,
    "llmis:node:",
)
"""Keys that stay: queue bindings, the registry's indexes, what is loaded. None belongs to a job."""
_GROWTH = 1.5
_GROWTH_BYTES = 24_000_000
"""Memory is back when it is not above both together: half as much again and 24 MB."""


def memory_by_role(service: Service) -> dict[str, float]:
    """Mean resident memory of a process of each role, and Redis' own count, in bytes."""
    found: dict[str, list[int]] = {}
    for words, role in _ROLES.items():
        for pid in service.pids(words):
            try:
                found.setdefault(role, []).append(psutil.Process(pid).memory_info().rss)
            except psutil.NoSuchProcess:
                continue
    means = {role: sum(sizes) / len(sizes) for role, sizes in found.items()}
    return means | {"redis used": float(service.redis.info("memory")["used_memory"])}


def num_processes(service: Service) -> dict[str, int]:
    return {role: len(service.pids(words)) for words, role in _ROLES.items()}


def wait_for_quiet(service: Service, processes: dict[str, int] | None = None) -> list[str]:
    """Wait until nothing runs or waits and everything is up; what is missing at the end."""

    def problems() -> list[str]:
        found = _ready(service) + _slots(service) + _queues(service) + _jobs(service)
        found += _unread(service)
        now = num_processes(service)
        if processes is not None and now != processes:
            found.append(f"processes: {now}, not {processes}")
        return found

    return _until_none(problems, _QUIET_LIMIT_S)


def final_problems(service: Service, memory_before: dict[str, float]) -> list[str]:
    """The checks of a quiet service. Waits until what jobs have left has expired."""
    return [
        *_until_none(lambda: _keys(service), _QUIET_LIMIT_S),
        *_until_none(lambda: _memory(service, memory_before), _QUIET_LIMIT_S),
        *_serves(service),
    ]


def _until_none(problems: Callable[[], list[str]], limit_s: float) -> list[str]:
    deadline = time.monotonic() + limit_s
    while True:
        try:
            found = problems()
        except redis.RedisError as exc:
            found = [f"Redis: {exc}"]
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.5)


def _ready(service: Service) -> list[str]:
    records = read(service.redis)
    ready = Counter(record.model for record in records if record.state is ReplicaState.READY)
    return [] if ready == _MODELS else [f"ready replicas: {dict(ready)}, not {_MODELS}"]


def _slots(service: Service) -> list[str]:
    return [
        f"{record.id}: {record.busy_slots} slots busy, {record.waiting_sequences} sequences wait"
        for record in read(service.redis)
        if record.busy_slots or record.waiting_sequences
    ]


def _queues(service: Service) -> list[str]:
    client = service.redis
    return [
        f"{length} messages in {name!r}"
        for model in _MODELS
        for name in names.priority_lists(model)
        if (length := client.llen(name))
    ]


def _jobs(service: Service) -> list[str]:
    """No replica that lives holds a job that has not ended."""
    client = service.redis
    alive = {record.id for record in read(client)}
    return [
        f"job {job_id} of {claim.holder} has not ended: {client.llen(names.log_key(job_id))} events"
        for job_id in _claimed(client)
        if (claim := lease.read(client, job_id))
        and claim.holder in alive
        and not _has_ended(client, job_id)
    ]


def _unread(service: Service) -> list[str]:
    """Background and batch jobs run to their end, read or not."""
    client = service.redis
    members = [payload_bytes(m).decode() for m in client.zrange(names.LOWER_CLASS_JOBS, 0, -1)]
    ids = [member.partition("/")[2] for member in members]
    return [f"the batch job {id_} has not ended" for id_ in ids if not _has_ended(client, id_)]


def num_left(service: Service) -> int:
    """Jobs that their clients have left, or that lost replica and reader: nobody runs them, and
    what they have in Redis expires."""
    client = service.redis
    return sum(not _has_ended(client, job_id) for job_id in _claimed(client))


def _claimed(client: "redis.Redis") -> set[str]:
    return {_middle(key) for key in client.scan_iter(names.lease_key("*"))}


def _middle(key: bytes) -> str:
    prefix, suffix = names.lease_key("*").split("*")
    return key.decode().removeprefix(prefix).removesuffix(suffix)


def _has_ended(client: "redis.Redis", job_id: str) -> bool:
    """Its log has its last event, or all of it is gone from Redis."""
    last = client.lindex(names.log_key(job_id), -1)
    if last is None:
        return not client.get(names.job_key(job_id))
    return isinstance(codec.decode_event(payload_bytes(last)), Failed | Finished)


def _keys(service: Service) -> list[str]:
    client = service.redis
    keys = list(client.scan_iter(count=1000))
    pipe = client.pipeline(transaction=False)
    for key in keys:
        pipe.ttl(key)
    return [
        f"the key {key.decode(errors='replace')!r} has no time to live"
        for key, ttl in zip(keys, pipe.execute(), strict=True)
        if ttl == -1 and not key.decode(errors="replace").startswith(_KEPT)
    ]


def _memory(service: Service, before: dict[str, float]) -> list[str]:
    return [
        f"memory of {role}: {size / 1e6:.0f} MB, before {before[role] / 1e6:.0f} MB"
        for role, size in memory_by_role(service).items()
        if size > _GROWTH * before[role] + _GROWTH_BYTES
    ]


def _serves(service: Service) -> list[str]:
    return [
        f"{model} does not answer rightly afterwards"
        for model in _MODELS
        if _text(service, model) != expected_text(5, 50)
    ]


def _text(service: Service, model: str) -> str:
    """An answer. A web process that ends refuses, or breaks the connection: ask again."""
    deadline = time.monotonic() + _QUIET_LIMIT_S
    while True:
        try:
            answer = Completion(service, model, 50).read()
            is_refused = answer.error is not None and answer.error["code"] == "going_away"
            if not is_refused or time.monotonic() > deadline:
                return answer.text
        except (OSError, http.client.HTTPException):
            if time.monotonic() > deadline:
                raise
        time.sleep(0.5)
