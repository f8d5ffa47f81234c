"""Regular expressions in llguidance's dialect of Lark; patterns and formats of JSON schemas.

llguidance matches an expression as a whole, in Rust's syntax. Imports no llguidance: see
`worker.grammar.guided_schema`.
"""

import itertools
import re

_ESCAPED = re.compile(r"\\.|/|\n", re.DOTALL)
_ESCAPES = {"/": r"\/", "\n": r"\n", "\\\n": r"\n"}
"""Escapes in a Lark expression, which is enclosed in slashes and on one line."""
_ASCII = {r"\d": "[0-9]", r"\D": "[^0-9]", r"\w": "[0-9A-Za-z_]", r"\W": "[^0-9A-Za-z_]"}
_UNIT = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|.", re.DOTALL)
"""A character, an escape or a class."""
_FLAGS = re.compile(r"\(\?[a-zA-Z]+\)")
_GROUP = re.compile(r"\((?:\?(?:P?<\w+>|:)|(?!\?))")
ANY = "(?s:.*)"


def ascii_classes(source: str) -> str:
    r"""Let \d and \w stand for ASCII characters, as in JavaScript and in JSON schemas."""
    return re.sub(r"\\.", lambda found: _ASCII.get(found[0], found[0]), source, flags=re.DOTALL)


def lark_regex(source: str) -> str:
    """Return the expression as a terminal."""
    source = _ESCAPED.sub(lambda match: _ESCAPES.get(match[0], match[0]), source)
    return f"/{source or '(?:)'}/"


def whole_match(pattern: str) -> str:
    """Return an expression for the texts in which the pattern of a schema is found. An anchor that
    is not at an edge stays, and is refused by llguidance."""
    flags = _FLAGS.match(pattern)
    begin = flags[0] if flags else ""
    return begin + _searched(ascii_classes(pattern.removeprefix(begin)))


def _searched(pattern: str) -> str:
    """Alternatives in groups around alternatives are alternatives of the whole."""
    units = _UNIT.findall(pattern)
    places = list(itertools.accumulate(map(len, units), initial=0))
    ends = _ends_of_groups(units)
    found, waiting = [], [(0, len(units))]
    while waiting:
        begin, end = waiting.pop()
        bars = _bars(units, ends, begin, end)
        group = _GROUP.match(pattern, places[begin])
        if bars:
            edges = itertools.pairwise([begin - 1, *bars, end])
            waiting += reversed([(before + 1, after) for before, after in edges])
        elif group and ends.get(begin) == end - 1:
            waiting.append((begin + len(group[0]), end - 1))
        else:
            found.append(f"(?:{_with_edges(units[begin:end])})")
    return "|".join(found)


def _with_edges(units: list[str]) -> str:
    before = after = ANY
    if units and units[0] in ("^", r"\A"):
        before, units = "", units[1:]
    if units and units[-1] in ("$", r"\z"):
        after, units = "", units[:-1]
    return before + "".join(units) + after


def _ends_of_groups(units: list[str]) -> dict[int, int]:
    """By the begin of a group, its last unit."""
    ends: dict[int, int] = {}
    begins = []
    for i, unit in enumerate(units):
        if unit == "(":
            begins.append(i)
        elif unit == ")" and begins:
            ends[begins.pop()] = i
    return ends


def _bars(units: list[str], ends: dict[int, int], begin: int, end: int) -> list[int]:
    """What separates the alternatives of a part of an expression."""
    found, i = [], begin
    while i < end:
        if units[i] == "|":
            found.append(i)
        i = ends.get(i, i) + 1
    return found


_DIGITS_255 = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = rf"(?:{_DIGITS_255}\.){{3}}{_DIGITS_255}"
_HEX = "[0-9a-fA-F]"
_HEX_4 = f"{_HEX}{{1,4}}"
_IPV6 = "|".join(
    [
        f"(?:{_HEX_4}:){{7}}{_HEX_4}",
        *(f"(?:{_HEX_4}(?::{_HEX_4}){{0,{n}}})?::(?:{_HEX_4}(?::{_HEX_4}){{0,{5 - n}}})?"
          for n in range(6)),
        f"(?:{_HEX_4}:){{6}}{_HEX_4}::|::(?:{_HEX_4}:){{6}}{_HEX_4}",
    ]
)  # fmt: skip
_DATE = (
    "[0-9]{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])"
    "|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-9]))"
)
_HOUR = "(?:[01][0-9]|2[0-3])"
_TIME = rf"{_HOUR}:[0-5][0-9]:(?:[0-5][0-9]|60)(?:\.[0-9]+)?(?:[zZ]|[+-]{_HOUR}:[0-5][0-9])"
_CLOCK = "(?:[0-9]+H(?:[0-9]+M(?:[0-9]+S)?)?|[0-9]+M(?:[0-9]+S)?|[0-9]+S)"
_DAYS = "(?:[0-9]+Y(?:[0-9]+M(?:[0-9]+D)?)?|[0-9]+M(?:[0-9]+D)?|[0-9]+D)"
_LABEL = "[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
_HOST = rf"{_LABEL}(?:\.{_LABEL})*"
_ATOM = r"[a-zA-Z0-9!#$%&'*+\-/=?\^_`{|}~]+"
_PATH = rf"(?:[a-zA-Z0-9\-._~!$&'()*+,;=:@]|%{_HEX}{{2}})"
_USER = rf"(?:[a-zA-Z0-9\-._~!$&'()*+,;=:]|%{_HEX}{{2}})*"
_NAME = rf"(?:[a-zA-Z0-9\-._~!$&'()*+,;=]|%{_HEX}{{2}})*"
_AUTHORITY = rf"//(?:{_USER}@)?(?:\[(?:{_IPV6})\]|{_NAME})(?::[0-9]*)?(?:/{_PATH}*)*"
FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}[tT]{_TIME}",
    "duration": f"P(?:{_DAYS}(?:T{_CLOCK})?|T{_CLOCK}|[0-9]+W)",
    "email": rf"{_ATOM}(?:\.{_ATOM})*@(?:{_HOST}|\[{_IPV4}\])",
    "hostname": _HOST,
    "ipv4": _IPV4,
    "ipv6": _IPV6,
    "uuid": f"{_HEX}{{8}}-(?:{_HEX}{{4}}-){{3}}{_HEX}{{12}}",
    "uri": rf"[a-zA-Z][a-zA-Z0-9+\-.]*:(?:{_AUTHORITY}|/?(?:{_PATH}+(?:/{_PATH}*)*)?)"
    rf"(?:\?(?:{_PATH}|[/?])*)?(?:#(?:{_PATH}|[/?])*)?",
}
"""The formats that llguidance enforces: RFC 3339, 5321, 1123, 2673, 4291, 4122, 3986."""
