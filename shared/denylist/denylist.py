"""The denylist: the rules for prompts and answers, by model, and how they are parsed.

Rules come from a TOML file (docs/filter.md) and are compiled for RE2, whose time is linear in the
length of a text for every pattern.
"""

import codecs
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import re2
from msgspec import Struct

from shared.denylist.matcher import Pattern
from shared.denylist.rule import Action, Rule, RulePlace, compile_re2
from shared.errors import SettingsError

_MAX_FILE_BYTES = 2 * 1024 * 1024
_MAX_RULES = 1000
_MAX_LITERALS = 20_000
"""Of all rules together."""


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    rules: list[Rule] = []


@dataclass(frozen=True, slots=True)
class PromptRules:
    """The rules for the prompts of one model."""

    refuse: Pattern | None
    tag: Pattern | None


@dataclass(frozen=True, slots=True)
class OutputRules:
    """The rules for the answers of one model."""

    end: Pattern | None
    """The answer ends before the match."""
    mask: Pattern | None
    tag: Pattern | None

    def changes(self, text: str) -> bool:
        """Whether a text would be cut or masked."""
        return any(pattern.is_in(text) for pattern in (self.end, self.mask) if pattern)


NO_OUTPUT_RULES = OutputRules(None, None, None)


class Denylist:
    """The rules of one version of the file. Thread-safe; the rules do not change."""

    def __init__(self, rules: list[Rule]) -> None:
        self.rules = rules
        self._prompts: dict[str, PromptRules | None] = {}
        self._outputs: dict[str, OutputRules | None] = {}

    def on_prompts(self, model: str) -> PromptRules | None:
        """None = no rule applies to the prompts of this model."""
        if model not in self._prompts:
            rules = self._of(model, "prompt")
            made = PromptRules(_pattern(rules, "refuse"), _pattern(rules, "tag"))
            self._prompts[model] = made if rules else None
        return self._prompts[model]

    def on_output(self, model: str) -> OutputRules | None:
        """None = no rule applies to the answers of this model."""
        if model not in self._outputs:
            rules = self._of(model, "output")
            end = _pattern(rules, "refuse", "truncate")
            made = OutputRules(end, _pattern(rules, "mask"), _pattern(rules, "tag"))
            self._outputs[model] = made if rules else None
        return self._outputs[model]

    def _of(self, model: str, place: RulePlace) -> list[Rule]:
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
    """Read a file. Raises SettingsError."""
    try:
        size = path.stat().st_size
        if size > _MAX_FILE_BYTES:
            raise SettingsError(f"{path}: {size} bytes; at most {_MAX_FILE_BYTES} are read")
        return path.read_bytes()
    except OSError as exc:
        raise SettingsError(f"{path}: not readable: {exc}") from exc


def parse(path: Path, payload: bytes) -> Denylist:
    """Compile the content of a file. Raises SettingsError likewise."""
    try:
        raw = msgspec.toml.decode(payload.removeprefix(codecs.BOM_UTF8))
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
    """Add the name of the rule to a message of the decoder, if it is about one."""
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
        if rules:
            Pattern(rules)
    except re2.error as exc:
        raise SettingsError(f"{path}: all rules together: {_reason(exc)}") from exc


def _reason(exc: Any) -> str:
    reason = exc.args[0]
    return reason.decode() if isinstance(reason, bytes) else str(reason)


def _fault(rule: Rule) -> str:
    """Why a rule is not valid; "" = it is."""
    if bool(rule.literals) is (rule.regex is not None):
        return "it needs either literals or a regex"
    if rule.action in ("truncate", "mask") and rule.on in ("prompt", "both"):
        return f"{rule.action} works on output only"
    if rule.regex is None:
        return ""
    if re.search(r"(?<!\\)(?:\\\\)*\\C", rule.regex):
        return r"regex: \C would match parts of characters"
    try:
        found = compile_re2(rule.regex)
    except re2.error as exc:
        return f"regex: {_reason(exc)} (the syntax is RE2's: no lookaround, no back-references)"
    return "regex: it matches the empty text" if found.search("") is not None else ""
