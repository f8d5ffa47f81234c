"""The denylist: what prompts and answers must not hold, and what becomes of those that do.

Rules come from a TOML file (docs/filter.md) and are compiled for RE2, which needs time linear in
the length of a text, whatever the pattern.
"""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import re2
from msgspec import Meta, Struct

from shared import names
from shared.case_folding import folded
from shared.errors import SettingsError

_MAX_FILE_BYTES = 2 * 1024 * 1024
_MAX_RULES = 1000
_MAX_LITERALS = 20_000
"""Of all rules together."""
_RE2_BYTES = 64 * 1024 * 1024
"""Memory of one compiled pattern. RE2 is slower, and right, when it needs more."""
_OPENING_CHARS = 3
_STRIDE = 16
"""Characters of an answer that a regex goes through at a time."""
_MAX_FOUND = 100
"""Matches of one prompt that are looked at to name the rules."""

Action = Literal["refuse", "truncate", "mask", "tag"]
Place = Literal["prompt", "output"]


class Rule(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, dict=True):
    """One `[[rules]]` table of the file."""

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    """What headers, logs and errors call it."""
    action: Action
    literals: list[Annotated[str, Meta(min_length=1, max_length=256)]] = []
    regex: Annotated[str, Meta(max_length=2000)] | None = None
    """In RE2's syntax. Either this or `literals`."""
    ignore_case: bool = True
    models: list[Annotated[str, Meta(pattern=names.MODEL_NAME_PATTERN)]] | None = None
    """None = all."""
    on: Literal["prompt", "output", "both"] | None = None
    """None = wherever the action is possible."""
    max_chars: Annotated[int, Meta(ge=1, le=1000)] = 128
    """Of a regex on output: characters of a match. So many are held back."""

    def is_on(self, place: Place) -> bool:
        where = self.on or ("output" if self.action in ("truncate", "mask") else "both")
        return where in (place, "both")

    @property
    def source(self) -> str:
        """As RE2 reads it."""
        texts = sorted(self.literals, key=len, reverse=True)
        inner = "|".join(map(re2.escape, texts)) if self.regex is None else self.regex
        return f"(?{'i' if self.ignore_case else ''}:{inner})"

    @cached_property
    def regexp(self) -> Any:
        return _compile(self.source)

    @property
    def longest(self) -> int:
        """Characters of its longest match on output."""
        return self.max_chars if self.regex is not None else max(map(len, self.literals))


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    rules: list[Rule] = []


def _compile(source: str) -> Any:
    options = re2.Options()
    options.max_mem = _RE2_BYTES
    options.longest_match = True  # which of several rules matches, their order does not decide
    options.never_capture = True
    options.log_errors = False
    return re2.compile(source, options)


class Pattern:
    """Several rules as one pattern: which matches, and what may yet become a match."""

    def __init__(self, rules: list[Rule]) -> None:
        self.rules = rules
        self._regexp = _compile("|".join(rule.source for rule in rules))
        self.longest = max(rule.longest for rule in rules)
        has_regex = any(rule.regex is not None for rule in rules)
        self._window = self.longest if has_regex else 0
        """How much text may decide whether a match begins at a place."""
        self._beginnings: dict[bool, set[str]] = {True: set(), False: set()}
        """`ignore_case` → the beginnings of literals, without their last character."""
        for rule in rules:
            for text in rule.literals:
                key = folded(text) if rule.ignore_case else text
                self._beginnings[rule.ignore_case].update(key[:n] for n in range(1, len(key)))
        lengths = [len(text) for rule in rules for text in rule.literals]
        self._opening_chars = min(_OPENING_CHARS, *lengths) if lengths else 0
        self._openings = {
            ignore_case: {
                (folded(text) if ignore_case else text)[: self._opening_chars]
                for rule in rules
                for text in rule.literals
                if rule.ignore_case is ignore_case
            }
            for ignore_case in (True, False)
        }
        """`ignore_case` → how literals begin: what begins otherwise need not be searched."""
        self._longest_beginning = max(map(len, set().union(*self._beginnings.values())), default=0)

    def is_in(self, text: str) -> bool:
        return self._regexp.search(_encoded(text)) is not None

    def rules_in(self, text: str) -> list[Rule]:
        """The rules that match, in the order of the first hundred matches."""
        found: dict[str, Rule] = {}
        encoded = _encoded(text)
        for number, match in enumerate(self._regexp.finditer(encoded)):
            if number == _MAX_FOUND:
                break
            rule = self._rule_of(encoded, *match.span())
            found.setdefault(rule.name, rule)
        return list(found.values())

    def next_match(
        self, text: str, start: int, limit: int, end: int
    ) -> tuple[int, int, Rule] | None:
        """The first match that begins in `[start, limit)` and ends by `end`, the longest of those
        that begin there, of at most `longest` characters: its begin, its end, its rule."""
        while start < limit:
            if not self._window and not self._may_begin(text[start : limit + _OPENING_CHARS]):
                return None
            match = self._regexp.search(text, start, end)
            if match is None or match.start() >= limit:
                return None
            begin, match_end = match.span()
            if match_end - begin > self.longest:
                match = self._regexp.match(text, begin, begin + self.longest)
                match_end = match.end() if match else begin
            if match_end > begin:
                return begin, match_end, self._rule_of(text, begin, match_end)
            start = begin + 1
        return None

    def _may_begin(self, text: str) -> bool:
        """Whether a literal may begin in a text. RE2 lets other threads run, which costs the one
        that draws tokens more than this does."""
        length = self._opening_chars
        for ignore_case, openings in self._openings.items():
            if openings:
                tail = folded(text) if ignore_case else text
                for at in range(len(tail) - length + 1):
                    if tail[at : at + length] in openings:
                        return True
        return False

    def open_from(self, text: str, start: int) -> int:
        """From which character on, at `start` or later, more text may bring a match or make it
        longer."""
        found = len(text)
        if self._window:
            found = max(start, (found - self._window) // _STRIDE * _STRIDE)
        for ignore_case, beginnings in self._beginnings.items():
            if beginnings:
                # Folding keeps the number of characters.
                first = max(start, len(text) - self._longest_beginning)
                tail = folded(text[first:]) if ignore_case else text[first:]
                for at in range(min(len(tail), found - first)):
                    if tail[at:] in beginnings:
                        found = first + at
                        break
        return found

    def _rule_of(self, text: str | bytes, begin: int, end: int) -> Rule:
        for rule in self.rules:
            match = rule.regexp.match(text, begin, end)
            if match is not None and match.end() == end:
                return rule
        raise AssertionError("a match is one of a rule")


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class PromptRules:
    """What holds for the prompts of one model."""

    refuse: Pattern | None
    tag: Pattern | None


@dataclass(frozen=True, slots=True)
class OutputRules:
    """What holds for the answers of one model."""

    end: Pattern | None
    """The answer ends before the match."""
    mask: Pattern | None
    tag: Pattern | None

    def changes(self, text: str) -> bool:
        """Whether a text would not be shown as it is."""
        return any(pattern.is_in(text) for pattern in (self.end, self.mask) if pattern)


NO_OUTPUT_RULES = OutputRules(None, None, None)


class Denylist:
    """The rules of one reading of the file. Immutable; thread-safe."""

    def __init__(self, rules: list[Rule]) -> None:
        self.rules = rules
        self._prompts: dict[str, PromptRules | None] = {}
        self._outputs: dict[str, OutputRules | None] = {}

    def compile(self) -> None:
        """Raise re2.error if the rules are too large for one pattern."""
        if self.rules:
            Pattern(self.rules)

    def on_prompts(self, model: str) -> PromptRules | None:
        """None = no rule is about the prompts of this model."""
        if model not in self._prompts:
            rules = self._of(model, "prompt")
            made = PromptRules(_pattern(rules, "refuse"), _pattern(rules, "tag"))
            self._prompts[model] = made if rules else None
        return self._prompts[model]

    def on_output(self, model: str) -> OutputRules | None:
        """None = no rule is about the answers of this model."""
        if model not in self._outputs:
            rules = self._of(model, "output")
            end = _pattern(rules, "refuse", "truncate")
            made = OutputRules(end, _pattern(rules, "mask"), _pattern(rules, "tag"))
            self._outputs[model] = made if rules else None
        return self._outputs[model]

    def _of(self, model: str, place: Place) -> list[Rule]:
        return [
            rule
            for rule in self.rules
            if rule.is_on(place) and (rule.models is None or model in rule.models)
        ]


def _pattern(rules: list[Rule], *actions: Action) -> Pattern | None:
    chosen = [rule for rule in rules if rule.action in actions]
    return Pattern(chosen) if chosen else None


def read(path: Path) -> Denylist:
    """Read and compile a file. Raises SettingsError with the file, the rule and the reason."""
    return parse(path, payload_of(path))


def payload_of(path: Path) -> bytes:
    """Raises SettingsError."""
    try:
        size = path.stat().st_size
        if size > _MAX_FILE_BYTES:
            raise SettingsError(f"{path}: {size} bytes; at most {_MAX_FILE_BYTES} are read")
        return path.read_bytes()
    except OSError as exc:
        raise SettingsError(f"{path}: not readable: {exc}") from exc


def parse(path: Path, payload: bytes) -> Denylist:
    """Compile what a file says. Raises SettingsError likewise."""
    try:
        raw = msgspec.toml.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise SettingsError(f"{path}: not readable as TOML: {exc}") from exc
    tables = raw.get("rules", []) if isinstance(raw, dict) else []
    try:
        rules = msgspec.convert(raw, _File).rules
    except msgspec.ValidationError as exc:
        raise SettingsError(f"{path}: {_named(str(exc), tables)}") from exc
    _check(path, rules)
    return Denylist(rules)


def _named(message: str, tables: Any) -> str:
    """The message of the decoder, with the name of the rule that it is about."""
    at = re.search(r"rules\[(\d+)\]", message)
    table = tables[int(at[1])] if at else None
    name = table.get("name") if isinstance(table, dict) else None
    return f"rule {name!r}: {message}" if name is not None else message


def _check(path: Path, rules: list[Rule]) -> None:
    """Raises SettingsError."""
    if len(rules) > _MAX_RULES:
        raise SettingsError(f"{path}: {len(rules)} rules; at most {_MAX_RULES} are taken")
    num_literals = sum(len(rule.literals) for rule in rules)
    if num_literals > _MAX_LITERALS:
        raise SettingsError(
            f"{path}: {num_literals} literals in all rules; at most {_MAX_LITERALS} are taken"
        )
    seen = set()
    for rule in rules:
        reason = "the name is given twice" if rule.name in seen else _fault(rule)
        if reason:
            raise SettingsError(f"{path}: rule {rule.name!r}: {reason}")
        seen.add(rule.name)
    try:
        Denylist(rules).compile()
    except re2.error as exc:
        raise SettingsError(f"{path}: all rules together: {_reason(exc)}") from exc


def _reason(exc: Any) -> str:
    reason = exc.args[0]
    return reason.decode() if isinstance(reason, bytes) else str(reason)


def _fault(rule: Rule) -> str:
    """What is wrong with a rule; "" = nothing."""
    if bool(rule.literals) is (rule.regex is not None):
        return "it needs either literals or a regex"
    if rule.action in ("truncate", "mask") and rule.on in ("prompt", "both"):
        return f"{rule.action} works on output alone"
    if rule.regex is None:
        return ""
    if re.search(r"(?<!\\)(?:\\\\)*\\C", rule.regex):
        return r"regex: \C would match parts of characters"
    try:
        found = _compile(rule.regex)
    except re2.error as exc:
        return f"regex: {_reason(exc)} (the syntax is RE2's: no lookaround, no back-references)"
    return "regex: it matches the empty text" if found.search("") is not None else ""
