"""The plot of growth, as far as its data."""

import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bench import plot
from tests.unit.bench.results import numbers


def _file(folder: Path, **more: Any) -> Path:
    content = {
        "machine": {"cores": 2, "cpu": "AMD EPYC", "commit": "0123456789abcdef"},
        "rounds": 5,
        "growth": {
            "streams": {"sixteen": 16, "one": 1, "two": 2},
            "medians": {
                "sixteen": {"llmis": numbers(tokens_per_s=900.0), "llama.cpp": None},
                "one": {"llmis": numbers(tokens_per_s=100.0), "llama.cpp": numbers()},
                "two": {"llmis": numbers(tokens_per_s=200.0), "llama.cpp": numbers()},
            },
            "rounds": {},
        },
        **more,
    }
    path = folder / "growth.json"
    path.write_bytes(msgspec.json.encode(content))
    return path


def test_a_line_for_each_server_in_the_order_of_the_streams(tmp_path: Path) -> None:
    ours, theirs = plot.lines(plot.read(_file(tmp_path)), plot.PANELS[0])
    assert ours == plot.Line("llmis", [1, 2, 16], [100.0, 200.0, 900.0])
    assert theirs == plot.Line("llama.cpp", [1, 2], [1.0, 1.0]), "without the load that stalled"


def test_the_caption_names_machine_and_commit(tmp_path: Path) -> None:
    text = plot.caption(plot.read(_file(tmp_path)))
    assert "5 rounds" in text
    assert "2 cores of AMD EPYC, commit 0123456" in text


def test_a_result_of_another_benchmark_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no result of `python -m bench growth`"):
        plot.read(_file(tmp_path, growth={"medians": {}}))


def test_without_matplotlib_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemExit, match=r"pip install -r requirements-bench\.txt"):
        plot.main([str(_file(tmp_path)), "--to", str(tmp_path / "growth.png")])
