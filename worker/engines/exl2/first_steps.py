"""What a model does before its first request: compile, try out, and prove that the memory does.

Runs in the loading thread, with nothing else on the devices.
"""

import importlib
import logging
import time
from typing import Any

import torch

from shared.errors import EngineError
from shared.messages import Sampling
from worker.engines.exl2 import sampling
from worker.engines.exl2.failures import Failure, classify
from worker.engines.exl2.limits import BatchLimits
from worker.engines.exl2.loading import ATTACH, MIN_NGRAM_CONTEXT, Loaded, Model
from worker.engines.exl2.pages import PAGE_TOKENS
from worker.engines.exl2.warm_up import warm_up

_log = logging.getLogger(__name__)


def first_generator(loaded: Loaded, limits: BatchLimits) -> Any:
    """Make the generator, warmed up: the kernels try out their variants in their first calls;
    and what fails at all, fails now. Raises EngineError."""
    try:
        if loaded.attention == "triton":
            for part in (loaded.main, loaded.draft):
                if part is not None:
                    _compile_attention(part)
        generator = loaded.new_generator(limits.max_batch, limits.chunk_tokens)
        generator.warmup()
        _read_the_largest_piece(loaded, generator)
    except Exception as exc:
        if classify(exc) is Failure.OUT_OF_MEMORY:
            raise EngineError(
                "There is GPU memory for the model and its cache, and too little to run it. "
                f"Lower cache_tokens, slots or context_length. ({exc})"
            ) from exc
        raise EngineError(f"exllamav2 loaded the model and failed to run it: {exc}") from exc
    return generator


def _compile_attention(part: Model) -> None:
    """On every device that holds a part of the cache."""
    config, started = part.config, time.monotonic()
    for device in {tensor.device for tensor in part.cache.all_tensors()}:
        warm_up(
            importlib.import_module(ATTACH).new_attention("triton"),
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            windows={-1, config.sliding_window or -1},
            softcap=config.attn_logit_softcapping or 0.0,
            page_size=PAGE_TOKENS,
            device=device,
        )
    _log.info("attention compiled", extra={"seconds": round(time.monotonic() - started, 1)})


def _read_the_largest_piece(loaded: Loaded, generator: Any) -> None:
    """The step that takes most memory: the longest piece of a prompt, then a token."""
    plan = loaded.plan
    num_tokens = min(plan.max_input_tokens + 1, plan.context_length - 1)
    if num_tokens < MIN_NGRAM_CONTEXT:
        return
    job = loaded.generators.ExLlamaV2DynamicJob(
        input_ids=torch.zeros((1, num_tokens), dtype=torch.long),
        max_new_tokens=1 + plan.num_draft_tokens,
        gen_settings=sampling.new_settings(
            loaded.generators.ExLlamaV2Sampler.Settings,
            Sampling(temperature=0.0),
            loaded.padded_vocab_size,
        ),
        identifier=("first-steps", 0),
    )
    generator.enqueue(job)
    while generator.num_remaining_jobs():
        generator.iterate()
    # It held a text that no request has.
    generator.reset_page_table()
