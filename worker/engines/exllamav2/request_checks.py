"""Checks of a sequence that exllamav2 does not make itself. Thread-safe: called by task threads,
and again by the engine loop."""

from shared.errors import InvalidRequest
from worker.sequence import Sequence

MAX_ALTERNATIVES = 20


def check_limits(sequence: Sequence, vocab_size: int, context_length: int) -> None:
    """Raises InvalidRequest."""
    if sequence.max_tokens == 0:
        reason = "max_tokens = 0: this model's engine must generate at least one token."
        raise InvalidRequest(reason, param="max_tokens")
    if sequence.prompt_logprobs:
        reason = (
            "This model's engine has no log probabilities of the prompt: omit echo or logprobs."
        )
        raise InvalidRequest(reason, param="echo")
    for ids in (sequence.prompt, sequence.sampling.logit_bias):
        # Embeddings are rows of a table in RAM: an id outside of it fails the whole step.
        if ids and not 0 <= min(ids) <= max(ids) < vocab_size:
            raise InvalidRequest(f"Token ids must be from 0 to {vocab_size - 1}.")
    # Positions beyond the prepared ones would be read out of bounds.
    if len(sequence.prompt) + sequence.max_tokens > context_length:
        raise InvalidRequest(
            f"{len(sequence.prompt)} prompt tokens and {sequence.max_tokens} of completion "
            f"exceed the context of {context_length}."
        )
    if sequence.logprobs is not None and not 0 <= sequence.logprobs <= MAX_ALTERNATIVES:
        reason = f"top_logprobs = {sequence.logprobs}: must be 0 to {MAX_ALTERNATIVES}."
        raise InvalidRequest(reason, param="top_logprobs")
    if sequence.grammar is not None and sequence.ignore_eos:
        reason = "With ignore_eos a grammar could not end the text."
        raise InvalidRequest(reason, param="ignore_eos")
