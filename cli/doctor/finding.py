"""The findings of the checks."""

from enum import StrEnum

from msgspec import Struct


class Severity(StrEnum):
    OK = "ok"
    WARNING = "warning"
    """It works, but not as well as possible."""
    PROBLEM = "problem"


class Finding(Struct, frozen=True):
    """One line of the report."""

    outcome: Severity
    subject: str
    text: str
    mend: str | None = None
    """What to do about it; None if all is well."""


def ok(subject: str, text: str) -> Finding:
    return Finding(Severity.OK, subject, text)


def warning(subject: str, text: str, mend: str) -> Finding:
    return Finding(Severity.WARNING, subject, text, mend)


def problem(subject: str, text: str, mend: str) -> Finding:
    return Finding(Severity.PROBLEM, subject, text, mend)
