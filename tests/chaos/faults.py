"""What is done to a running service: processes killed and stopped, connections cut."""

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from shared.registry import records
from shared.wire.records import ReplicaState
from tests.conftest import Service

_LONE = ("counter", "counter-small")
_SERVED_S = 12.0
"""Since its start. It takes a part of that to be ready."""


@dataclass(frozen=True)
class Fault:
    name: str
    cause: Callable[[Service, random.Random], bool]
    """Returns whether there was anything to hit."""
    hits_web: bool = False
    """It may break clients' connections."""
    weight: int = 1


def serving_replicas(service: Service, model: str) -> list[int]:
    """Pids of the replicas that have served for a while: one that dies again and again before
    that is given up by its agent, on purpose."""
    return sorted(
        record.pid
        for record in records.read(service.redis)
        if record.model == model
        and record.state is ReplicaState.READY
        and record.generated_tokens
        and time.time() - record.started_at > _SERVED_S
    )


def gunicorn_master(service: Service) -> list[int]:
    return [pid for pid in service.pids("gunicorn") if _parent(pid) == service.process.pid]


def web_processes(service: Service) -> list[int]:
    masters = gunicorn_master(service)
    return [pid for pid in service.pids("gunicorn") if _parent(pid) in masters]


def redis_server(service: Service) -> list[int]:
    return service.pids("valkey-server")


def kill(pids: list[int]) -> bool:
    """`kill -9`. A process that has ended by itself is no fault."""
    return _signal(pids, signal.SIGKILL)


def stop(pids: list[int]) -> bool:
    """SIGTERM: the process puts back what it has not begun, and hands over what it runs."""
    return _signal(pids, signal.SIGTERM)


def freeze(pids: list[int], seconds: float) -> bool:
    """SIGSTOP, and after so many seconds SIGCONT."""
    timer = threading.Timer(seconds, _signal, (pids, signal.SIGCONT))
    timer.daemon = True
    is_hit = _signal(pids, signal.SIGSTOP)
    timer.start()
    return is_hit


def cut_connections(service: Service, kind: str) -> bool:
    """Redis closes all connections of a kind, `normal` or `pubsub`."""
    with service.redis as client:
        return bool(client.client_kill_filter(_type=kind, skipme=True))


def _signal(pids: list[int], signum: int) -> bool:
    num_hit = 0
    for pid in pids:
        try:
            os.kill(pid, signum)
            num_hit += 1
        except ProcessLookupError:
            continue
    return num_hit > 0


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[1])
    except OSError:
        return 0


def _one(pids: list[int], rng: random.Random) -> list[int]:
    return [rng.choice(pids)] if pids else []


FAULTS = (
    Fault(
        "kill -9 of one of two replicas",
        lambda service, rng: kill(_one(serving_replicas(service, "pair"), rng)),
        weight=4,
    ),
    Fault(
        "stop of one of two replicas",
        lambda service, rng: stop(_one(serving_replicas(service, "pair"), rng)),
        weight=2,
    ),
    Fault("kill -9 of both replicas", lambda service, rng: kill(serving_replicas(service, "pair"))),
    Fault(
        "kill -9 of the only replica",
        lambda service, rng: kill(serving_replicas(service, rng.choice(_LONE))),
        weight=2,
    ),
    Fault(
        "replica stopped for seconds",
        lambda service, rng: freeze(
            _one(serving_replicas(service, "pair"), rng), rng.uniform(1.0, 8.0)
        ),
        weight=2,
    ),
    Fault(
        "kill -9 of the agent", lambda service, rng: kill(service.pids("worker.agent")), weight=2
    ),
    Fault(
        "kill -9 of the agent and both replicas",
        lambda service, rng: kill(serving_replicas(service, "pair") + service.pids("worker.agent")),
    ),
    Fault(
        "kill -9 of a web process",
        lambda service, rng: kill(_one(web_processes(service), rng)),
        hits_web=True,
        weight=2,
    ),
    Fault(
        "kill -9 of the gunicorn master",
        lambda service, rng: kill(gunicorn_master(service)),
        hits_web=True,
    ),
    Fault(
        "Redis connections cut", lambda service, rng: cut_connections(service, "normal"), weight=2
    ),
    Fault(
        "Redis subscriptions cut", lambda service, rng: cut_connections(service, "pubsub"), weight=2
    ),
    Fault("Redis stopped for a second", lambda service, rng: freeze(redis_server(service), 1.0)),
    Fault("kill -9 of Redis", lambda service, rng: kill(redis_server(service)), weight=2),
)


def schedule(rng: random.Random, only: str = "") -> Iterator[Fault]:
    """Each fault once, then by weight, for ever. `only` is a part of the names of those that are
    caused."""
    faults = [fault for fault in FAULTS if only in fault.name]
    yield from rng.sample(faults, len(faults))
    while True:
        yield from rng.choices(faults, [fault.weight for fault in faults])
