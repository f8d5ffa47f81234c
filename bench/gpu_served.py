"""The same load on the whole service and on the bare generator, and on two kinds of attention.

One side holds the GPU at a time, in turns. Every load runs twice: the first run lets Triton
compile, ExLlamaV2 choose its kernels and capture its graphs (at the 205th call of a shape), the
second is measured. Prompts are random and never the same, so that no cache knows them.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import numpy as np

from bench import gpu_servers, measure
from bench.bare_exllamav2 import BareLoad
from bench.gpu_servers import GpuModel
from bench.load import LoadResult, Plan
from bench.measure import Numbers
from bench.scenarios import average_tokens
from bench.servers import Server
from tests.gpu.models import vocabulary

_PROMPT_TOKENS = 200
_NEW_TOKENS = 384
_LONG_PROMPT_TOKENS = 3500
_seeds = itertools.count(1)

Found = dict[str, dict[str, list[Numbers]]]
"""Load label → side → numbers of each round; filled while the loads run."""


@dataclass(frozen=True)
class TokenLoad:
    """Streams that run at the same time; prompts of random words, greedy answers."""

    label: str
    num_streams: int
    requests_per_stream: int
    prompt_tokens: int
    max_tokens: int

    def prompts(self, model: GpuModel) -> list[list[list[int]]]:
        """New ones at every call, by stream."""
        words = vocabulary(model.kind.partition("-")[0])
        rng = np.random.default_rng(next(_seeds))
        shape = (self.num_streams, self.requests_per_stream, self.prompt_tokens)
        found: list[list[list[int]]] = rng.integers(words.first_word, words.size, shape).tolist()
        return found

    def check(self, result: LoadResult) -> None:
        """Raises RuntimeError unless every stream has all its tokens: the models never end."""
        wrong = [
            s.completion_tokens for s in result.streams if s.completion_tokens != self.max_tokens
        ]
        if wrong or len(result.streams) != self.num_streams * self.requests_per_stream:
            raise RuntimeError(
                f"{self.label}: {len(wrong)} of {len(result.streams)} streams do not have "
                f"{self.max_tokens} tokens, the first {wrong[:1]}"
            )


def token_load(model: GpuModel, num_streams: int, *, is_short: bool) -> TokenLoad:
    requests = 1 if is_short or num_streams > 8 else 2
    assert model.context_length > _PROMPT_TOKENS + _NEW_TOKENS, "no stream ends for want of room"
    max_tokens = 64 if is_short else _NEW_TOKENS
    return TokenLoad(f"{num_streams} streams", num_streams, requests, _PROMPT_TOKENS, max_tokens)


def long_load(model: GpuModel, num_streams: int) -> TokenLoad:
    """As long as the model's context: where attention weighs most."""
    prompt_tokens = min(_LONG_PROMPT_TOKENS, model.context_length - 200)
    label = f"{num_streams} streams, prompts of {prompt_tokens}"
    return TokenLoad(label, num_streams, 1, prompt_tokens, 128)


def against_bare(
    model: GpuModel, loads: list[TokenLoad], rounds: int, found: Found, say: Callable[[str], None]
) -> None:
    """The sides are called bare and llmis. `found` has an entry for every load."""
    for number in range(1, rounds + 1):
        with gpu_servers.bare(model) as process:
            for load in loads:

                def run_bare(load: TokenLoad = load) -> LoadResult:
                    streams = load.prompts(model)
                    return process.run(BareLoad(streams=streams, max_tokens=load.max_tokens))

                _measure("bare", number, load, run_bare, found, say)
        _run_llmis("llmis", number, model, loads, found, say)


def attentions(
    model: GpuModel, loads: list[TokenLoad], rounds: int, found: Found, say: Callable[[str], None]
) -> None:
    """The sides are called llmis triton and llmis sdpa."""
    for number in range(1, rounds + 1):
        for attention in ("triton", "sdpa"):
            side = f"llmis {attention}"
            _run_llmis(side, number, model.with_attention(attention), loads, found, say)


def plan(load: TokenLoad, model: GpuModel, server: Server, name: str = "") -> Plan:
    """`name` of the model in the service, if that is not its kind."""
    name = name or model.kind
    bodies = [
        [msgspec.Raw(msgspec.json.encode(_body(name, load, prompt))) for prompt in of_stream]
        for of_stream in load.prompts(model)
    ]
    return Plan(port=server.port, server_pid=server.pid, streams=bodies)


def _body(name: str, load: TokenLoad, prompt: list[int]) -> dict[str, object]:
    return {
        "model": name,
        "prompt": prompt,
        "max_tokens": load.max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def _run_llmis(
    side: str,
    number: int,
    model: GpuModel,
    loads: list[TokenLoad],
    found: Found,
    say: Callable[[str], None],
) -> None:
    with gpu_servers.llmis(model) as server:
        for load in loads:

            def run_served(load: TokenLoad = load) -> LoadResult:
                return measure.run_load(plan(load, model, server))

            _measure(side, number, load, run_served, found, say)


def _measure(
    side: str,
    number: int,
    load: TokenLoad,
    run: Callable[[], LoadResult],
    found: Found,
    say: Callable[[str], None],
) -> None:
    load.check(run())
    result = run()
    load.check(result)
    numbers = measure.numbers(result, average_tokens)
    found[load.label].setdefault(side, []).append(numbers)
    say(
        f"  round {number}, {load.label}, {side}: {numbers.tokens_per_s:,.0f} tokens/s, "
        f"TTFT {numbers.ttft_p50_ms:.1f} ms, ITL {numbers.itl_p50_ms:.2f} ms"
    )
