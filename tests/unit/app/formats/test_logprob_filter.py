"""Log probabilities show the tokens of what is shown, however the answer was cut."""

from hypothesis import given, settings
from hypothesis import strategies as st

from app.job_stream import join
from app.logprob_filter import LogprobFilter
from shared.denylist import Denylist, Rule
from shared.messages import Delta, FinishReason, Logprob, TokenLogprobs
from worker.text import TextAssembler

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
    return [token for delta in deltas for token in made.pass_(delta)]


@settings(max_examples=500, deadline=None)
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
    assert LogprobFilter().pass_(Delta(0, 0, 0, "", [1], logprobs=[token])) == [token]
