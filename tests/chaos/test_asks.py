"""The judge of the chaos run sees every token that is lost, doubled or swapped."""

import pytest

from tests.chaos.asks import Answer, Ask, Outcome, judge
from tests.chaos.ledger import Ledger

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
    ledger.note_fault("kill -9 of one of two replicas", hits_web=False)
    ledger.note_try(_ASK, Outcome.CUT, "")
    assert len(ledger.problems) == 1
    ledger.note_fault("kill -9 of a web process", hits_web=True)
    ledger.note_try(_ASK, Outcome.CUT, "")
    assert len(ledger.problems) == 1


def test_a_request_that_is_given_up_is_a_problem() -> None:
    ledger = Ledger()
    for outcome in (Outcome.RIGHT, Outcome.REFUSED):
        ledger.end(ledger.begin("streams", str(_ASK)), "streams", outcome)
    assert len(ledger.problems) == 1
    assert ledger.open_requests == []
