"""llmis against llama.cpp's own server: same model file, same loads, in turns."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import msgspec

from bench import measure, servers
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
_MAX_TRIES = 3
_DISTURBED_CORES = 0.1
SIDES = {"llmis": servers.llmis, "llama.cpp": servers.llama_server}


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

    def plan(self, model: ServedModel, server: Server) -> Plan:
        streams = [
            [msgspec.Raw(msgspec.json.encode(self._body(model, prompt))) for prompt in of_stream]
            for of_stream in self.prompts
        ]
        return Plan(port=server.port, server_pid=server.pid, streams=streams, pause_s=self.pause_s)

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
    """Prompts are numbers, as far apart as they can be."""
    total = num_streams * requests_per_stream
    numbers = [str(NUMBERS * i // total % NUMBERS) for i in range(total)]
    prompts = [numbers[i::num_streams] for i in range(num_streams)]
    return Load(f"counter, {num_streams} streams", prompts, max_tokens)


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
    model: ServedModel, loads: list[Load], rounds: int, say: Callable[[str], None]
) -> dict[str, dict[str, list[Numbers | None]]]:
    """Load label → server → numbers of each round, None where the server stalled. One server runs
    at a time, in turns."""
    found: dict[str, dict[str, list[Numbers | None]]] = {load.label: {} for load in loads}
    for number in range(1, rounds + 1):
        for name, start in SIDES.items():
            for load, numbers in _turn(start, model, loads, say):
                found[load.label].setdefault(name, []).append(numbers)
                what = "stalled"
                if numbers is not None:
                    what = (
                        f"{numbers.tokens_per_s:,.0f} tokens/s, TTFT {numbers.ttft_p50_ms:.1f} ms"
                    )
                say(f"  round {number}, {load.label}, {name}: {what}")
    return found


def _turn(
    start: Callable[[ServedModel], AbstractContextManager[Server]],
    model: ServedModel,
    loads: list[Load],
    say: Callable[[str], None],
) -> Iterator[tuple[Load, Numbers | None]]:
    """Each load on one server. One that stalls counts for nothing, and the server starts anew."""
    left = list(loads)
    while left:
        try:
            with start(model) as server:
                warm_up = Load("warm-up", [["1"]] * 4, max_tokens=16, counts=False)
                measure.run_load(warm_up.plan(model, server))
                while left:
                    yield left[0], _run(left[0], model, server)
                    left.pop(0)
        except Stalled as exc:
            say(f"  {exc}")
            yield left.pop(0), None


def _run(load: Load, model: ServedModel, server: Server) -> Numbers:
    """Run a load again when something else kept the machine busy; the quietest run counts."""
    runs: list[Numbers] = []
    while len(runs) < _MAX_TRIES and all(run.other_cores > _DISTURBED_CORES for run in runs):
        wait_for_quiet()
        result = measure.run_load(load.plan(model, server))
        load.check(result, server.name)
        runs.append(measure.numbers(result, _counted if load.counts else average_tokens))
    return min(runs, key=lambda run: run.other_cores)


def _counted(_stream: Stream, text: str) -> float:
    """The counter model puts one space before each number, and a number is a token."""
    return text.count(" ")


def average_tokens(stream: Stream, _text: str) -> float:
    """Which chunk holds how many tokens is not known: the stream's mean."""
    return stream.completion_tokens / len(stream.chunk_texts)
