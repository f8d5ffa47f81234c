"""A constraint as a filter of ExLlamaV2. The mask of the next token is computed in the generator's
thread pool while the GPU works."""

from typing import Any

import torch

from worker.grammar.constraint import Constraint


def new_filter(filter_class: type[Any], model: Any, tokenizer: Any, constraint: Constraint) -> Any:
    """Make the ExLlamaV2Filter of a constraint. Every job needs its own. Contract:
    exllamav2@v0.3.2:generator/filters/base.py. The library defines the method names and the order
    of calls: begin, then mask and feed in turn."""

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
            return mask(constraint, logits)

    return ConstraintFilter(model, tokenizer)


def mask(constraint: Constraint, logits: torch.Tensor) -> torch.Tensor:
    """Set forbidden tokens to -inf, in place. `logits`: `(padded_vocab,) float32 cpu`."""
    if constraint.error is None:
        forbidden = torch.from_numpy(constraint.forbidden(logits.numel()))
        logits.masked_fill_(forbidden, float("-inf"))
    return logits
