"""What the service costs Redis: `python -m bench.redis_cost`.

Against an empty server of its own, the calls that the processes make, and the CPU time that the
server spends on them: of a request's whole life without its tokens, of a step's tokens written
and published, of the beats of replicas and web processes. Redis is one thread: the reciprocal of
a time is what one can carry. The append-only file is on, as in a running service.
"""

import itertools
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import redis

from bench import report
from bench.admission import sample_job, server
from bench.processes import machine_facts
from shared import names
from shared.limits import Limits
from shared.queue.job_queue import JobQueue
from shared.queue.lease import JobLeases, Lease
from shared.registry.records import announce, read
from shared.wire import codec
from shared.wire.records import ReplicaRecord, ReplicaState
from worker.replica.attempt import Attempt, AttemptEvent, JobStarted
from worker.replica.event_builder import events_of
from worker.replica.publisher import Publisher
from worker.sequence import StepResult

_ROUNDS = 5
_ROUND_S = 1.0
_LIMITS = Limits(requests_per_minute=10**6, tokens_per_minute=10**9)
_STEPS = ((1, 1), (8, 1), (64, 1), (64, 4), (256, 1), (256, 16))
"""Jobs that get a token each in one step, and the web processes that read them."""
_REPLICAS = (1, 10, 100)


def main() -> int:
    with (
        tempfile.TemporaryDirectory() as folder,
        server(Path(folder), "--appendonly", "yes") as (path, pid),
    ):
        client = redis.Redis(unix_socket_path=path)
        clock = _Clock(pid)
        content = {
            "machine": machine_facts(),
            "life_us": clock.us_a_call(_life(client)),
            "token_us": _tokens(client, path, clock),
            "role_us": _roles(client, path, clock),
            "beat_us": _beats(client, clock),
        }
    _print(content)
    if "--quick" not in sys.argv:
        print(f"written: {report.write('redis-cost', content)}")
    return 0


class _Clock:
    """CPU time of the server, from rounds long enough for the ticks that it is counted in."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)

    def us_a_call(self, call: Callable[[], object]) -> float:
        """Median of the rounds, in microseconds."""
        return round(statistics.median(self._round(call) for _ in range(_ROUNDS)), 1)

    def _round(self, call: Callable[[], object]) -> float:
        num_calls, before = 0, self._cpu_s()
        ends_at = time.monotonic() + _ROUND_S
        while time.monotonic() < ends_at:
            call()
            num_calls += 1
        return 1e6 * (self._cpu_s() - before) / num_calls

    def _cpu_s(self) -> float:
        times = self._process.cpu_times()
        return float(times.user + times.system)


def _life(client: "redis.Redis") -> Callable[[], object]:
    """What web tier and replica do for one request, its tokens aside."""
    queue, numbers = JobQueue(client, 600), itertools.count()
    leases = JobLeases(client, "r@bench", job_ttl_s=9, running_ttl_s=600)

    def call() -> None:
        job = sample_job(f"{next(numbers)}")
        queue.admit(job, "c", _LIMITS, 10**9)
        client.brpop(names.priority_lists(job.model))
        leases.take(job.id, None, Lease("r@bench"))
        leases.end(job, 500)

    return call


def _tokens(client: "redis.Redis", path: str, clock: _Clock) -> dict[str, float]:
    """Microseconds a token, by jobs a step and web processes that read them."""
    found = {}
    for num_jobs, num_webs in _STEPS:
        client.flushall()
        with _subscribers(path, num_webs):
            step_us = clock.us_a_call(_step(client, num_jobs, num_webs))
        found[f"{num_jobs} jobs, {num_webs} web"] = round(step_us / num_jobs, 2)
    return found


def _step(client: "redis.Redis", num_jobs: int, num_webs: int) -> Callable[[], object]:
    publisher = Publisher(client, job_ttl_s=600, request_timeout_s=600)
    runs = []
    for i in range(num_jobs):
        job = sample_job(f"step{num_jobs}-{num_webs}-{i}")
        run = Attempt(job, 0, [], lease=b"r@bench", channels=(f"web-{i % num_webs}",))
        client.set(names.lease_key(job.id), b"r@bench")
        runs.append(run)
    publisher.send(events_of([(run, JobStarted(1)) for run in runs]))

    def call() -> None:
        step: list[AttemptEvent] = [(run, StepResult((run.id, 0), " word", [1234])) for run in runs]
        publisher.send(events_of(step))

    return call


def _roles(client: "redis.Redis", path: str, clock: _Clock) -> dict[str, float]:
    """Microseconds a token of a step with 64 jobs, if one server had the logs, another the
    channels: what a division by role would take off either."""
    number = 64
    runs = [Attempt(sample_job(f"role-{i}"), 0, []) for i in range(number)]
    events = events_of([(run, StepResult((run.id, 0), " word", [1234])) for run in runs])
    payloads = [(run.id, codec.encode_event(event)) for run, event in events]
    message = codec.encode_hub_message(payloads, time.time())

    def append() -> None:
        pipe = client.pipeline(transaction=False)
        for job_id, payload in payloads:
            pipe.rpush(names.log_key(job_id), payload)
        pipe.execute()

    client.flushall()
    found = {"logs alone": clock.us_a_call(append)}
    with _subscribers(path, 1):
        found["channels alone"] = clock.us_a_call(lambda: client.publish("web-0", message))
    return {name: round(us / number, 2) for name, us in found.items()}


class _subscribers:
    """Web processes that listen, each on its channel."""

    def __init__(self, path: str, number: int) -> None:
        self._clients = [redis.Redis(unix_socket_path=path).pubsub() for _ in range(number)]
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> None:
        for i, listener in enumerate(self._clients):
            listener.subscribe(**{f"web-{i}": lambda _: None})
            self._threads.append(listener.run_in_thread(daemon=True))

    def __exit__(self, *_: object) -> None:
        for thread in self._threads:
            thread.stop()  # type: ignore[attr-defined]
            thread.join()


def _beats(client: "redis.Redis", clock: _Clock) -> dict[str, float]:
    """Microseconds of a replica's record, and of a process's look at all records."""
    found = {}
    for number in _REPLICAS:
        client.flushall()
        records = [_record(i) for i in range(number)]
        for record in records:
            client.sadd(names.REPLICA_INDEX, record.id)
            client.set(names.replica_key(record.id), codec.encode(record))
        found[f"look at {number}"] = clock.us_a_call(lambda: read(client))
    one = _record(0)
    found["record"] = clock.us_a_call(lambda: announce(client, one))
    return found


def _record(i: int) -> ReplicaRecord:
    return ReplicaRecord(
        id=f"model-{i}@node-{i}-0123456789ab",
        model=f"model-{i}",
        engine="llamacpp",
        device="cpu",
        node=f"node-{i}",
        assignment_id=f"assignment-{i}",
        pid=i,
        versions={"llmis": "0.1.0", "xllamacpp": "2026.10.11549"},
        state=ReplicaState.READY,
        stage="ready",
        fraction=1.0,
        slots=8,
        busy_slots=8,
        waiting_sequences=0,
        context_length=4096,
        capabilities=[],
        steps=10**6,
        step_age_s=0.01,
        generated_tokens=10**7,
        tokens_per_s=100.0,
        memory_bytes=10**9,
        mapped_bytes=10**8,
        estimated_bytes=10**9,
        started_at=time.time(),
    )


_FLEETS = (
    # requests/s, tokens/s, web processes, agents, replicas
    (2, 500, 1, 1, 1),
    (50, 10_000, 2, 4, 8),
    (200, 50_000, 8, 16, 32),
    (500, 100_000, 16, 32, 64),
)


def fleet_rows(content: dict[str, Any]) -> list[list[str]]:
    """What part of one Redis services of several sizes would take, from the costs of the parts."""
    look = {number: content["beat_us"][f"look at {number}"] for number in _REPLICAS}
    slope = (look[100] - look[1]) / 99
    rows = []
    for requests, tokens, webs, agents, replicas in _FLEETS:
        beats = 2 * replicas * content["beat_us"]["record"]
        beats += 2 * (webs + agents) * (look[1] + slope * (replicas - 1))
        us = requests * content["life_us"] + tokens * content["token_us"]["64 jobs, 4 web"] + beats
        service = f"{replicas} replicas on {agents} hosts"
        rows.append([service, f"{requests}", f"{tokens:,}", f"{webs}", f"{us / 1e4:.1f} %"])
    return rows


def _print(content: dict[str, Any]) -> None:
    rows = [["what", "", "CPU us", "a second of one core"]]
    rows.append(["request", "its life without tokens", *_cells(content["life_us"])])
    rows += [["token", name, *_cells(us)] for name, us in content["token_us"].items()]
    rows += [["token, 64 jobs", name, *_cells(us)] for name, us in content["role_us"].items()]
    rows += [["beat", name, *_cells(us)] for name, us in content["beat_us"].items()]
    print(report.table(rows))
    titles = ["service", "requests/s", "tokens/s", "web processes", "of one Redis"]
    print("\n" + report.table([titles, *fleet_rows(content)]))


def _cells(us: float) -> tuple[str, str]:
    return f"{us:,.1f}", f"{1e6 / us:,.0f}"


if __name__ == "__main__":
    sys.exit(main())
