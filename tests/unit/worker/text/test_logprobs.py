"""Log probabilities from a row of logits."""

import numpy as np
import pytest

from shared.wire.events import Logprob
from worker.text.logprobs import best_tokens, token_logprobs


def _report(token: int, logprob: float) -> Logprob:
    return Logprob(token, logprob, b"")


@pytest.mark.parametrize("size", [1, 20, 512, 513, 5000, 51_866])
@pytest.mark.parametrize("num_wanted", [0, 1, 5, 20])
def test_the_best_tokens_are_those_of_a_sorted_row(size: int, num_wanted: int) -> None:
    rng = np.random.default_rng(size)
    row = rng.normal(size=size).astype(np.float32)
    assert best_tokens(row, num_wanted) == np.argsort(-row)[:num_wanted].tolist()
    row[:] = row.round()  # many are equal
    assert best_tokens(row, num_wanted) == np.argsort(-row, kind="stable")[:num_wanted].tolist()


def test_best_tokens_that_are_neighbours_are_found() -> None:
    row = np.zeros(100_000, np.float32)
    row[700:720] = range(1, 21)
    row[90_000:] = -np.inf
    assert best_tokens(row, 20) == list(range(719, 699, -1))


def test_log_probabilities_are_those_of_the_softmax() -> None:
    row = np.random.default_rng(0).normal(scale=5, size=3000).astype(np.float32)
    exact = row.astype(np.float64)
    exact -= np.log(np.exp(exact).sum())
    made = token_logprobs(row, 17, 3, _report, is_end=True)
    assert made.is_end
    assert made.chosen.token_id == 17
    assert made.chosen.logprob == pytest.approx(exact[17], abs=1e-4)
    assert [t.logprob for t in made.top] == pytest.approx(np.sort(exact)[:-4:-1], abs=1e-4)


def test_the_row_itself_is_not_touched() -> None:
    row = np.arange(1000, dtype=np.float32)
    token_logprobs(row, 0, 5, _report)
    assert (row == np.arange(1000)).all()


def test_an_id_beyond_the_row_has_no_probability() -> None:
    made = token_logprobs(np.zeros(8, np.float32), 8, 2, _report)
    assert made.chosen.logprob == -np.inf
    assert [t.token_id for t in made.top] == [0, 1], "equal ones by id"
