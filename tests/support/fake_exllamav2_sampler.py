"""The sampler of the scripted exllamav2, and the base class of its filters.

Like the real ones (generator/sampler.py, generator/filters/base.py of 0.3.2): not neutral by
default, changes the logits in place, takes top_p = 0 and min_p = 1 to be off.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch


class Filter:
    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.background_result: Future[bool] | None = None

    def background_prepare_logit_mask(self, pool: ThreadPoolExecutor) -> None:
        assert self.background_result is None
        self.background_result = pool.submit(self.prepare_logit_mask)

    def ready(self) -> bool:
        future, self.background_result = self.background_result, None
        return future.result() if future else self.prepare_logit_mask()

    def prepare_logit_mask(self) -> bool:
        raise NotImplementedError


@dataclass
class Settings:
    token_repetition_penalty: float = 1.025
    token_repetition_range: int = -1
    token_repetition_decay: int = 0
    token_frequency_penalty: float = 0.0
    token_presence_penalty: float = 0.0
    temperature: float = 0.8
    smoothing_factor: float = 0.0
    min_temp: float = 0
    max_temp: float = 0.0
    temp_exponent: float = 1.0
    top_k: int = 50
    top_p: float = 0.8
    top_a: float = 0.0
    min_p: float = 0
    tfs: float = 0
    typical: float = 0
    skew: float = 0
    temperature_last: bool = False
    mirostat: bool = False
    mirostat_tau: float = 1.5
    mirostat_eta: float = 0.1
    mirostat_mu: float | None = None
    token_bias: torch.Tensor | None = None
    cfg_scale: float | None = None
    post_sampling_hooks: list[Any] = field(default_factory=list)
    dry_multiplier: float = 0.0
    xtc_probability: float = 0.0


class Sampler:
    Settings = Settings

    @staticmethod
    def sample(
        logits: torch.Tensor, s: Settings, ids: list[int], point: float, blocked: list[int],
        filters: list[Any],
        num_tokens: int,
    ) -> int:  # fmt: skip
        """Changes `logits` in place, as the real one does. `(1, 1, padded_vocab) float32`."""
        row = logits[0, 0]
        assert not row.isnan().any(), "the real one goes on, with memory nobody has written"
        if (
            s.token_frequency_penalty
            or s.token_presence_penalty
            or s.token_repetition_penalty != 1.0
        ):
            reach = len(ids) if s.token_repetition_range == -1 else s.token_repetition_range
            seen = ids[len(ids) - reach :]
            for token in set(seen):
                penalty = s.token_repetition_penalty
                row[token] *= 1 / penalty if row[token] > 0 else penalty
                row[token] -= s.token_presence_penalty
                row[token] -= s.token_frequency_penalty * seen.count(token)
        if blocked:
            row[blocked] = -1e30
        if s.token_bias is not None:
            assert row.numel() % s.token_bias.numel() == 0, "a and b are incompatible sizes"
            row += s.token_bias
        for f in filters:
            assert f.can_mask_logits() and f.ready() is True
            row.copy_(f.mask_logits(row))
        row[num_tokens:] = float("-inf")
        if s.temperature < 0.01 or s.top_k == 1:
            return int(row.argmax())
        probs = torch.softmax(row / s.temperature, -1)
        order = probs.argsort(descending=True)
        if s.top_k > 0:
            order = order[: s.top_k]
        if 0 < s.top_p < 1:
            order = order[: 1 + int((probs[order].cumsum(0) < s.top_p).sum())]
        if 0 < s.min_p < 1:
            order = order[probs[order] >= s.min_p * probs.max()]
        edges = probs[order].cumsum(0) / probs[order].sum()
        return int(order[min(int((edges < point * 0.9998).sum()), len(order) - 1)])
