"""The frozen files: what a contract said when it was agreed on, in `tests/contract/frozen`.

A test compares what the code gives today with the file. A change on purpose is written with

    LLMIS_FREEZE=1 .venv/bin/python -m pytest tests/contract -n 0

and reviewed as the diff of these files. While the variable is set every test that writes a file
fails with "written anew": a run that writes can never pass for a run that checks.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent / "frozen"
IS_FREEZING = os.environ.get("LLMIS_FREEZE") == "1"
_HEX_COLUMNS = 96


def assert_frozen(name: str, found: Any) -> None:
    """Compare JSON data with the file of that name. Tuples count as lists, the order of keys
    does not count."""
    text = json.dumps(found, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    _write_if_freezing(name, text)
    assert json.loads(text) == frozen_json(name)


def frozen_json(name: str) -> Any:
    return json.loads(_read(name))


def assert_frozen_text(name: str, found: str) -> None:
    """Compare a text, character by character."""
    _write_if_freezing(name, found + "\n")
    assert found == frozen_text(name)


def frozen_text(name: str) -> str:
    return _read(name).removesuffix("\n")


def assert_frozen_bytes(name: str, found: bytes) -> None:
    """Compare bytes with a file in hexadecimal digits."""
    digits = found.hex()
    lines = [digits[at : at + _HEX_COLUMNS] for at in range(0, len(digits), _HEX_COLUMNS)]
    _write_if_freezing(name, "\n".join(lines) + "\n")
    assert found == frozen_bytes(name)


def frozen_bytes(name: str) -> bytes:
    return bytes.fromhex(_read(name))


def assert_frozen_exactly(name: str, found: str) -> None:
    """Compare a text byte for byte, line ends included."""
    path = FOLDER / name
    if IS_FREEZING:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(found.encode())
        pytest.fail(f"{name} is written anew: check its diff, then run without LLMIS_FREEZE")
    assert path.exists(), f"{path} is missing: LLMIS_FREEZE=1 writes it"
    # Bytes: reading as text would turn "\r\n" into "\n".
    assert found == path.read_bytes().decode()


def frozen_names(folder: str) -> set[str]:
    """The frozen files of a folder, without their suffixes."""
    return {path.stem for path in (FOLDER / folder).iterdir()}


def _read(name: str) -> str:
    path = FOLDER / name
    assert path.exists(), f"{path} is missing: LLMIS_FREEZE=1 writes it"
    return path.read_text("utf-8")


def _write_if_freezing(name: str, text: str) -> None:
    if IS_FREEZING:
        path = FOLDER / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
        pytest.fail(f"{name} is written anew: check its diff, then run without LLMIS_FREEZE")
