"""Log probabilities show the tokens of what is shown, however the answer was cut."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.formats.logprobs import CompletionLogprobsWriter, LogprobFilter
from shared.denylist.denylist import Denylist, OutputRules
from shared.denylist.rule import Rule
from shared.wire.events import Delta, FinishReason, Logprob, TokenLogprobs, join
from worker.text.assembler import TextAssembler

_RULES = Denylist(
    [
        Rule(name="m", action="mask", literals=["ab€", "cc"]),
        Rule(name="t", action="truncate", literals=["STOP"]),
    ]
).on_output("m")


def _deltas(pieces: list[bytes]) -> list[Delta]:
    made: list[Delta] = []
    assembler = TextAssembler([], strip_leading_space=True, rules=_RULES)
    for number, piece in enumerate(pieces):
        text = assembler.push(piece)
        reason = assembler.reason if assembler.is_stopped else None
        if number == len(pieces) - 1 and reason is None:
            text += assembler.finish()
            reason = assembler.reason if assembler.is_stopped else FinishReason.LENGTH
        logprob = TokenLogprobs(Logprob(number, -1.0, piece), [Logprob(0, -2.0, piece)])
        made.append(
            Delta(number, 0, 0, text, [number], reason, logprobs=[logprob],
                  filtered=assembler.report())
        )  # fmt: skip
        if reason is not None:
            break
    return made


def _shown(deltas: list[Delta]) -> list[TokenLogprobs]:
    made = LogprobFilter()
    return [token for delta in deltas for token in made.release(delta)]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from(["ab€", "a", "b", "€", "cc", "c", "ST", "OP", " ", "x"]), min_size=1),
    st.lists(st.integers(1, 3), max_size=40),
    st.integers(1, 8),
)
def test_no_token_is_told_whose_text_is_not_shown(
    words: list[str], sizes: list[int], every: int
) -> None:
    payload = "".join(words).encode()
    pieces = []
    for size in [*sizes, len(payload)]:
        pieces.append(payload[:size])
        payload = payload[size:]
    deltas = _deltas([piece for piece in pieces if piece])
    shown = _shown(deltas)
    # Of a character that is masked in part, the first bytes may be told.
    pieces = [token.chosen.piece or token.chosen.name for token in shown]
    named = b"".join(pieces).decode("utf-8", "ignore")
    text = "".join(delta.text for delta in deltas)
    assert "cc" not in named
    assert "ab€" not in named
    assert "STOP" not in named
    # All that is told stands in the text, in this order.
    rest = iter(" " + text)
    assert all(char in rest for char in named.replace("***", ""))
    if "***" not in text and deltas[-1].finish_reason is FinishReason.LENGTH:
        assert named.removeprefix(" ") == text
    parts = [deltas[i : i + every] for i in range(0, len(deltas), every)]
    assert _shown([d for part in parts for d in join(part) if isinstance(d, Delta)]) == shown
    assert [t.top for t in shown if t.chosen.token_id == -1] == [[]] * sum(
        t.chosen.token_id == -1 for t in shown
    )


def test_without_a_denylist_all_tokens_pass_at_once() -> None:
    token = TokenLogprobs(Logprob(1, -1.0, b"x"), [])
    assert LogprobFilter().release(Delta(0, 0, 0, "", [1], logprobs=[token])) == [token]


# -- stop strings ----------------------------------------------------------------------------


def _stopped(pieces: list[bytes], stop: list[str], rules: OutputRules | None) -> list[Delta]:
    made: list[Delta] = []
    assembler = TextAssembler(stop, rules=rules, reports=True)
    for number, piece in enumerate(pieces):
        text, reason = assembler.push(piece), None
        if number == len(pieces) - 1 and not assembler.is_stopped:
            text, reason = text + assembler.finish(), FinishReason.LENGTH
        reason = assembler.reason if assembler.is_stopped else reason
        logprob = TokenLogprobs(Logprob(number, -1.0, piece), [])
        made.append(
            Delta(number, 0, 0, text, [number], reason, logprobs=[logprob],
                  filtered=assembler.report())
        )  # fmt: skip
        if reason is not None:
            break
    return made


@pytest.mark.parametrize(
    ("pieces", "shown"),
    [
        (["so", " ST", "OP", " on"], ["so", " ST"]),  # begins within a token
        (["so ", "ST", "OP", " on"], ["so "]),
        (["so ", "S", "T", "OP on"], ["so "]),
        (["STOP"], []),
        (["so ", "ST", "and"], ["so ", "ST", "and"]),
        (["so ", "ST"], ["so ", "ST"]),
        (["so ", "", "STOP"], ["so ", ""]),  # a control token in front of it
        (["so", "", " STOP"], ["so", "", " STOP"]),
        (["€", "STOP"], ["€"]),
    ],
)
@pytest.mark.parametrize("rules", [None, _RULES])
def test_tokens_behind_a_stop_string_are_left_out(
    pieces: list[str], shown: list[str], rules: OutputRules | None
) -> None:
    # The rules have a STOP of their own; the stop string outranks it.
    deltas = _stopped([piece.encode() for piece in pieces], ["STOP"], rules)
    assert [token.chosen.piece.decode() for token in _shown(deltas)] == shown
    assert [t for d in join([*deltas]) if isinstance(d, Delta) for t in _shown([d])] == _shown(
        deltas
    )
    text = "".join(delta.text for delta in deltas)
    written = CompletionLogprobsWriter().write(_shown(deltas))
    assert all(offset <= len(text) for offset in written.text_offset)


def test_a_token_is_shown_with_its_text_and_not_before() -> None:
    deltas = _stopped([b"so ", b"ST", b"x", b"STOP"], ["STOP"], None)
    made = LogprobFilter()
    assert [[t.chosen.piece for t in made.release(d)] for d in deltas] == [
        [b"so "], [], [b"ST", b"x"], [],
    ]  # fmt: skip


@given(
    st.lists(st.sampled_from(["S", "ST", "OP", "x", "€", " "]), min_size=1, max_size=12),
    st.lists(st.integers(1, 3), max_size=20),
)
def test_the_tokens_shown_spell_the_text_whatever_the_cuts(
    words: list[str], sizes: list[int]
) -> None:
    payload, pieces = "".join(words).encode(), []
    for size in [*sizes, len(payload)]:
        pieces.append(payload[:size])
        payload = payload[size:]
    deltas = _stopped([piece for piece in pieces if piece], ["STOP"], None)
    shown = [token.chosen.piece for token in _shown(deltas)]
    text = "".join(delta.text for delta in deltas).rstrip("\ufffd")
    assert b"".join(shown).decode("utf-8", "ignore").startswith(text)
    # The last token may hold more: the begin of the stop string. It begins in the text.
    assert text.encode().startswith(b"".join(shown[:-1]))
    assert len(b"".join(shown[:-1])) < len(text.encode()) or not shown
