"""What a check has found."""

from enum import StrEnum

from msgspec import Struct


class Outcome(StrEnum):
    OK = "ok"
    WARNING = "warning"
    """It works, but not as well as it could."""
    PROBLEM = "problem"


class Finding(Struct, frozen=True):
    """One line of the report."""

    outcome: Outcome
    subject: str
    text: str
    mend: str | None = None
    """What to do about it; None when all is well."""


def ok(subject: str, text: str) -> Finding:
    return Finding(Outcome.OK, subject, text)


def warning(subject: str, text: str, mend: str) -> Finding:
    return Finding(Outcome.WARNING, subject, text, mend)


def problem(subject: str, text: str, mend: str) -> Finding:
    return Finding(Outcome.PROBLEM, subject, text, mend)
