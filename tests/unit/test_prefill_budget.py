"""The prefill budget follows the speed that was seen."""

from worker.engines.prefill import _MIN_TOKENS, PrefillBudget


def test_the_budget_starts_small_grows_with_speed_and_shrinks_again() -> None:
    budget = PrefillBudget(512)
    assert budget.tokens == _MIN_TOKENS
    for _ in range(20):
        budget.record(budget.tokens, budget.tokens / 1000)
    assert 95 <= budget.tokens <= 101, "1,000 tokens/s for a tenth of a second"
    for _ in range(20):
        budget.record(budget.tokens, budget.tokens / 1e6)
    assert budget.tokens == 512
    for _ in range(20):
        budget.record(budget.tokens, budget.tokens / 10)
    assert budget.tokens == _MIN_TOKENS


def test_a_few_leftover_tokens_say_nothing_about_speed() -> None:
    budget = PrefillBudget(512)
    budget.record(1, 1.0)
    assert budget.tokens == _MIN_TOKENS
