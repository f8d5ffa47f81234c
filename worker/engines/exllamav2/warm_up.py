"""Warm-up of a loaded model: compile the kernels, run one step, check that the largest prefill
fits the memory. Runs in the loading thread, with nothing else on the devices.

Triton compiles a kernel at its first launch, about a second each, and keeps it on disk
(TRITON_CACHE_DIR): the second start of a replica only loads it.
"""

import importlib
import logging
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch

from shared.errors import EngineError
from shared.wire.job import Sampling
from worker.engines.exllamav2 import sampling
from worker.engines.exllamav2.attention.call import PAGE_MULTIPLE, Attention, PagedCall, check_paged
from worker.engines.exllamav2.attention.tiles import FEW_ROWS
from worker.engines.exllamav2.batch_limits import BatchLimits
from worker.engines.exllamav2.failures import StepFailure, classify
from worker.engines.exllamav2.load import ATTACH, MIN_NGRAM_CONTEXT, Loaded, ModelOnDevice
from worker.engines.exllamav2.pages import PAGE_TOKENS
from worker.engines.exllamav2.running_sequence import are_valid
from worker.foreign import foreign_errors
from worker.sequence import INVALID_LOGITS

_log = logging.getLogger(__name__)


def first_generator(loaded: Loaded, limits: BatchLimits) -> Any:
    """Make the generator and warm it up, so that a model that cannot run fails at its loading.
    Raises EngineError."""
    with foreign_errors(_explain):
        if loaded.attention == "triton":
            for part in (loaded.main, loaded.draft):
                if part is not None:
                    _compile_attention(part)
        generator = loaded.new_generator(limits.max_batch, limits.chunk_tokens)
        _prefill_largest_chunk(loaded, generator)
        # Only after the logits were checked: `warmup` draws from invalid ones, too.
        generator.warmup()
        # The pages hold texts that no request has.
        generator.reset_page_table()
    return generator


def _explain(exc: Exception) -> EngineError:
    if classify(exc) is StepFailure.OUT_OF_MEMORY:
        return EngineError(
            "The model and its cache fit into GPU memory, but running it does not. "
            f"Lower cache_tokens, slots or context_length. ({exc})"
        )
    return EngineError(f"exllamav2 loaded the model and failed to run it: {exc}")


def _compile_attention(part: ModelOnDevice) -> None:
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


def _prefill_largest_chunk(loaded: Loaded, generator: Any) -> None:
    """Run the step that takes most memory: the longest chunk of a prompt, then one token. Raises
    EngineError if its logits are not valid."""
    plan = loaded.plan
    # + 1: the last prompt token is computed in a step of its own, with the first new token.
    # - 1: the completion needs a position of the context too.
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
    draw = job.receive_logits

    def receive_logits(logits: torch.Tensor) -> Any:
        if not are_valid(logits, loaded.vocab_size):
            raise EngineError(INVALID_LOGITS)
        return draw(logits)

    job.receive_logits = receive_logits
    generator.enqueue(job)
    while generator.num_remaining_jobs():
        generator.iterate()


def warm_up(
    attention: Attention,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    windows: Iterable[int] = (-1,),
    softcap: float = 0.0,
    page_size: int = 2 * PAGE_MULTIPLE,
    device: torch.device | str = "cuda",
) -> int:
    """Launch every variant once on one page of zeros; returns the number of launches. `windows`
    holds the window of each kind of layer, -1 for those without. Blocks until the device is done:
    call it only while a model is loaded."""
    cache = torch.zeros((1, page_size, num_kv_heads, head_dim), dtype=torch.float16, device=device)
    index = torch.zeros((1, 1), dtype=torch.int32, device=device)
    num_calls = 0
    for q_len in warm_up_lengths(num_heads // num_kv_heads):
        q = torch.zeros((1, q_len, num_heads, head_dim), dtype=torch.float16, device=device)
        new = torch.zeros((1, q_len, num_kv_heads, head_dim), dtype=torch.float16, device=device)
        plain = PagedCall(q, cache, cache, index[0], index, 1.0, new, new, softcap=softcap)
        for window in set(windows):
            for num_splits in (1, 2):  # with and without the reduction over splits
                call = replace(plain, window_left=window, num_splits=num_splits)
                attention.paged(check_paged(call))
                num_calls += 1
    if cache.is_cuda:
        torch.cuda.synchronize(cache.device)
    return num_calls


def warm_up_lengths(group: int) -> list[int]:
    """One q_len for each tile that `tiles.choose_tile` can give this group."""
    # + 1: the shortest with more than FEW_ROWS rows.
    return sorted({1, FEW_ROWS // group + 1})
