"""llmis against llama.cpp's own server: same model file, same loads, in turns."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import msgspec

from bench import measure, servers
from bench.checkout import HERE, Checkout
from bench.load import LoadResult, Plan
from bench.measure import Numbers, Stalled
from bench.processes import wait_for_quiet
from bench.servers import ServedModel, Server
from bench.sse import Stream
from tests.support.counter_model import NUMBERS, expected_text

_OPENINGS = (
    "The history of the city of Rome begins",
    "To bake a loaf of bread at home, you first",
    "The difference between a lake and a river is",
    "Once upon a time, in a small village by the sea,",
    "The most important rule of chess is",
    "A computer program is a list of instructions that",
    "In the winter of 1911, two expeditions",
    "The heart is a muscle that pumps blood through",
)
_DISTURBED_CORES = 0.1
Start = Callable[[ServedModel], AbstractContextManager[Server]]


@dataclass(frozen=True)
class Effort:
    """How much is done for a number."""

    rounds: int = 5
    tries: int = 3
    """Of a load while something else keeps the machine busy; the quietest counts."""
    patience_s: float = 30.0
    """Before each load, for the machine to become quiet."""


def sides(against: Checkout | None = None) -> dict[str, Start]:
    """What takes turns: this version, the one it is set against, llama.cpp's server."""
    versions = [HERE] if against is None else [HERE, against]
    ours: dict[str, Start] = {v.label: partial(servers.llmis, checkout=v) for v in versions}
    return ours | {"llama.cpp": servers.llama_server}


@dataclass(frozen=True)
class Load:
    """Streams that run at the same time; each sends its prompts one after the other."""

    label: str
    prompts: list[list[str]]
    max_tokens: int
    pause_s: float = 0.0
    """Idle time before each request."""
    counts: bool = True
    """The prompts are numbers for the counter model, whose answers are known."""
    in_bursts: bool = False
    """All streams send at the same moment, and again when all of them have ended."""

    def plan(self, model: ServedModel, server: Server) -> Plan:
        streams = [
            [msgspec.Raw(msgspec.json.encode(self._body(model, prompt))) for prompt in of_stream]
            for of_stream in self.prompts
        ]
        return Plan(
            port=server.port,
            server_pid=server.pid,
            streams=streams,
            pause_s=self.pause_s,
            in_bursts=self.in_bursts,
        )

    @property
    def num_bursts(self) -> int:
        return len(self.prompts[0]) if self.in_bursts else 1

    def _body(self, model: ServedModel, prompt: str) -> dict[str, object]:
        return {
            "model": model.name,
            "prompt": prompt,
            "max_tokens": self.max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }

    def check(self, result: LoadResult, server: str) -> None:
        """Raises RuntimeError for a wrong answer: the speed of those is worth nothing."""
        if not self.counts:
            return
        prompts = [prompt for of_stream in self.prompts for prompt in of_stream]
        for prompt, stream in zip(prompts, result.streams, strict=True):
            expected = expected_text(int(prompt), self.max_tokens)
            if stream.text != expected or stream.completion_tokens != self.max_tokens:
                raise RuntimeError(
                    f"wrong answer of {server} after {prompt!r}: "
                    f"{stream.completion_tokens} tokens, {stream.text[:200]!r}..."
                )


def counter_load(num_streams: int, max_tokens: int, requests_per_stream: int) -> Load:
    prompts = _number_prompts(num_streams, requests_per_stream)
    return Load(f"counter, {num_streams} streams", prompts, max_tokens)


def request_load(num_clients: int, requests_per_client: int) -> Load:
    """Streamed requests of one token: what a request costs besides its tokens."""
    prompts = _number_prompts(num_clients, requests_per_client)
    label = f"{num_clients} clients, {requests_per_client} requests of one token each"
    return Load(label, prompts, max_tokens=1)


def burst_load(num_requests: int, num_bursts: int) -> Load:
    prompts = _number_prompts(num_requests, num_bursts)
    label = f"{num_requests} requests at once, {num_bursts} times"
    return Load(label, prompts, max_tokens=8, in_bursts=True)


def _number_prompts(num_streams: int, requests_per_stream: int) -> list[list[str]]:
    """Numbers for the counter model, as far apart as they can be, by stream."""
    total = num_streams * requests_per_stream
    numbers = [str(NUMBERS * i // total % NUMBERS) for i in range(total)]
    return [numbers[i::num_streams] for i in range(num_streams)]


def ttft_load(num_requests: int) -> Load:
    """Single requests on an idle service."""
    prompts = [[str(31 * i % NUMBERS) for i in range(num_requests)]]
    return Load(f"idle, {num_requests} single requests", prompts, max_tokens=8, pause_s=0.1)


def demo_load(num_streams: int, requests_per_stream: int) -> Load:
    prompts = [
        [_OPENINGS[(i + j) % len(_OPENINGS)] for j in range(requests_per_stream)]
        for i in range(num_streams)
    ]
    return Load(f"demo, {num_streams} streams", prompts, max_tokens=64, counts=False)


def side_by_side(
    model: ServedModel,
    loads: list[Load],
    effort: Effort,
    servers_of: Mapping[str, Start],
    say: Callable[[str], None],
) -> dict[str, dict[str, list[Numbers | None]]]:
    """Load label → server → numbers of each round, None where the server stalled. One server runs
    at a time, in turns."""
    found: dict[str, dict[str, list[Numbers | None]]] = {load.label: {} for load in loads}
    for number in range(1, effort.rounds + 1):
        for name, start in servers_of.items():
            for load, numbers in _turn(start, model, loads, effort, say):
                found[load.label].setdefault(name, []).append(numbers)
                what = "stalled"
                if numbers is not None:
                    what = (
                        f"{numbers.tokens_per_s:,.0f} tokens/s, TTFT {numbers.ttft_p50_ms:.1f} ms"
                    )
                say(f"  round {number}, {load.label}, {name}: {what}")
    return found


def _turn(
    start: Start, model: ServedModel, loads: list[Load], effort: Effort, say: Callable[[str], None]
) -> Iterator[tuple[Load, Numbers | None]]:
    """Each load on one server. One that stalls counts for nothing, and the server starts anew."""
    left = list(loads)
    while left:
        try:
            with start(model) as server:
                warm_up(model, server)
                while left:
                    yield left[0], _run(left[0], model, server, effort)
                    left.pop(0)
        except Stalled as exc:
            say(f"  {exc}")
            yield left.pop(0), None


def warm_up(model: ServedModel, server: Server) -> None:
    load = Load("warm-up", [["1"]] * 4, max_tokens=16, counts=False)
    measure.run_load(load.plan(model, server))


def _run(load: Load, model: ServedModel, server: Server, effort: Effort) -> Numbers:
    """Run a load again when something else kept the machine busy; the quietest run counts."""
    runs: list[Numbers] = []
    while len(runs) < effort.tries and all(run.other_cores > _DISTURBED_CORES for run in runs):
        wait_for_quiet(effort.patience_s)
        result = measure.run_load(load.plan(model, server))
        load.check(result, server.name)
        tokens_of = _counted if load.counts else average_tokens
        runs.append(measure.numbers(result, tokens_of, load.num_bursts))
    return min(runs, key=lambda run: run.other_cores)


def _counted(_stream: Stream, text: str) -> float:
    """The counter model puts one space before each number, and a number is a token."""
    return text.count(" ")


def average_tokens(stream: Stream, _text: str) -> float:
    """Which chunk holds how many tokens is not known: the stream's mean."""
    return stream.completion_tokens / len(stream.chunk_texts)
