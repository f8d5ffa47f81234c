"""Converts the service's `Sampling` to ExLlamaV2's sampler settings.

ExLlamaV2's defaults are not neutral (temperature 0.8, top_k 50, top_p 0.8, repetition penalty
1.025), so every relevant field is set. Source:
exllamav2@v0.3.2:generator/sampler.py, exllamav2_ext/ext_sampling.cpp.
"""

from typing import Any

import torch

from shared.wire.job import Sampling

_GREEDY_BELOW = 0.01
"""ext_sampling.cpp treats lower temperatures as 0."""


def new_settings(settings_class: Any, sampling: Sampling, padded_vocab_size: int) -> Any:
    """Make an ExLlamaV2Sampler.Settings for one job: some samplers keep their state in it. The
    penalties start with an empty range; see `follow_output`."""
    # The sampler takes top_p = 0 and min_p = 1 for off; for OpenAI they mean greedy.
    is_greedy = (
        sampling.temperature < _GREEDY_BELOW
        or sampling.top_k == 1
        or sampling.top_p <= 0
        or sampling.min_p >= 1
    )
    return settings_class(
        token_repetition_penalty=sampling.repetition_penalty,
        token_repetition_range=0,
        token_repetition_decay=0,
        token_frequency_penalty=sampling.frequency_penalty,
        token_presence_penalty=sampling.presence_penalty,
        temperature=1.0 if is_greedy else sampling.temperature,
        smoothing_factor=0.0,
        min_temp=0.0,
        max_temp=0.0,
        temp_exponent=1.0,
        top_k=1 if is_greedy else sampling.top_k,
        top_p=1.0 if is_greedy else sampling.top_p,
        top_a=0.0,
        min_p=0.0 if is_greedy else sampling.min_p,
        tfs=0.0,
        typical=0.0,
        skew=0.0,
        temperature_last=False,
        mirostat=False,
        token_bias=_bias(sampling.logit_bias, padded_vocab_size),
        cfg_scale=None,
        post_sampling_hooks=[],
        dry_multiplier=0.0,
        xtc_probability=0.0,
    )


def has_penalty(sampling: Sampling) -> bool:
    """The sampler applies the repetition penalty once to the untouched logit of each token in the
    range, and then subtracts the other two (exllamav2_ext/cpp/sampling.cpp)."""
    return bool(
        sampling.frequency_penalty
        or sampling.presence_penalty
        or sampling.repetition_penalty != 1.0
    )


def follow_output(settings: Any, num_generated: int) -> None:
    """Apply the penalties to the last `num_generated` tokens: the output without the prompt. Call
    it before every sample: with speculation one step draws several."""
    settings.token_repetition_range = num_generated


def _bias(logit_bias: dict[int, float], padded_vocab_size: int) -> torch.Tensor | None:
    """`(padded_vocab_size,) float32 cpu`: added to the logits first."""
    if not logit_bias:
        return None
    bias = torch.zeros((padded_vocab_size,), dtype=torch.float)
    for token, value in logit_bias.items():
        bias[token] = value
    return bias
