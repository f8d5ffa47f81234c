"""The prefill and scoring budgets follow the speed that was seen."""

from worker.engines.llamacpp.prefill_budget import _MIN_TOKENS, PrefillBudget, ScoringBudget


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


def test_scoring_delays_streams_by_a_fiftieth_of_a_second() -> None:
    budget = ScoringBudget(16)
    budget.record(0, 0.1)
    for _ in range(20):
        budget.record(4, 0.1 + 4 * 0.003)
    assert budget.tokens(True) == 6, "a step may last 20 ms longer, however long it is"
    for _ in range(20):
        budget.record(1, 0.1 + 0.5)
    assert budget.tokens(True) == 1, "a prompt comes to its end"
    for _ in range(20):
        budget.record(16, 0.1)
    assert budget.tokens(True) == 16


def test_scoring_takes_all_there_is_room_for_when_nobody_waits() -> None:
    budget = ScoringBudget(16)
    budget.record(0, 0.1)
    budget.record(4, 5.0)
    assert budget.tokens(False) == 16


def test_what_scoring_costs_is_not_guessed_before_a_step_without_it() -> None:
    budget = ScoringBudget(16)
    before = budget.tokens(True)
    budget.record(1, 5.0)
    assert budget.tokens(True) == before
