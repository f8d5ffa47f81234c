"""How much of the waiting prompts a step reads."""

_MIN_TOKENS = 32
_STEP_TARGET_S = 0.1
"""A step with prefill should last about this long: it bounds how long running streams wait
for a new prompt, and how long a cancelled prompt keeps its slot."""


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
            seen = num_tokens / max(duration_s, 1e-6)
            self._tokens_per_s += 0.5 * (seen - self._tokens_per_s)
