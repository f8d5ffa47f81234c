"""Builds llama.cpp's sampler chains, which draw the tokens of a sequence."""

import random

from shared.wire.job import Sampling
from worker.engines.llamacpp.bindings import Library, LogitBias, SamplerChainParams

_GREEDY_BELOW = 1e-4
"""Lower temperatures give the same token every time, and may overflow the exponentials."""
_RANDOM_SEED = 2**32 - 1
"""LLAMA_DEFAULT_SEED, with which llama.cpp draws a seed itself: never passed as a real one."""


def new_chain(
    library: Library, sampling: Sampling, vocab_size: int, context_length: int
) -> int | None:
    """Build a chain, or return None if arg max gives the same token for less work. The caller frees
    it with `sampler_free`."""
    has_penalty = bool(sampling.presence_penalty or sampling.frequency_penalty)
    has_penalty |= sampling.repetition_penalty != 1.0
    is_greedy = sampling.temperature < _GREEDY_BELOW or sampling.top_k == 1
    if is_greedy and not has_penalty and not sampling.logit_bias:
        return None
    stages: list[int] = []
    if sampling.logit_bias:
        biases = [LogitBias(token, bias) for token, bias in sampling.logit_bias.items()]
        array = (LogitBias * len(biases))(*biases)
        stages.append(library.sampler_init_logit_bias(vocab_size, len(biases), array))
    if has_penalty:
        # The chain sees only drawn tokens, not the prompt, like OpenAI's penalties.
        stages.append(
            library.sampler_init_penalties(
                vocab_size,
                context_length,
                sampling.repetition_penalty,
                sampling.frequency_penalty,
                sampling.presence_penalty,
            )
        )
    stages += [library.sampler_init_greedy()] if is_greedy else _random_stages(library, sampling)
    chain: int = library.sampler_chain_init(SamplerChainParams(True))
    for stage in stages:
        library.sampler_chain_add(chain, stage)
    return chain


def _random_stages(library: Library, sampling: Sampling) -> list[int]:
    """Temperature comes first: top_p and min_p truncate the distribution that is drawn from."""
    stages: list[int] = [library.sampler_init_temp(sampling.temperature)]
    if sampling.top_k > 0:
        stages.append(library.sampler_init_top_k(sampling.top_k))
    if sampling.top_p < 1:
        stages.append(library.sampler_init_top_p(sampling.top_p, 1))
    if sampling.min_p > 0:
        stages.append(library.sampler_init_min_p(sampling.min_p, 1))
    seed = sampling.seed
    if seed is None:
        seed = random.getrandbits(32)  # nosec B311 # no secret
    stages.append(library.sampler_init_dist(seed % _RANDOM_SEED))
    return stages
