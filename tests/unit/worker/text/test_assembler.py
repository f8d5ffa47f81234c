"""Stop strings and UTF-8: the text is the same however the bytes are cut into tokens."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.text.assembler import TextAssembler


def _assemble(pieces: list[bytes], stop: list[str]) -> tuple[list[str], bool]:
    assembler = TextAssembler(stop)
    shown = []
    for piece in pieces:
        shown.append(assembler.push(piece))
        if assembler.is_stopped:
            break
    shown.append(assembler.finish())
    return shown, assembler.is_stopped


def _splits(payload: bytes) -> list[list[bytes]]:
    """Every way to cut a short payload in pieces."""
    cuts = range(1 << (len(payload) - 1))
    return [
        [
            bytes(piece)
            for piece in _cut(payload, [i + 1 for i in range(len(payload) - 1) if mask >> i & 1])
        ]
        for mask in cuts
    ]


def _cut(payload: bytes, at: list[int]) -> list[bytes]:
    edges = [0, *at, len(payload)]
    return [payload[a:b] for a, b in pairwise(edges)]


@pytest.mark.parametrize("text", ["a€b", "😀!", "é€😀"])
def test_no_character_is_ever_cut(text: str) -> None:
    for pieces in _splits(text.encode()):
        shown, _ = _assemble(pieces, [])
        assert "".join(shown) == text
        assert "\ufffd" not in "".join(shown)


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("one STOP two", ["STOP"], "one "),
        ("aab", ["ab"], "a"),
        ("xabab", ["abac", "b"], "xa"),
        ("\n\nUser", ["\nUser"], "\n"),
        ("€€stop", ["€s"], "€"),
    ],
)
def test_stop_string_never_leaks_whatever_boundaries_it_spans(
    text: str, stop: list[str], expected: str
) -> None:
    for pieces in _splits(text.encode()):
        shown, is_stopped = _assemble(pieces, stop)
        assert is_stopped
        assert "".join(shown) == expected


def test_what_only_begins_like_a_stop_string_is_given_back() -> None:
    shown, is_stopped = _assemble([b"abc", b"ab", b"x", b"ab"], ["abd"])
    assert not is_stopped
    assert "".join(shown) == "abcabxab"


@settings(max_examples=300)
@given(
    text=st.text("ab€", max_size=12),
    stop=st.lists(st.text("ab€", min_size=1, max_size=4), max_size=3),
    data=st.data(),
)
def test_pieces_add_up_to_the_same_text_for_every_split(
    text: str, stop: list[str], data: st.DataObject
) -> None:
    payload = text.encode()
    cuts = data.draw(st.lists(st.integers(0, len(payload)), max_size=8).map(sorted))
    bytewise, _ = _assemble([payload[i : i + 1] for i in range(len(payload))], stop)
    split, _ = _assemble(_cut(payload, cuts), stop)
    assert "".join(split) == "".join(bytewise)
    assert not any(s in "".join(split) for s in stop)


def test_leading_space_is_dropped_once() -> None:
    assembler = TextAssembler([], strip_leading_space=True)
    assert assembler.push(b"  a") + assembler.push(b" b") == " a b"


def test_an_unfinished_character_at_the_end_is_shown_as_replacement() -> None:
    assembler = TextAssembler([])
    assert assembler.push("€".encode()[:2]) == ""
    assert assembler.finish() == "\ufffd"
