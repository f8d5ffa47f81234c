"""Limits of a step, lowered when the GPU runs out of memory."""

import logging
from dataclasses import dataclass

import torch

from worker.engines.exllamav2.pages import PAGE_TOKENS

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class BatchLimits:
    """Engine loop only. Never raised again: what failed once would fail again."""

    max_batch: int
    """Sequences per step."""
    chunk_tokens: int
    """Tokens of one prompt per step; a multiple of the page."""

    def lower(self, num_active: int, read_tokens: int) -> None:
        """Call after running out of memory with `num_active` sequences, once the tensors of the
        failed step are freed. Halves the prompt chunk, which takes the most memory, if the step
        read one (up to `read_tokens`; 0 = none), else the batch."""
        torch.cuda.empty_cache()
        if read_tokens > PAGE_TOKENS or num_active == 1:
            half = min(self.chunk_tokens, read_tokens or self.chunk_tokens) // 2
            self.chunk_tokens = max(PAGE_TOKENS, half - half % PAGE_TOKENS)
        else:
            self.max_batch = max(1, min(self.max_batch, num_active) // 2)
        _log.error(
            "out of GPU memory with %d sequences: limited to %d, and to %d prompt tokens per step. "
            "Lower cache_tokens, context_length or slots to free memory.",
            num_active,
            self.max_batch,
            self.chunk_tokens,
        )
