"""A run: a service, a load, faults by a seeded schedule, and the checks at the end."""

import random
import shutil
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import redis
from msgspec import Struct

from tests.chaos import checks
from tests.chaos.clients import Load
from tests.chaos.faults import Fault, schedule
from tests.chaos.ledger import Ledger
from tests.chaos.pauses import PauseReport
from tests.conftest import Service, running_service, wait_for
from tests.support.admin_client import load

_SETTINGS = """\
web_workers = 2
job_ttl_s = 30
request_timeout_s = 180
"""
_WARM_UP_S = 6.0
_PAUSE_S = (2.0, 6.0)
"""Between two faults of a run for a time, at least and at most."""
_NUM_BETWEEN = 8
"""Requests that end between two faults of a run of so many faults."""
_FAULT_WAIT_S = 120.0
"""How long such a run waits for these requests, and for something that a fault can hit."""


class Report(Struct, kw_only=True):
    seconds: float
    seed: int
    requests: dict[str, dict[str, int]]
    """Kind → final outcome → number."""
    tries: dict[str, int]
    """Outcome of each single try → number."""
    refusals: dict[str, int]
    """Code → number of tries."""
    num_resumed: int
    num_left: int
    """Jobs that their clients have left, or that lost replica and reader: they expire."""
    faults: dict[str, int]
    pauses: PauseReport
    memory_before_mb: dict[str, float]
    memory_after_mb: dict[str, float]
    problems: list[str]
    """Without those of the pauses, whose limits hold on a quiet machine."""


_Meanwhile = Callable[[Service, Ledger, random.Random, Callable[[str], None]], None]
"""What is done to a service under load."""


def run(
    meanwhile: _Meanwhile, seed: int, say: Callable[[str], None], num_clients: int = 10
) -> Report:
    """Run with `faults_for` a time or with `faults_of` a number.

    The folder of a run with problems is kept: its logs tell what happened.
    """
    folder = Path(tempfile.mkdtemp(prefix="llmis-chaos-"))
    with running_service(folder, extra=_SETTINGS) as service:
        report = _run(service, meanwhile, seed, say, num_clients)
    if report.problems:
        say(f"logs: {folder / 'logs'}")
    else:
        shutil.rmtree(folder)
    return report


def _run(
    service: Service, meanwhile: _Meanwhile, seed: int, say: Callable[[str], None], num_clients: int
) -> Report:
    status, answer = load(service, "pair", replicas=2, slots=8, context_length=16384)
    assert status == 200, answer
    warm_up = Ledger()
    _load_for(service, warm_up, num_clients, seed, lambda: time.sleep(_WARM_UP_S))
    problems = [*warm_up.problems, *checks.wait_for_quiet(service)]
    memory_before, processes = checks.memory_by_role(service), checks.num_processes(service)
    say(f"warm: {sum(warm_up.requests.values())} requests; {processes}")

    ledger, begun_at = Ledger(), time.monotonic()
    rng = random.Random(seed)
    _load_for(service, ledger, num_clients, seed + 1, lambda: meanwhile(service, ledger, rng, say))
    seconds = time.monotonic() - begun_at
    say("the load is over")
    for pause in ledger.long_pauses:
        say(pause)
    problems += ledger.problems
    problems += [f"a request has no end: {request}" for request in ledger.open_requests]
    problems += checks.wait_for_quiet(service, processes)
    problems += checks.final_problems(service, memory_before)
    return _report(service, ledger, seconds, seed, memory_before, problems)


def _load_for(
    service: Service, ledger: Ledger, num_clients: int, seed: int, meanwhile: Callable[[], None]
) -> None:
    load_ = Load(service, ledger, num_clients, seed)
    load_.start()
    try:
        meanwhile()
    finally:
        load_.stop()


def faults_for(seconds: float, only: str = "") -> _Meanwhile:
    """Faults with random pauses, for a time; `only` as in `schedule`."""

    def cause(
        service: Service, ledger: Ledger, rng: random.Random, say: Callable[[str], None]
    ) -> None:
        deadline = time.monotonic() + seconds
        for fault in schedule(rng, only):
            time.sleep(rng.uniform(*_PAUSE_S))
            if time.monotonic() > deadline:
                return
            if not _cause(fault, service, ledger, rng, say):
                say(f"{fault.name}: nothing there to hit")

    return cause


def faults_of(number: int) -> _Meanwhile:
    """So many faults, each of which hits something; requests end between any two of them."""

    def cause(
        service: Service, ledger: Ledger, rng: random.Random, say: Callable[[str], None]
    ) -> None:
        for fault in islice(schedule(rng), number):
            _wait_for_ends(ledger, _NUM_BETWEEN)
            deadline = time.monotonic() + _FAULT_WAIT_S
            while not _cause(fault, service, ledger, rng, say):
                assert time.monotonic() < deadline, f"nothing there to hit: {fault.name}"
                _wait_for_ends(ledger, 1)

    return cause


def _wait_for_ends(ledger: Ledger, number: int) -> None:
    """Wait until so many more requests have ended."""
    wanted = ledger.num_ended + number
    wait_for(lambda: ledger.num_ended >= wanted, f"{number} requests end", _FAULT_WAIT_S)


def _cause(
    fault: Fault, service: Service, ledger: Ledger, rng: random.Random, say: Callable[[str], None]
) -> bool:
    """Returns whether there was anything to hit."""
    if fault.hits_web:
        ledger.expect_cuts()  # before, not after: its clients may be quicker
    try:
        is_hit = fault.cause(service, rng)
    except (redis.RedisError, ConnectionError, ProcessLookupError):
        is_hit = False  # the fault before this one has hit Redis or the process: it is not back yet
    if is_hit:
        ledger.note_fault(fault.name)
        say(f"{fault.name}; {dict(ledger.tries)}")
    if ledger.problems:
        say(f"  {len(ledger.problems)} problems so far, the last one: {ledger.problems[-1]}")
    return is_hit


def _report(
    service: Service,
    ledger: Ledger,
    seconds: float,
    seed: int,
    memory_before: dict[str, float],
    problems: list[str],
) -> Report:
    requests: dict[str, dict[str, int]] = {}
    for (kind, outcome), number in sorted(ledger.requests.items()):
        requests.setdefault(kind, {})[outcome] = number
    return Report(
        seconds=seconds,
        seed=seed,
        requests=requests,
        tries=dict(ledger.tries),
        refusals=dict(ledger.refusals),
        num_resumed=ledger.num_resumed,
        num_left=checks.num_left(service),
        faults=dict(ledger.faults),
        pauses=PauseReport.of(ledger.pauses_s),
        memory_before_mb=_megabytes(memory_before),
        memory_after_mb=_megabytes(checks.memory_by_role(service)),
        problems=problems,
    )


def _megabytes(sizes: dict[str, float]) -> dict[str, float]:
    return {role: round(size / 1e6, 1) for role, size in sizes.items()}


def tables(report: Report) -> str:
    """The report as Markdown."""
    outcomes = sorted({outcome for by_kind in report.requests.values() for outcome in by_kind})
    lines = [
        f"| client | {' | '.join(outcomes)} |",
        f"|---|{'---|' * len(outcomes)}",
        *(
            f"| {kind} | {' | '.join(str(by_kind.get(o, 0)) for o in outcomes)} |"
            for kind, by_kind in report.requests.items()
        ),
        "",
        "| fault | times |",
        "|---|---|",
        *(f"| {fault} | {number} |" for fault, number in sorted(report.faults.items())),
        "",
        str(report.pauses),
        "",
        "| memory of | before, MB | after, MB |",
        "|---|---|---|",
        *(
            f"| {role} | {before} | {report.memory_after_mb.get(role, '-')} |"
            for role, before in report.memory_before_mb.items()
        ),
    ]
    return "\n".join(lines)
