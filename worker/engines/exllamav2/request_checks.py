"""What a sequence must keep to: behind these lines nothing in exllamav2 checks it.

Thread-safe: task threads call it, and the engine loop once more.
"""

from shared.errors import InvalidRequest
from worker.engines.protocol import Sequence

MAX_ALTERNATIVES = 20


def check_limits(sequence: Sequence, vocab_size: int, context_length: int) -> None:
    """Raises InvalidRequest."""
    if sequence.max_tokens == 0:
        raise InvalidRequest(
            "max_tokens = 0: this model's engine does not read a prompt without going on.",
            param="max_tokens",
        )
    if sequence.prompt_logprobs:
        raise InvalidRequest(
            "This model's engine does not do log probabilities of the prompt: leave out echo, "
            "or logprobs.",
            param="echo",
        )
    for ids in (sequence.prompt, sequence.sampling.logit_bias):
        # Embeddings are looked up in a table in RAM: another id ends the whole step.
        if ids and not 0 <= min(ids) <= max(ids) < vocab_size:
            raise InvalidRequest(f"Token ids must be from 0 to {vocab_size - 1}.")
    # Positions beyond the prepared ones are read from whatever lies there.
    if len(sequence.prompt) + sequence.max_tokens > context_length:
        raise InvalidRequest(
            f"{len(sequence.prompt)} prompt tokens and {sequence.max_tokens} of completion "
            f"are more than the context of {context_length}."
        )
    if sequence.logprobs is not None and not 0 <= sequence.logprobs <= MAX_ALTERNATIVES:
        raise InvalidRequest(
            f"top_logprobs = {sequence.logprobs}: must be 0 to {MAX_ALTERNATIVES}.",
            param="top_logprobs",
        )
    if sequence.grammar is not None and sequence.ignore_eos:
        raise InvalidRequest(
            "With ignore_eos a grammar could not end its text.", param="ignore_eos"
        )
