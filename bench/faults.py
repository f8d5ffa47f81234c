"""What clients see of each fault: the longest gap in their streams, what failed, what was lost."""

import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import redis
from msgspec import Struct

from bench import servers
from bench.processes import free_port
from bench.report import table
from bench.servers import ServedModel, Server
from shared.registry import records
from shared.registry.records import read_nodes
from shared.wire.records import ReplicaState
from tests.chaos import faults, http_client
from tests.chaos.asks import Answer, Ask, Outcome, judge
from tests.conftest import Service, running_service, wait_for
from tests.support.admin_client import load
from tests.support.second_host import can_make_namespaces, second_host, shared_redis

_STREAMS = 4
_TOKENS = 9_000
_CONTEXT = 16_384
PATIENCE_S = 90.0
"""For the streams of a fault to begin, and as long again to end after it."""
_PAUSE_S = 0.2


class Seen(Struct, kw_only=True):
    """What the streams of one run saw."""

    gap_s: float
    """The longest between two pieces of text, of any stream."""
    failed: int
    """Streams that did not end with the whole text."""
    asked_again: int
    """Streams whose client had to begin anew."""
    resumed: int
    """Streams whose client came back and got the rest."""
    wrong: int
    """Streams with a token that was lost, doubled or swapped."""


@dataclass(frozen=True)
class Case:
    fault: str
    model: str
    cause: Callable[[Service], object]


@dataclass
class _Reader:
    """One client. It comes back when its connection breaks."""

    service: Service | Server
    ask: Ask
    gap_s: float = 0.0
    asked_again: int = 0
    resumed: int = 0
    answer: Answer = field(default_factory=Answer)
    _at: float | None = None
    has_begun: threading.Event = field(default_factory=threading.Event)

    def read(self) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not self.answer.is_done and time.monotonic() < deadline:
            with suppress(*http_client.BROKEN):
                self._read_on()
            if not self.answer.is_done:
                time.sleep(_PAUSE_S)
        self.has_begun.set()

    def _read_on(self) -> None:
        if self.answer.last_event_id is not None and self.answer.error is None:
            self.resumed += 1
            http_client.resume(self.service, self.answer, self._note)
        else:
            self.asked_again += bool(self.answer.texts)
            self.answer = Answer()
            http_client.stream(self.service, self.ask, self.answer, self._note)

    def longest_gap_s(self) -> float:
        """Of a stream that is not whole, with the time since its last piece."""
        if self.answer.is_done or self._at is None:
            return self.gap_s
        return max(self.gap_s, time.monotonic() - self._at)

    def _note(self, _num_events: int) -> None:
        now = time.monotonic()
        if self._at is not None:
            self.gap_s = max(self.gap_s, now - self._at)
        self._at = now
        self.has_begun.set()


def _replicas(service: Service, model: str) -> list[int]:
    return sorted(r.pid for r in records.read(service.redis) if r.model == model)


CASES = (
    Case(
        "kill -9 of one of two replicas",
        "pair",
        lambda service: faults.kill(_replicas(service, "pair")[:1]),
    ),
    Case(
        "kill -9 of the only replica",
        "lone",
        lambda service: faults.kill(_replicas(service, "lone")),
    ),
    Case(
        "replica stopped for 8 s (SIGSTOP), another ready",
        "pair",
        lambda service: faults.freeze(_replicas(service, "pair")[:1], 8.0),
    ),
    Case("kill -9 of the agent", "pair", lambda service: faults.kill(service.pids("worker.agent"))),
    Case(
        "Redis connections cut", "pair", lambda service: faults.cut_connections(service, "normal")
    ),
    Case(
        "Redis subscriptions cut", "pair", lambda service: faults.cut_connections(service, "pubsub")
    ),
    Case(
        "Redis stopped for 1 s (SIGSTOP)",
        "pair",
        lambda service: faults.freeze(faults.redis_server(service), 1.0),
    ),
    Case("kill -9 of Redis", "pair", lambda service: faults.kill(faults.redis_server(service))),
    Case(
        "kill -9 of one of two web processes",
        "pair",
        lambda service: faults.kill(faults.web_processes(service)[:1]),
    ),
    Case(
        "kill -9 of the gunicorn master",
        "pair",
        lambda service: faults.kill(faults.gunicorn_master(service)),
    ),
)


def llama_server(rounds: int, say: Callable[[str], None]) -> list[Seen]:
    """The same streams from llama.cpp's own server, killed and at once started again."""
    model = ServedModel("pair", servers.counter_file(), _STREAMS, _CONTEXT)
    found = []
    for number in range(1, rounds + 1):
        found.append(_kill_llama(model))
        say(f"  round {number}, llama.cpp, kill -9: {found[-1]}")
    return found


def run(rounds: int, say: Callable[[str], None]) -> dict[str, list[Seen]]:
    """Fault → what was seen in each round. Each round has a service of its own."""
    found: dict[str, list[Seen]] = {}
    for number in range(1, rounds + 1):
        for fault, seen in _round():
            found.setdefault(fault, []).append(seen)
            say(f"  round {number}, {fault}: {seen}")
    return found


def _round() -> Iterator[tuple[str, Seen]]:
    with (
        tempfile.TemporaryDirectory(prefix="llmis-bench-") as folder,
        running_service(Path(folder), extra="web_workers = 2") as service,
    ):
        for model, replicas in (("pair", 2), ("lone", 1)):
            _load(service, model, replicas)
        for case in CASES:
            _wait_for_all(service)
            yield case.fault, _measure(service, case.model, lambda c=case: c.cause(service))
    if can_make_namespaces:
        yield "host cut off, another ready", _cut_host()


def _cut_host() -> Seen:
    with tempfile.TemporaryDirectory(prefix="llmis-bench-") as name:
        folder = Path(name)
        with (
            shared_redis(folder) as url,
            second_host(url, folder / "second") as second,
            running_service(folder, environ={"REDIS_URL": url, "LLMIS_NODE_NAME": "first"}) as one,
        ):
            (folder / "redis.url").write_text(url)
            second.join()
            wait_for(lambda: len(read_nodes(one.redis)) == 2, "it has joined", 30)
            _load(one, "pair", 2)
            return _measure(one, "pair", second.cut)


def _kill_llama(model: ServedModel) -> Seen:
    port = free_port()
    command = [sys.executable, "-m", "bench.llama_server", str(model.path), str(port)]
    command += [str(model.slots), str(model.context_length)]
    with servers.child("llama-server", command, dict(os.environ)) as first:
        servers.wait_for(lambda: servers.answers(port, "/health"), first)
        server = Server("llama.cpp", port, servers.pid_of(first))
        with ExitStack() as again:

            def kill_and_start() -> None:
                faults.kill([server.pid])
                second = servers.child("llama-server-2", command, dict(os.environ))
                process = again.enter_context(second)
                servers.wait_for(lambda: servers.answers(port, "/health"), process)

            return _measure(server, model.name, kill_and_start)


def _load(service: Service, model: str, replicas: int) -> None:
    status, answer = load(
        service, model, replicas=replicas, slots=_STREAMS, context_length=_CONTEXT
    )
    if status != 200:
        raise RuntimeError(f"{model} was not loaded: {answer}")


def _wait_for_all(service: Service) -> None:
    """Until all replicas are ready and nothing runs, and agent and web processes are there."""

    def is_quiet() -> bool:
        found = records.read(service.redis)
        ready = [r.model for r in found if r.state is ReplicaState.READY and not r.busy_slots]
        return (
            (ready.count("pair"), ready.count("lone")) == (2, 1)
            and len(service.pids("worker.agent")) == 1
            and len(read_nodes(service.redis)) == 1
            and len(faults.web_processes(service)) == 2
            and servers.answers(service.port, "/readyz")
        )

    def is_whole() -> bool:
        try:
            return is_quiet()
        except redis.RedisError:
            return False

    wait_for(is_whole, "the service is whole again", PATIENCE_S)


def _measure(service: Service | Server, model: str, cause: Callable[[], object]) -> Seen:
    readers = [_Reader(service, Ask("streams", model, 97 * i, _TOKENS)) for i in range(_STREAMS)]
    threads = [threading.Thread(target=reader.read, daemon=True) for reader in readers]
    for thread in threads:
        thread.start()
    _wait_together([reader.has_begun.wait for reader in readers])
    cause()
    _wait_together([thread.join for thread in threads])
    outcomes = [judge(reader.ask, reader.answer)[0] for reader in readers]
    return Seen(
        gap_s=max(reader.longest_gap_s() for reader in readers),
        failed=sum(outcome is not Outcome.RIGHT for outcome in outcomes),
        asked_again=sum(reader.asked_again for reader in readers),
        resumed=sum(reader.resumed for reader in readers),
        wrong=sum(outcome is Outcome.WRONG for outcome in outcomes),
    )


def _wait_together(waits: list[Callable[[float], object]]) -> None:
    """Wait for all, `PATIENCE_S` together: a server that stalls holds each of them."""
    deadline = time.monotonic() + PATIENCE_S
    for wait in waits:
        wait(max(0.0, deadline - time.monotonic()))


def faults_table(found: dict[str, list[Seen]]) -> str:
    """One row per fault. Gaps in seconds, streams as numbers of all rounds together."""
    rows = [["fault", "streams", "gap median", "longest", "resumed", "asked again"]]
    rows[0] += ["not whole", "wrong tokens"]
    for fault, rounds in found.items():
        gaps = [seen.gap_s for seen in rounds]
        row = [fault, str(_STREAMS * len(rounds))]
        row += [f"{statistics.median(gaps):.2f}", f"{max(gaps):.2f}"]
        sums = (sum(getattr(seen, name) for seen in rounds) for name in _COUNTED)
        rows.append([*row, *map(str, sums)])
    return table(rows)


_COUNTED = ("resumed", "asked_again", "failed", "wrong")
