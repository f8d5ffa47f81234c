"""How many prompt tokens a step reads, and of how many it computes log probabilities."""

_MIN_TOKENS = 32
_STEP_TARGET_S = 0.1
"""Target duration of a step with prefill: bounds the wait of running streams for a new prompt,
and the time that a cancelled prompt keeps its slot."""

_SCORING_TARGET_S = 0.02
"""Target delay of running streams by the scoring of prompts (their log probabilities)."""
_LEAST_S = 1e-6


class PrefillBudget:
    """Prompt tokens that a step may read, from the speed measured so far."""

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._tokens_per_s = _MIN_TOKENS / _STEP_TARGET_S

    @property
    def tokens(self) -> int:
        budget = int(self._tokens_per_s * _STEP_TARGET_S)
        return max(_MIN_TOKENS, min(budget, self._max_tokens))

    def record(self, num_tokens: int, duration_s: float) -> None:
        if num_tokens >= _MIN_TOKENS // 2:  # fewer say more about the streams in the step
            seen = num_tokens / max(duration_s, _LEAST_S)
            self._tokens_per_s += 0.5 * (seen - self._tokens_per_s)


class ScoringBudget:
    """Prompt tokens that a step may score. Scoring costs far more than reading: the output layer,
    and a softmax over the vocabulary."""

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._token_s = _SCORING_TARGET_S / 4
        self._plain_step_s: float | None = None
        """Duration of a step of streams alone; None = not measured yet."""

    def tokens(self, is_streaming: bool) -> int:
        """At least 1, so that every prompt makes progress."""
        if not is_streaming:
            return self._max_tokens
        return max(1, min(int(_SCORING_TARGET_S / self._token_s), self._max_tokens))

    def record(self, num_tokens: int, duration_s: float) -> None:
        """Learn from a step with streams that read no prompt tokens but scored ones."""
        if self._plain_step_s is None:
            self._plain_step_s = None if num_tokens else duration_s
        elif num_tokens:
            seen_s = (duration_s - self._plain_step_s) / num_tokens
            self._token_s = max(_LEAST_S, self._token_s + 0.5 * (seen_s - self._token_s))
        else:
            self._plain_step_s += 0.5 * (duration_s - self._plain_step_s)
