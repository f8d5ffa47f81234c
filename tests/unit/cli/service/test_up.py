"""What `llmis up` says when it is ready."""

from pathlib import Path

import pytest

from cli.service.up import LocalService
from shared.settings.load import load


@pytest.mark.parametrize("port", ["0", "5999"])
def test_flower_is_announced_for_later(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], port: str
) -> None:
    """It begins to start only when the models are ready."""
    settings = load({"LLMIS_DATA_DIR": str(tmp_path), "LLMIS_FLOWER_PORT": port})
    LocalService(settings)._say_addresses()
    said = capsys.readouterr().out
    assert said.startswith("llmis is ready: ")
    flower = f"  Flower: http://127.0.0.1:{port}/ (answers in a few seconds)"
    assert (flower in said.splitlines()) is (port != "0")
