"""What `make audit` makes of pip-audit's findings."""

import pytest

from tools.audit import report

_SOUND = {"name": "redis", "version": "8.1.0", "vulns": []}
_FINDING = {"id": "PYSEC-1", "fix_versions": ["1.1"], "aliases": [], "description": ""}


def test_a_vulnerable_package_is_named_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert report([_SOUND, {"name": "old", "version": "1.0", "vulns": [_FINDING]}]) == 1
    shown = capsys.readouterr().out
    assert "old 1.0: PYSEC-1, fixed in 1.1" in shown and "NOT AUDITED" not in shown


def test_what_could_not_be_looked_up_is_no_clean_bill(capsys: pytest.CaptureFixture[str]) -> None:
    skipped = [{"name": f"p{i}", "skip_reason": "not found"} for i in range(7)]
    assert report([_SOUND, *skipped]) == 0
    assert "NOT AUDITED: 7 packages" in capsys.readouterr().out
