"""The plot of growth as a picture."""

import struct
from pathlib import Path

import msgspec
import pytest

from bench import __main__ as bench
from tests.unit.bench.results import numbers


def test_a_result_becomes_a_png(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of_load = {"llmis": numbers(), "llama.cpp": numbers(tokens_per_s=2.0)}
    content = {
        "machine": {"cores": 2, "cpu": "AMD EPYC", "commit": "0123456789", "date": "2026-12-01"},
        "rounds": 5,
        "growth": {"streams": {"one": 1, "two": 2}, "medians": {"one": of_load, "two": of_load}},
    }
    (tmp_path / "growth.json").write_bytes(msgspec.json.encode(content))
    picture = tmp_path / "growth.png"
    arguments = ["bench", "plot", str(tmp_path / "growth.json"), "--to", str(picture)]
    monkeypatch.setattr("sys.argv", arguments)
    assert bench.main() == 0
    data = picture.read_bytes()
    assert data.startswith(b"\x89PNG")
    assert struct.unpack(">II", data[16:24]) == (2160, 600)
