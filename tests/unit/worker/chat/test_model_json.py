"""The JSON of models: valid JSON stays as it is, mistakes with one reading are repaired."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.chat.char_reader import Characters
from worker.chat.model_json import is_json_object, read_json, repaired

_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip
_LAYOUTS = st.sampled_from(
    [
        {},
        {"ensure_ascii": False},
        {"indent": 2},
        {"indent": "\t", "separators": (" ,", " :\r\n")},
        {"separators": (",", ":")},
    ]
)


@given(value=_VALUES, layout=_LAYOUTS)
def test_valid_json_stays_as_it_is(value: Any, layout: dict[str, Any]) -> None:
    text = json.dumps({"a": value}, **layout)
    assert repaired(text) == text


@pytest.mark.parametrize(
    "text",
    ["-0", "1E400", "0.5e-7", "-12.50", "123456789012345678901234567890", '"\\ud800"', "[ ]"],
)
def test_unusual_but_valid_values_stay_as_they_are(text: str) -> None:
    assert repaired(f'{{"a": {text}}}') == f'{{"a": {text}}}'


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ('{"a": True, "b": None, "c": [False]}', '{"a": true, "b": null, "c": [false]}'),
        ('{"a": NaN, "b": -Infinity, "c": undefined}', '{"a": null, "b": null, "c": null}'),
        ('{"a": 01, "b": -007, "c": 00}', '{"a": 1, "b": -7, "c": 0}'),
        ('{"a": +5, "b": .5, "c": 5., "d": -.5e3}', '{"a": 5, "b": 0.5, "c": 5.0, "d": -0.5e3}'),
        ('{"a": 1_000, "b": 0x1F, "c": -0xa}', '{"a": 1000, "b": 31, "c": -10}'),
        ('{"a": 1, "b": [1, 2,],}', '{"a": 1, "b": [1, 2]}'),
        ('{"a": [1,, 2,\n],,\n}', '{"a": [1, 2\n]\n}'),
        ('{, "a": [, 1]}', '{ "a": [ 1]}'),
        ('{"a": 7 // note\n}', '{"a": 7 \n}'),
        ('{ // "x": 1,\n"a": /* [ */ 7, # note }\n}', '{ \n"a":  7 \n}'),
        ('{"a": "// no /* comment # here"}', '{"a": "// no /* comment # here"}'),
        ("{'a': 'x', 'b': 'it\\'s \"it\"'}", '{"a": "x", "b": "it\'s \\"it\\""}'),
        ("{“a”: “x \"y\"”}", '{"a": "x \\"y\\""}'),
        ("{a: 1, b_2-c: 2, 3: 4, True: 5}", '{"a": 1, "b_2-c": 2, "3": 4, "True": 5}'),
        ('{"a": New York , "b": 2024-01-02, "c": /tmp/x.py}',
         '{"a": "New York" , "b": "2024-01-02", "c": "/tmp/x.py"}'),
        ('{a": 1, "b": x", "c": [yes]}', '{"a": 1, "b": "x", "c": ["yes"]}'),
        ('{"a": "1\n2\r3\t4\x00\x1f"}', '{"a": "1\\n2\\r3\\t4\\u0000\\u001f"}'),
        ('{"a\n": 1}', '{"a\\n": 1}'),
        ('{"a": "\\d+ C:\\Windows \\x41 \\\' \\\n"}',
         '{"a": "\\\\d+ C:\\\\Windows \\\\x41 \\\\\' \\\\\\n"}'),
        ('{"a": "\\u12 \\uzz \\u"}', '{"a": "\\\\u12 \\\\uzz \\\\u"}'),
        ('{"a": "\\\\d \\" \\/ \\u00e4"}', '{"a": "\\\\d \\" \\/ \\u00e4"}'),
        ('{"a":\u00a01,\u2028"b":\x0b2}', '{"a": 1, "b": 2}'),
        ('{"a": 1}}}', '{"a": 1}'),
    ],
)  # fmt: skip
def test_a_mistake_with_one_reading_is_repaired(text: str, right: str) -> None:
    assert repaired(text) == right
    assert is_json_object(right)


@pytest.mark.parametrize(
    "text",
    [
        '{"a" 4}',
        '{"a": 1 "b": 2}',
        '{"a": "say "hi" now"}',
        '{"a": """x"""}',
        '{"a": "x" "y"}',
        '{"a": "x" + y}',
        '{"a": b"x"}',
        '{"a": f(1)}',
        '{"a": (1, 2)}',
        '{"a": }',
        '{"a": , "b": 1}',
        '{"a"}',
        '{"a", "b"}',
        '{"a": [1, 2}',
        '{"a": {"b": 1], "c": 2}',
        '{"a": 1]}',
        '{"a: 1}',
        '{"a": "x}',
        '{"a": \'x"}',
        '{"a": ...}',
        '{"a": -}',
        '{"a": $b}',
        '{"a": 12:30}',
        '{"color": #fff}\n',
        '{"a": 1',
        '{"a": 1} and {"b": 2}',
        "{" * 5000,
        '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"a": ' + "1" * 5000 + "}",
    ],
)
def test_what_has_no_or_several_readings_is_not_repaired(text: str) -> None:
    assert not is_json_object(repaired(text))


def test_behind_a_fault_the_text_stays_as_it_is() -> None:
    assert repaired('{"a": True, "b" 01, c: None}') == '{"a": true, "b" 01, c: None}'


@pytest.mark.parametrize("missing", ["}", "}}", "]}", "]}}"])
@pytest.mark.parametrize("last", ["", ",", "\n,\n"])
def test_in_front_of_a_mark_open_brackets_are_closed(missing: str, last: str) -> None:
    whole = {
        "}": '{"a": 1}',
        "}}": '{"a": {"b": 1}}',
        "]}": '{"a": [1]}',
        "]}}": '{"a": {"b": []}}',
    }
    text = whole[missing].removesuffix(missing)
    source, pieces = Characters.of(f"{text}{last}\n<end>more"), list[str]()
    with pytest.raises(StopIteration) as ended:
        next(read_json(source, pieces.append, ("<end>",)))
    assert ended.value.value is True
    assert "".join(pieces) == whole[missing]


def test_a_value_that_lacks_more_than_brackets_is_not_closed() -> None:
    for text in ('{"a": ', '{"a"', '{"a": "x'):
        source, pieces = Characters.of(f"{text}<end>"), list[str]()
        with pytest.raises(StopIteration) as ended:
            next(read_json(source, pieces.append, ("<end>",)))
        assert ended.value.value is False
        assert not is_json_object("".join(pieces))


@given(st.text(alphabet="{}[]\"'\\,:/#*“”\n\t ntfu019.-+eab", max_size=60))
def test_any_text_is_read_and_no_half_value_counts(text: str) -> None:
    result = repaired("{" + text)
    assert result.startswith("{") or not is_json_object(result)
