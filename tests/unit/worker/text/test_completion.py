"""When a completion ends, however its text is cut into tokens, steps and attempts."""

from itertools import pairwise

import pytest

from shared.denylist.denylist import Denylist, OutputRules
from shared.denylist.rule import Rule
from shared.wire.events import FinishReason
from shared.wire.job import Sampling
from tests.support.scripted_engine import ByteVocabulary
from worker.sequence import Sequence, StepResult
from worker.text.completion import SequenceCompletion, detokenize

_END = 300
_MARK = 301
_KEY = ("j", 0)


class _Pieces(ByteVocabulary):
    """Single bytes, two control tokens, and the pieces of a test from token 400 on."""

    def __init__(self, pieces: list[bytes] | None = None) -> None:
        super().__init__({"</s>": _END, "<mark>": _MARK})
        self._pieces = pieces or []

    @property
    def tokens(self) -> list[int]:
        return list(range(400, 400 + len(self._pieces)))

    def piece(self, token: int) -> bytes:
        return self._pieces[token - 400] if token >= 400 else super().piece(token)


def _sequence(max_tokens: int = 1000, stop: list[str] | None = None, **options: object) -> Sequence:
    sequence = Sequence(_KEY, [1, 2, 3], max_tokens, Sampling(), stop or [])
    for name, value in options.items():
        setattr(sequence, name, value)
    return sequence


def _completion(sequence: Sequence, vocabulary: ByteVocabulary | None = None) -> SequenceCompletion:
    return SequenceCompletion(vocabulary or _Pieces(), sequence, frozenset({_END}))


def _accept(
    completion: SequenceCompletion, tokens: list[int], *, is_last: bool = False
) -> StepResult:
    """All tokens in one step."""
    result = StepResult(_KEY)
    completion.accept(tokens, result, is_last=is_last)
    return result


def _run(completion: SequenceCompletion, tokens: list[int]) -> list[StepResult]:
    """One token a step, as far as the completion goes."""
    results: list[StepResult] = []
    for token in tokens:
        results.append(_accept(completion, [token]))
        if results[-1].finish_reason is not None:
            break
    return results


def _text(results: list[StepResult]) -> str:
    return "".join(result.text for result in results)


def _splits(payload: bytes) -> list[list[bytes]]:
    """Every way to cut a short payload into tokens."""
    found = []
    for mask in range(1 << (len(payload) - 1)):
        cuts = [i + 1 for i in range(len(payload) - 1) if mask >> i & 1]
        found.append([payload[a:b] for a, b in pairwise([0, *cuts, len(payload)])])
    return found


@pytest.mark.parametrize(
    ("text", "stop", "expected", "reason"),
    [
        ("é€😀!", [], "é€😀!", FinishReason.STOP),
        ("a STOP b", ["STOP"], "a ", FinishReason.STOP),
        ("€€stop", ["€s", "p"], "€", FinishReason.STOP),
        ("a STO", ["STOP"], "a STO", FinishReason.STOP),
    ],
)
def test_the_text_is_the_same_for_every_split_in_tokens_and_steps(
    text: str, stop: list[str], expected: str, reason: FinishReason
) -> None:
    for pieces in _splits(text.encode()):
        vocabulary = _Pieces(pieces)
        tokens = [*vocabulary.tokens, _END]
        stepwise = _run(_completion(_sequence(stop=stop), vocabulary), tokens)
        at_once = _accept(_completion(_sequence(stop=stop), vocabulary), tokens)
        assert _text(stepwise) == at_once.text == expected
        assert stepwise[-1].finish_reason is at_once.finish_reason is reason
        assert [t for r in stepwise for t in r.token_ids] == at_once.token_ids


@pytest.mark.parametrize("stop", [["STOP"], ["x", "STOP!", "TOP"]])
def test_a_stop_string_ends_the_completion_with_the_token_that_completes_it(
    stop: list[str],
) -> None:
    vocabulary = _Pieces([b"to S", b"T", b"OP and", b" more"])
    result = _accept(_completion(_sequence(stop=stop), vocabulary), vocabulary.tokens)
    assert result.text == ("to " if "STOP" in stop else "to S")
    assert result.token_ids == vocabulary.tokens[:3], "what was drawn after it is dropped"
    assert result.finish_reason is FinishReason.STOP


def test_an_end_token_counts_and_adds_no_text_but_what_was_held_back() -> None:
    completion = _completion(_sequence(stop=["bc"]))
    result = _accept(completion, [*b"ab", _END, *b"c"])
    assert (result.text, result.token_ids) == ("ab", [*b"ab", _END])
    assert result.finish_reason is FinishReason.STOP
    assert completion.num_tokens == 3


def test_an_unfinished_character_is_shown_at_the_end() -> None:
    assert _accept(_completion(_sequence()), [*"€".encode()[:2], _END]).text == "\ufffd"
    cut = _accept(_completion(_sequence(max_tokens=2)), [*"€".encode()])
    assert (cut.text, cut.finish_reason) == ("\ufffd", FinishReason.LENGTH)


def test_end_tokens_that_are_ignored_add_nothing() -> None:
    completion = _completion(_sequence(max_tokens=4, ignore_eos=True))
    result = _accept(completion, [*b"a", _END, *b"bc"])
    assert not completion.is_end(_END)
    assert (result.text, result.finish_reason) == ("abc", FinishReason.LENGTH)
    assert len(result.token_ids) == 4


@pytest.mark.parametrize("num_produced", range(6))
def test_min_tokens_counts_those_of_earlier_attempts(num_produced: int) -> None:
    produced = list(b"abcdef"[:num_produced])
    completion = _completion(_sequence(min_tokens=4, produced=produced))
    required = [completion.num_required]
    for token in b"xyz":
        _accept(completion, [token])
        required.append(completion.num_required)
    assert required == [max(0, 4 - num_produced - i) for i in range(4)]


@pytest.mark.parametrize("num_produced", range(4))
def test_max_tokens_counts_those_of_earlier_attempts(num_produced: int) -> None:
    produced = list(b"abcd"[:num_produced])
    results = _run(
        _completion(_sequence(max_tokens=4, produced=produced)), list(b"abcdefg"[num_produced:])
    )
    assert _text(results) == "abcd"[num_produced:]
    assert [result.finish_reason for result in results] == [None] * (3 - num_produced) + [
        FinishReason.LENGTH
    ]


def test_the_last_token_that_is_allowed_may_end_the_text_by_itself() -> None:
    assert _accept(_completion(_sequence(2)), [*b"a", _END]).finish_reason is FinishReason.STOP
    stopped = _accept(_completion(_sequence(2, ["ab"])), list(b"ab"))
    assert (stopped.text, stopped.finish_reason) == ("", FinishReason.STOP)
    rules = _rules("truncate", "ab")
    cut = _accept(_completion(_sequence(2, rules=rules)), list(b"ab"))
    assert (cut.text, cut.finish_reason) == ("", FinishReason.CONTENT_FILTER)


def test_an_engine_may_end_a_completion_that_goes_on() -> None:
    completion = _completion(_sequence(stop=["bc"]))
    result = _accept(completion, list(b"ab"), is_last=True)
    assert (result.text, result.finish_reason) == ("ab", FinishReason.STOP)
    nothing = _accept(_completion(_sequence()), [], is_last=True)
    assert (nothing.text, nothing.token_ids) == ("", [])
    assert nothing.finish_reason is FinishReason.STOP


def test_the_first_token_of_an_attempt_reports_the_prompt() -> None:
    completion = _completion(_sequence(produced=[*b"ab"]))
    completion.cached_tokens = 2
    first, second = _run(completion, list(b"cd"))
    assert (first.prefilled_tokens, first.cached_tokens) == (5, 2)
    assert (second.prefilled_tokens, second.cached_tokens) == (0, 0)


# -- denylist --------------------------------------------------------------------------------


def _rules(action: str, *literals: str) -> OutputRules | None:
    rule = Rule(name=action, action=action, literals=list(literals))  # type: ignore[arg-type]
    return Denylist([rule]).on_output("m")


def test_masks_are_reported_with_the_step_that_decides_them() -> None:
    results = _run(_completion(_sequence(rules=_rules("mask", "bad"))), [*b"a bad b", _END])
    assert _text(results) == "a *** b"
    reports = [result.filtered for result in results]
    assert all(report is not None for report in reports)
    matches = [match for report in reports if report for match in report.matches]
    assert [(match.begin, match.end) for match in matches] == [(2, 5)]
    assert reports[-1] is not None and reports[-1].seen == len("a bad b")
    assert _accept(_completion(_sequence()), [*b"a"]).filtered is None


def test_a_cut_ends_the_completion_as_the_content_filter() -> None:
    for pieces in _splits(b"a bad b"):
        vocabulary = _Pieces(pieces)
        sequence = _sequence(rules=_rules("truncate", "bad"))
        results = _run(_completion(sequence, vocabulary), [*vocabulary.tokens, _END])
        assert _text(results) == "a "
        assert results[-1].finish_reason is FinishReason.CONTENT_FILTER


# -- resume ----------------------------------------------------------------------------------

_PAYLOAD = list(" Grüße 😀, bad STO and badly STOPped".encode())


@pytest.mark.parametrize("action", [None, "mask", "tag", "truncate"])
@pytest.mark.parametrize("stop", [[], ["STOP"], ["badl"]])
def test_resumed_at_every_token_it_is_the_same(action: str | None, stop: list[str]) -> None:
    rules = None if action is None else _rules(action, "badly", "ß")
    options = {"rules": rules, "strip_leading_space": True}
    tokens = [*_PAYLOAD, _END]
    whole = _run(_completion(_sequence(stop=stop, **options)), tokens)
    for cut in range(1, len(whole)):
        before = whole[:cut]
        seen = before[-1].filtered.seen if before[-1].filtered else None
        resumed = _sequence(stop=stop, produced=tokens[:cut], seen=seen, **options)
        rest = _run(_completion(resumed), tokens[cut:])
        assert _text(before) + _text(rest) == _text(whole)
        assert rest[-1].finish_reason is whole[-1].finish_reason
        assert [result.filtered for result in rest] == [r.filtered for r in whole[cut:]]


def test_resumed_under_a_denylist_what_is_out_stays_and_what_was_held_back_is_filtered() -> None:
    tokens = [*b"bad, very bad", _END]
    without = _run(_completion(_sequence()), tokens)
    for cut in range(1, len(without)):
        rules = _rules("mask", "bad")
        rest = _run(_completion(_sequence(produced=tokens[:cut], rules=rules)), tokens[cut:])
        expected = "bad, very bad" if cut > len("bad, very ") else "bad, very ***"
        assert _text(without[:cut]) + _text(rest) == expected


def test_resumed_under_another_denylist_what_the_earlier_one_held_back_is_filtered() -> None:
    tokens = [*b" very bad", _END]
    earlier = {"rules": _rules("mask", "very badly"), "strip_leading_space": True}
    later = {"rules": _rules("mask", "bad"), "strip_leading_space": True}
    before = _run(_completion(_sequence(**earlier)), tokens[:-1])
    assert _text(before) == "", "it may still become a match"
    for cut in range(1, len(tokens)):
        filtered = before[cut - 1].filtered
        assert filtered is not None and filtered.seen == 1, "the space that was stripped"
        resumed = _sequence(produced=tokens[:cut], seen=filtered.seen, **later)
        assert _text(_run(_completion(resumed), tokens[cut:])) == "very ***"


# -- log probabilities and control tokens ----------------------------------------------------


def test_a_control_token_has_a_name_and_text_only_where_it_is_shown() -> None:
    plain = _completion(_sequence())
    assert _accept(plain, [*b"a", _MARK, *b"b"]).text == "ab"
    hidden = plain.logprob(_MARK, -0.5)
    assert (hidden.piece, hidden.name, hidden.logprob) == (b"", b"<mark>", -0.5)
    shown = _completion(_sequence(shown_tokens=frozenset({_MARK})))
    assert _accept(shown, [*b"a", _MARK, *b"b"]).text == "a<mark>b"
    assert (shown.logprob(_MARK, 0.0).piece, shown.logprob(_MARK, 0.0).name) == (b"<mark>", b"")


def test_detokenizing_names_control_tokens_and_replaces_what_is_no_text() -> None:
    assert detokenize(_Pieces(), [_MARK, *"é".encode(), 0xFF]) == "<mark>é\ufffd"


@pytest.mark.parametrize("options", [{}, {"stop": ["f g"]}, {"strip_leading_space": True}])
def test_next_gives_the_same_results_as_accept(options: dict[str, object]) -> None:
    text = " a € b 😀 c d e f g h"
    for max_tokens in (5, 100):
        tokens = [*text.encode(), _END]
        one = _completion(_sequence(max_tokens, **options))  # type: ignore[arg-type]
        other = _completion(_sequence(max_tokens, **options))  # type: ignore[arg-type]
        results = []
        for token in tokens:
            results.append(one.next(token))
            if results[-1].finish_reason is not None:
                break
        assert results == _run(other, tokens)
        assert one.num_tokens == other.num_tokens
        assert results[-1].finish_reason is not None
