"""GBNF and Lark told apart, and faults of composed grammars located."""

import pytest

from worker.grammar.notation import as_lark, fault, is_gbnf, origin


@pytest.mark.parametrize(
    "source",
    [
        "start: e\ne: /[0-9]/",
        "?start: e\ne: /[0-9]/",
        "!start: e\n?e: /[0-9]/",
        "%import common.NUMBER\n?start: NUMBER",
        'A: "::="\nstart: A',
        "start : /a/",
    ],
)
def test_lark_stays_as_it_is(source: str) -> None:
    assert not is_gbnf(source)
    assert as_lark(source) == source


@pytest.mark.parametrize("source", ['root ::= "x"', '# start: x\nroot::="x"', '  root  ::= "x"\n'])
def test_gbnf_becomes_lark(source: str) -> None:
    assert 'start: "x"' in as_lark(source)


def test_a_fault_names_the_part_that_it_is_in() -> None:
    source = "\n".join(["start: a b", origin("the part A"), "a: c", origin("the part B"), "b: /(/"])
    reason = "at 5(4): invalid regex\n  in a line\n   4 | // of\n   5 | b: /(/\n"
    assert fault(source, reason) == ("the part B", "invalid regex in a line")
    assert fault(source, "3(2): unknown name") == ("the part A", "unknown name")
    assert fault(source, "1(2): unknown name") is None
    assert fault(source, "too large") is None
