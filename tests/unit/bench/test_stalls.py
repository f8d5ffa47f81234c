"""What the benchmarks do with a server that stalls: the time of every phase has an end."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from bench import __main__ as main
from bench import commands, faults, gpu_servers, measure, report, scenarios, servers
from bench.bare_exllamav2 import BareLoad
from bench.commands import Session
from bench.load import Plan
from bench.measure import Numbers, Stalled
from bench.scenarios import Effort, Load
from bench.servers import ServedModel, Server
from tests.conftest import free_port
from tests.unit.bench.results import numbers

_HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
_EVENT = b'data: {"id": "r", "choices": [{"index": 0, "text": " 1", "finish_reason": null}]}\n\n'
_CHUNK = b"%x\r\n%s\r\n" % (len(_EVENT), _EVENT)
_MODEL = ServedModel("m", Path("m.gguf"), 2, 64)


@contextmanager
def _peer(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """The port of a server that handles each connection in this way."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=answer, args=(connection,), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def _silent(connection: socket.socket) -> None:
    connection.recv(65536)
    connection.sendall(_HEAD + _CHUNK)
    time.sleep(60)


def _endless(connection: socket.socket) -> None:
    connection.recv(65536)
    connection.sendall(_HEAD)
    try:
        while True:
            connection.sendall(_CHUNK)
            time.sleep(0.01)
    except OSError:
        pass


@pytest.mark.parametrize("answer", [_silent, _endless])
def test_a_load_ends_at_its_limit(answer: Callable[[socket.socket], None]) -> None:
    with _peer(answer) as port:
        body = msgspec.Raw(b"{}")
        plan = Plan(port=port, server_pid=os.getpid(), streams=[[body], [body]], limit_s=0.5)
        with pytest.raises(Stalled, match=r"2 streams have not ended after 0\.5 s"):
            measure.run_load(plan)


def test_a_request_that_is_refused_is_no_stall() -> None:
    plan = Plan(port=free_port(), server_pid=os.getpid(), streams=[[msgspec.Raw(b"{}")]])
    with pytest.raises(RuntimeError, match="the load failed") as failed:
        measure.run_load(plan)
    assert not isinstance(failed.value, Stalled)


def test_a_server_that_does_not_get_ready_has_stalled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "START_LIMIT_S", 0.1)
    with (
        servers.child(
            "test-sleeper", [sys.executable, "-c", "import time; time.sleep(60)"], dict(os.environ)
        ) as child,
        pytest.raises(Stalled, match=r"not ready after 0\.1 s"),
    ):
        servers.wait_for(lambda: not child.is_running and False, child)


@pytest.fixture
def sides(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Two sides without a server. The loads of `stalling`, as (server, label), stall."""
    world = SimpleNamespace(starts=[], stalling=set(), said=[])

    def side(name: str) -> Callable[[ServedModel], Any]:
        @contextmanager
        def start(_: ServedModel) -> Iterator[Server]:
            world.starts.append(name)
            yield Server(name, 0, 0)

        return start

    def run(load: Load, _: ServedModel, server: Server, effort: Effort) -> Numbers:
        if (server.name, load.label) in world.stalling:
            raise Stalled("2 streams have not ended after 180 s")
        return numbers(tokens_per_s=100.0)

    world.servers = {name: side(name) for name in ("llmis", "llama.cpp")}
    monkeypatch.setattr(scenarios, "sides", lambda against: world.servers)
    monkeypatch.setattr(scenarios, "_run", run)
    monkeypatch.setattr(measure, "run_load", lambda plan: None)
    return world


_LOADS = [Load(label, [["1"]], 8) for label in ("one", "two", "three")]


def test_a_load_that_stalls_counts_for_nothing_and_the_others_go_on(sides: SimpleNamespace) -> None:
    sides.stalling.add(("llama.cpp", "two"))
    found = scenarios.side_by_side(
        _MODEL, _LOADS, Effort(rounds=2), sides.servers, sides.said.append
    )
    assert found["two"] == {"llmis": [numbers(tokens_per_s=100.0)] * 2, "llama.cpp": [None, None]}
    for label in ("one", "three"):
        assert found[label]["llama.cpp"] == [numbers(tokens_per_s=100.0)] * 2
    assert sides.starts == ["llmis", "llama.cpp", "llama.cpp"] * 2, "after a stall it starts anew"


def test_the_table_says_what_stalled_and_what_the_limits_were(
    sides: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    sides.stalling.add(("llama.cpp", "two"))
    monkeypatch.setattr(commands, "scenario", lambda name, session: (_MODEL, _LOADS[:2]))
    session = Session(SimpleNamespace(), Effort(rounds=2))  # type: ignore[arg-type]
    text = commands.COMMANDS["counter"](session)
    title, note, *rows = text.splitlines()
    assert "a start had 120 s, a load 180 s" in title
    assert note == "two, llama.cpp: 2 of 2 rounds stalled; they count for nothing"
    assert [row.split()[:3] for row in rows[1:]] == [
        ["one", "llmis", "100"],
        ["llama.cpp", "100", "1.0"],
        ["llmis", "/", "llama.cpp"],
        ["two", "llmis", "100"],
        ["llama.cpp", "stalled"],
    ]
    assert msgspec.json.encode(session.content)


def test_the_median_is_of_the_rounds_that_ended() -> None:
    rounds = [numbers(tokens_per_s=1.0), None, numbers(tokens_per_s=3.0), numbers(tokens_per_s=5.0)]
    assert measure.whole_medians(rounds) == numbers(tokens_per_s=3.0)
    assert measure.whole_medians([None]) is None


@pytest.mark.parametrize(
    ("error", "said", "status"),
    [
        (Stalled("llama-server was not ready after 120 s"), "stalled: llama-server was not", 0),
        (RuntimeError("wrong answer of llmis after '1'"), "failed: wrong answer of llmis", 1),
    ],
)
def test_a_benchmark_that_ends_early_does_not_take_the_others_with_it(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    said: str,
    status: int,
) -> None:
    def ends(*_: object) -> str:
        raise error

    monkeypatch.setattr(main, "COMMANDS", {"loading": ends, "memory": lambda _: "memory: 1 KiB"})
    monkeypatch.setattr(sys, "argv", ["bench", "loading", "memory", "--quick"])
    monkeypatch.setattr(main.signal, "signal", lambda *_: None)
    assert main.main() == status
    output = capsys.readouterr().out
    assert f"loading: {said}" in output
    assert "memory: 1 KiB" in output


def test_the_streams_of_a_fault_are_waited_for_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "PATIENCE_S", 0.3)
    with _peer(_silent) as port:
        server = Server("llama.cpp", port, os.getpid())
        started = time.monotonic()
        seen = faults._measure(server, "m", lambda: None)
        took_s = time.monotonic() - started
    assert took_s < 4 * 0.3, "not for each of the four in turn"
    assert seen.failed == 4
    assert 0.2 < seen.gap_s < took_s, "the gap of a stream that has not gone on is not over"


def test_a_table_without_stalls_has_a_ratio() -> None:
    rows = report.side_by_side_table(
        {"a": {"llmis": numbers(tokens_per_s=2.0), "llama.cpp": numbers(tokens_per_s=4.0)}}
    )
    assert rows.splitlines()[-1].split()[:4] == ["llmis", "/", "llama.cpp", "0.50"]


@pytest.mark.parametrize(
    ("code", "error", "said"),
    [
        ("import time; time.sleep(60)", Stalled, r"gave no answer in 0\.2 s"),
        ("import sys; sys.exit('no GPU')", RuntimeError, "the bare generator ended"),
    ],
)
def test_the_bare_generator_has_a_limit_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, error: type[Exception], said: str
) -> None:
    limit_s = 0.2 if error is Stalled else 60.0
    monkeypatch.setattr(gpu_servers, "_ASK_LIMIT_S", limit_s)
    log = tmp_path / "bare.log"
    log.write_text("")
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with pytest.raises(error, match=said):
        gpu_servers.BareProcess(process, log).ask(BareLoad(streams=[], max_tokens=1))
    process.communicate()
