"""Where a step's time goes."""

import time
from typing import Any

from tools.gpu.questions.parts import generator_of, greedy, prompts_of


def cpu_share_of_a_step() -> dict[str, Any]:
    """How much of a decode step is Python and sampling on the CPU, by batch?"""
    import torch
    from exllamav2.generator import ExLlamaV2DynamicJob, ExLlamaV2Sampler

    from worker.engines.exllamav2.attention.attach import attach

    attach("auto")
    generator = generator_of("1b-gptq", cache_tokens=65536, batch=64)
    found = {}
    for batch in (1, 32, 33, 64):
        for prompt in prompts_of("1b", (100,) * batch):
            generator.enqueue(
                ExLlamaV2DynamicJob(
                    input_ids=torch.tensor([prompt]),
                    max_new_tokens=400,
                    gen_settings=ExLlamaV2Sampler.Settings.greedy(),
                )
            )
        for _ in range(250):  # graphs are captured at the 205th call of a shape
            generator.iterate()
        torch.cuda.synchronize()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        wall, cpu = time.perf_counter(), time.process_time()
        begin.record()
        for _ in range(100):
            generator.iterate()
        end.record()
        torch.cuda.synchronize()
        found[str(batch)] = {
            "step_ms": round(10 * (time.perf_counter() - wall), 3),
            "cpu_ms": round(10 * (time.process_time() - cpu), 3),
            "events_ms": round(begin.elapsed_time(end) / 100, 3),
        }
        generator.clear_queue()
    return found


def logits_copy() -> dict[str, Any]:
    """What does the copy of a batch's logits to the CPU cost, pageable as it is, and pinned?

    64 rows of 128,256 values in float32: 33 MB. Expected: several ms against 0.6."""
    import torch

    logits = torch.randn(64, 1, 128_256, device="cuda")
    found = {}
    for name, is_pinned in (("pageable_ms", False), ("pinned_ms", True)):
        target = torch.empty(logits.shape, pin_memory=is_pinned)
        times = []
        for _ in range(20):
            torch.cuda.synchronize()
            started = time.perf_counter()
            target.copy_(logits, non_blocking=True)
            torch.cuda.synchronize()
            times.append(time.perf_counter() - started)
        found[name] = round(1000 * sorted(times)[10], 3)
    return found


def load_time() -> dict[str, Any]:
    """How long do models take to load, and to their first token (kernels, graphs)?"""
    from worker.engines.exllamav2.attention.attach import attach

    attach("auto")
    found = {}
    for kind in ("tiny", "1b-gptq"):
        name = kind.partition("-")[0]
        started = time.monotonic()
        generator = generator_of(kind)
        loaded_s = time.monotonic() - started
        greedy(generator, prompts_of(name, (300,)), 2)
        first_s = time.monotonic() - started - loaded_s
        found[kind] = {"load_s": round(loaded_s, 2), "two_tokens_s": round(first_s, 2)}
        generator.model.unload()
    return found
