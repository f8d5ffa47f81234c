"""The units are what systemd takes, and leave the processes the time that they need."""

import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest

from shared.settings.fields import Settings
from tests.conftest import ROOT

FOLDER = ROOT / "deploy" / "systemd"
SERVICES = sorted(FOLDER.glob("*.service"))
_PYTHON = "/opt/llmis/.venv/bin/python"
_LAST_REPLICAS_S = 14
"""What `llmis up` gives an agent beyond `drain_grace_s`."""


def _unit(path: Path) -> ConfigParser:
    parser = ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(path)
    return parser


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_takes_the_units(tmp_path: Path) -> None:
    units = [*SERVICES, *FOLDER.glob("*.target")]
    assert len(units) == 4
    for unit in units:
        # Only the program is another one: it has to be there.
        (tmp_path / unit.name).write_text(unit.read_text().replace(_PYTHON, sys.executable))
    command = ["systemd-analyze", "verify", "--man=no", *map(str, tmp_path.iterdir())]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("path", SERVICES, ids=lambda path: path.name)
def test_a_unit_is_locked_down_and_has_time_to_drain(path: Path) -> None:
    service = _unit(path)["Service"]
    assert service["ExecStart"].startswith(f"{_PYTHON} -m cli ")
    assert service["User"] == "llmis"
    assert service["NoNewPrivileges"] == "yes"
    assert service["ProtectSystem"] == "strict"
    needed_s = Settings().drain_grace_s + _LAST_REPLICAS_S
    assert int(service["TimeoutStopSec"]) > (needed_s if "flower" not in path.name else 5)


def test_the_web_tier_may_have_all_its_connections() -> None:
    service = _unit(FOLDER / "llmis-web.service")["Service"]
    assert int(service["LimitNOFILE"]) > 2 * Settings().web_connections
