"""How much goes into a step, and how that shrinks when the GPU's memory does not do."""

import logging
from dataclasses import dataclass

import torch

from worker.engines.exl2.pages import PAGE_TOKENS

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class BatchLimits:
    """Engine loop only. It never grows again: what failed once would fail once more."""

    max_batch: int
    """Sequences in a step."""
    chunk_tokens: int
    """Tokens of a prompt in a step; a multiple of the page."""

    def lower(self, num_active: int, read_tokens: int) -> None:
        """After running out of memory with so many sequences: halve the piece of a prompt, of
        which the step read up to `read_tokens` (0: none), since it takes most; else the batch.
        What the failed step held must be let go of before."""
        torch.cuda.empty_cache()
        if read_tokens > PAGE_TOKENS or num_active == 1:
            half = min(self.chunk_tokens, read_tokens or self.chunk_tokens) // 2
            self.chunk_tokens = max(PAGE_TOKENS, half - half % PAGE_TOKENS)
        else:
            self.max_batch = max(1, min(self.max_batch, num_active) // 2)
        _log.error(
            "out of GPU memory with %d sequences: from now on at most %d, and %d prompt tokens "
            "a step. A smaller cache_tokens, context_length or slots leaves more room.",
            num_active,
            self.max_batch,
            self.chunk_tokens,
        )
