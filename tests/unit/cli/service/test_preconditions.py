"""`llmis up` does not start where it could not run."""

import socket
from pathlib import Path

import pytest

from cli.service import preconditions
from cli.service.preconditions import StartError
from shared.settings.fields import Settings
from tests.conftest import free_port


def test_a_data_folder_has_one_service(tmp_path: Path) -> None:
    settings = Settings(base_dir=str(tmp_path))
    with preconditions.lock_folders(settings):
        assert (settings.data_path / "logs").is_dir()
        assert settings.models_path.is_dir()
        with pytest.raises(StartError, match="another llmis runs on the data folder"):
            preconditions.lock_folders(settings)
    preconditions.lock_folders(settings).close()


def test_a_data_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StartError, match="LLMIS_DATA_DIR"):
        preconditions.lock_folders(Settings(base_dir=str(tmp_path), data_dir="file"))


@pytest.mark.parametrize("setting", ["port", "flower_port"])
def test_a_port_in_use_is_named_with_its_setting(setting: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = {"port": free_port(), "flower_port": 0, setting: taken.getsockname()[1]}
        with pytest.raises(StartError, match=f"set {setting} in llmis.toml or LLMIS_"):
            preconditions.check_ports(Settings(**ports))
    preconditions.check_ports(Settings(**ports))
