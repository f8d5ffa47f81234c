"""How much of the waiting prompts a step reads, and how much of them it scores."""

_MIN_TOKENS = 32
_STEP_TARGET_S = 0.1
"""A step with prefill should last about this long: it bounds how long running streams wait
for a new prompt, and how long a cancelled prompt keeps its slot."""

_SCORING_TARGET_S = 0.02
"""By so much may the scoring of prompts delay the tokens of running streams."""
_LEAST_S = 1e-6


class PrefillBudget:
    """How many prompt tokens a step may read, from the speed seen so far."""

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._tokens_per_s = _MIN_TOKENS / _STEP_TARGET_S

    @property
    def tokens(self) -> int:
        budget = int(self._tokens_per_s * _STEP_TARGET_S)
        return max(_MIN_TOKENS, min(budget, self._max_tokens))

    def record(self, num_tokens: int, duration_s: float) -> None:
        if num_tokens >= _MIN_TOKENS // 2:
            seen = num_tokens / max(duration_s, _LEAST_S)
            self._tokens_per_s += 0.5 * (seen - self._tokens_per_s)


class ScoringBudget:
    """How many prompt tokens a step may score. A scored token costs far more than one that is
    only read: the output layer, and a look at its whole vocabulary."""

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._token_s = _SCORING_TARGET_S / 4
        self._plain_step_s: float | None = None
        """Of a step of the streams alone; None = none has been seen."""

    def tokens(self, is_streaming: bool) -> int:
        """At least 1: a prompt must come to its end."""
        if not is_streaming:
            return self._max_tokens
        return max(1, min(int(_SCORING_TARGET_S / self._token_s), self._max_tokens))

    def record(self, num_tokens: int, duration_s: float) -> None:
        """Learn from a step with streams in which no prompt tokens but scored ones were read."""
        if self._plain_step_s is None:
            self._plain_step_s = None if num_tokens else duration_s
        elif num_tokens:
            seen_s = (duration_s - self._plain_step_s) / num_tokens
            self._token_s = max(_LEAST_S, self._token_s + 0.5 * (seen_s - self._token_s))
        else:
            self._plain_step_s += 0.5 * (duration_s - self._plain_step_s)
