"""A grammar while ExLlamaV2 follows it: which tokens may come next.

The mask of the next token is made in the generator's thread pool while the GPU works.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from llguidance import LLMatcher

from shared.errors import EngineError
from worker.engines.grammar import first_lines


class Constraint:
    """The grammar of one sequence: which tokens may come next.

    `compute_mask` and what follows it happen one after the other, though in different threads.
    Nothing here raises: it would take the whole batch along.
    """

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        self._matcher = matcher
        self._bits = np.zeros((vocab_size + 31) // 32, np.int32)
        """Bit i of the whole: token i is allowed."""
        self.error: EngineError | None = None

    def begin(self) -> None:
        self._matcher.reset()

    def accept(self, token: int) -> None:
        if self.error is None and not self._matcher.is_stopped():
            self._run(lambda: self._matcher.consume_token(token))

    def compute_mask(self) -> None:
        if self.error is None:
            bits = self._bits
            self._run(lambda: self._matcher.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes))

    def mask(self, logits: torch.Tensor) -> torch.Tensor:
        """Set what is not allowed to -inf, in place. `logits`: `(padded_vocab,) float32 cpu`."""
        if self.error is not None:
            return logits  # whatever is drawn now, the sequence ends with the error
        allowed = torch.from_numpy(np.unpackbits(self._bits.view(np.uint8), bitorder="little"))
        size = min(allowed.numel(), logits.numel())
        logits[:size].masked_fill_(allowed[:size] == 0, float("-inf"))
        logits[size:] = float("-inf")
        return logits

    def _run(self, step: Callable[[], object]) -> None:
        try:
            step()
            reason = self._matcher.get_error() if self._matcher.is_error() else ""
        except BaseException as exc:  # a panic in Rust is no Exception
            reason = f"{type(exc).__name__}: {exc}"
        if reason:
            self.error = EngineError(f"The grammar could not be followed: {first_lines(reason)}")


def new_filter(filter_class: type[Any], model: Any, tokenizer: Any, constraint: Constraint) -> Any:
    """Make the ExLlamaV2Filter that carries a constraint. Every job needs one of its own.

    Contract: exllamav2@v0.3.2:generator/filters/base.py. The method names and their order of
    use (begin, then mask and feed in turn) are the library's.
    """

    class ConstraintFilter(filter_class):  # type: ignore[misc]
        def begin(self, prefix_str: str) -> None:
            constraint.begin()

        def feed(self, token: torch.Tensor) -> None:
            constraint.accept(int(token[0, 0]))

        def use_background_worker(self) -> bool:
            return True

        def can_mask_logits(self) -> bool:
            return True

        def prepare_logit_mask(self) -> bool:
            constraint.compute_mask()
            return True  # the sampler asserts it

        def mask_logits(self, logits: torch.Tensor) -> torch.Tensor:
            return constraint.mask(logits)

    return ConstraintFilter(model, tokenizer)
