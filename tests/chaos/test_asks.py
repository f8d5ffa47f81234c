"""The judge of the chaos run sees every token that is lost, doubled or swapped."""

import time

import pytest

from tests.chaos.asks import Answer, Ask, Outcome, judge
from tests.chaos.ledger import Ledger
from tests.chaos.pauses import PauseReport

_ASK = Ask("streams", "pair", 5, 6, num_choices=2)
_TEXT = " 6 7 8 9 10 11"


def _answer(text: str, **fields: object) -> Answer:
    answer = Answer(**fields)  # type: ignore[arg-type]
    answer.add({"choices": [{"index": 0, "text": _TEXT, "finish_reason": "length"}]})
    answer.add({"choices": [{"index": 1, "text": text, "finish_reason": "length"}]})
    return answer


@pytest.mark.parametrize(
    "text", [" 6 7 9 10 11", " 6 7 8 8 9 10 11", " 6 8 7 9 10 11", _TEXT + " 12", " 6 7 8 9 10"]
)
def test_a_whole_answer_is_right_to_the_letter_or_wrong(text: str) -> None:
    assert judge(_ASK, _answer(_TEXT, is_done=True))[0] is Outcome.RIGHT
    assert judge(_ASK, _answer(text, is_done=True))[0] is Outcome.WRONG


def test_what_came_before_a_cut_is_a_prefix_of_the_right_text() -> None:
    assert judge(_ASK, _answer(" 6 7 8"))[0] is Outcome.CUT
    assert judge(_ASK, _answer(" 6 8"))[0] is Outcome.WRONG


def test_only_errors_that_have_a_reason_are_refusals() -> None:
    def outcome(status: int, **error: object) -> Outcome:
        return judge(_ASK, Answer(status=status, error={"message": "m", **error}))[0]

    assert outcome(503, code="replica_lost", type="service_unavailable") is Outcome.REFUSED
    assert outcome(503, code=None, type="service_unavailable") is Outcome.REFUSED
    assert outcome(500, code=None, type="server_error") is Outcome.WRONG
    assert outcome(499, code="request_cancelled", type="request_cancelled") is Outcome.WRONG


def test_a_cut_needs_the_death_of_a_web_process() -> None:
    ledger = Ledger()
    ledger.note_fault("kill -9 of one of two replicas")
    ledger.note_try(_ASK, Outcome.CUT, "")
    assert len(ledger.problems) == 1
    ledger.expect_cuts()
    ledger.note_fault("kill -9 of a web process")
    ledger.note_try(_ASK, Outcome.CUT, "")
    assert len(ledger.problems) == 1


def test_an_answer_that_a_stopping_process_breaks_off_is_a_cut() -> None:
    answer = _answer(" 6 7", error={"code": "going_away", "type": "service_unavailable"})
    assert judge(_ASK, answer) == (Outcome.CUT, "")


def test_pauses_are_counted_over_all_tries_and_long_ones_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    ledger, first = Ledger(), Answer()
    number = ledger.begin("streams", str(_ASK))
    for seconds, answer in ((0.4, first), (2.0, Answer(pauses=first.pauses)), (7.0, first)):
        answer.add({"choices": [{"index": 0, "text": " 6", "finish_reason": None}]})
        answer.add({"choices": [{"index": 0, "text": "", "finish_reason": None}]})
        now[0] += seconds
    first.add({"choices": [{"index": 0, "text": " 7", "finish_reason": None}]})
    ledger.end(number, "streams", Outcome.RIGHT, first.pauses)
    assert ledger.pauses_s == [2.0, 7.0]
    (pause,) = ledger.long_pauses
    assert "no text for 7.0 s" in pause
    assert ledger.problems == []


def test_a_run_fails_past_the_bounds_of_its_pauses() -> None:
    assert PauseReport.of([]) == PauseReport(0)
    assert PauseReport.of([1.0] * 98 + [5.0, 6.0]) == PauseReport(100, 1.0, 6.0, 6.0)
    assert PauseReport.of([1.0, 6.0]).problems == [
        "the median of the pauses is 3.5 s, more than 3 s"
    ]
    assert len(PauseReport.of([1.0, 1.0, 6.1]).problems) == 1
    assert PauseReport.of([1.0, 2.0, 5.9]).problems == []


def test_a_request_that_is_given_up_is_a_problem() -> None:
    ledger = Ledger()
    for outcome in (Outcome.RIGHT, Outcome.REFUSED):
        ledger.end(ledger.begin("streams", str(_ASK)), "streams", outcome)
    assert len(ledger.problems) == 1
    assert ledger.open_requests == []
