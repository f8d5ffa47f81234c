"""ExLlamaV2's own generator in one process: no service around it, nothing but `iterate()`.

The yardstick of bench/gpu.py. Reads `BareSettings` and then one `BareLoad` a line on stdin, and
answers each with a line on stdout: first {"attention": …}, then `bench.load.LoadResult`, so that
the same arithmetic makes the numbers. The prompts come as token ids. Ends with its stdin.

    python -m bench.bare_exllamav2 < lines
"""

import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import Struct

from bench.load import LoadResult
from bench.processes import busy_seconds
from bench.sse import Stream


class BareSettings(Struct, kw_only=True):
    folder: str
    attention: str
    """auto, flash-attn, triton or sdpa: the same choice as the service's."""
    slots: int
    context_length: int
    """Tokens a slot; the cache holds all slots."""


class BareLoad(Struct, kw_only=True):
    streams: list[list[list[int]]]
    """Prompts by stream. Each stream runs its own one after the other, all streams at once."""
    max_tokens: int


@dataclass(slots=True)
class _Running:
    stream: Stream
    rest: Iterator[tuple[int, list[int]]]


class Bare:
    def __init__(self, settings: BareSettings) -> None:
        from exllamav2 import ExLlamaV2, ExLlamaV2Cache, ExLlamaV2Config, ExLlamaV2Tokenizer
        from exllamav2.generator import ExLlamaV2DynamicGenerator

        from worker.engines.exllamav2.attention.attach import attach

        self.attention = attach(settings.attention).name
        config = ExLlamaV2Config(settings.folder)
        config.arch_compat_overrides()
        config.max_seq_len = settings.context_length
        config.max_output_len = 16
        model = ExLlamaV2(config)
        model.load()
        cache = ExLlamaV2Cache(model, max_seq_len=settings.context_length * settings.slots)
        tokenizer = ExLlamaV2Tokenizer(config, lazy_init=False)
        self._generator = ExLlamaV2DynamicGenerator(
            model,
            cache,
            tokenizer,
            max_batch_size=settings.slots,
            max_chunk_size=2048,
            # As the service has it without a draft; 8 would reserve as many rows of logits.
            max_q_size=1,
        )
        self._stop = [tokenizer.eos_token_id]

    def run(self, load: BareLoad) -> LoadResult:
        streams: dict[tuple[int, int], Stream] = {}
        cpu_before_s, machine_before_s = time.process_time(), busy_seconds()
        for index, prompts in enumerate(load.streams):
            self._enqueue_next(index, iter(enumerate(prompts)), load.max_tokens, streams)
        while self._generator.num_remaining_jobs():
            for result in self._generator.iterate():
                if result["stage"] == "streaming":
                    self._collect(result, load.max_tokens, streams)
        return LoadResult(
            streams=[streams[key] for key in sorted(streams)],
            server_cpu_before={},
            server_cpu_after={"bare": time.process_time() - cpu_before_s},
            load_cpu_s=0.0,
            machine_cpu_s=busy_seconds() - machine_before_s,
        )

    def _enqueue_next(
        self,
        index: int,
        rest: Iterator[tuple[int, list[int]]],
        max_tokens: int,
        streams: dict[tuple[int, int], Stream],
    ) -> None:
        import torch
        from exllamav2.generator import ExLlamaV2DynamicJob, ExLlamaV2Sampler

        number, prompt = next(rest, (-1, []))
        if number < 0:
            return
        stream = Stream(
            sent_at=time.monotonic(), ended_at=0.0, chunk_at=[], chunk_texts=[], completion_tokens=0
        )
        streams[index, number] = stream
        job = ExLlamaV2DynamicJob(
            input_ids=torch.tensor([prompt]),
            max_new_tokens=max_tokens,
            gen_settings=ExLlamaV2Sampler.Settings.greedy(),
            stop_conditions=self._stop,
            identifier=(index, _Running(stream, rest)),
        )
        self._generator.enqueue(job)

    def _collect(
        self, result: dict[str, Any], max_tokens: int, streams: dict[tuple[int, int], Stream]
    ) -> None:
        index, running = result["identifier"]
        now = time.monotonic()
        text = result.get("text", "")
        if text:
            running.stream.chunk_at.append(now)
            running.stream.chunk_texts.append(text)
        if result["eos"]:
            running.stream.ended_at = now
            running.stream.completion_tokens = int(result["new_tokens"])
            self._enqueue_next(index, running.rest, max_tokens, streams)


def main() -> None:
    # The libraries print on stdout: what is ours goes out another way.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    lines = sys.stdin.buffer
    bare = Bare(msgspec.json.decode(lines.readline(), type=BareSettings))
    answers.write(msgspec.json.encode({"attention": bare.attention}) + b"\n")
    answers.flush()
    for line in lines:
        result = bare.run(msgspec.json.decode(line, type=BareLoad))
        answers.write(msgspec.json.encode(result) + b"\n")
        answers.flush()


if __name__ == "__main__":
    main()
