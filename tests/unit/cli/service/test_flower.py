"""Flower's password: made once, for its owner alone, and never on a command line."""

import stat
from pathlib import Path

import pytest

from cli.errors import CliError
from cli.service import flower, processes
from shared.errors import SettingsError
from shared.settings.fields import Settings
from shared.settings.load import load


def test_without_auth_it_has_none(tmp_path: Path) -> None:
    assert flower.credentials(Settings(base_dir=str(tmp_path))) == {}


def test_one_is_made_and_kept(tmp_path: Path) -> None:
    settings = Settings(base_dir=str(tmp_path), auth=True)
    made = flower.credentials(settings)
    assert flower.credentials(settings) == made
    path = flower.password_path(settings)
    password = path.read_text().strip()
    assert made == {"FLOWER_BASIC_AUTH": f"llmis:{password}"}
    assert len(password) >= 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert password not in " ".join(processes.flower(settings))


def test_that_of_the_settings_goes_first(tmp_path: Path) -> None:
    settings = Settings(base_dir=str(tmp_path), auth=True, flower_password="a:b")
    assert flower.credentials(settings) == {"FLOWER_BASIC_AUTH": "llmis:a:b"}
    assert not flower.password_path(settings).exists()


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CliError, match=r"flower\.password"):
        flower.credentials(Settings(base_dir=str(tmp_path), data_dir="file", auth=True))


@pytest.mark.parametrize("password", ["a,b", "a b", "pässword"])
def test_one_that_flower_would_not_understand_is_refused_and_not_shown(password: str) -> None:
    with pytest.raises(SettingsError, match="flower_password") as refused:
        load({"LLMIS_FLOWER_PASSWORD": password})
    assert password not in str(refused.value)
