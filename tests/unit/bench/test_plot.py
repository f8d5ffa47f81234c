"""The plot of growth, as far as its SVG."""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import msgspec
import pytest

from bench import plot
from tests.unit.bench.results import numbers

_SVG = "{http://www.w3.org/2000/svg}"


def _file(folder: Path, **more: Any) -> Path:
    content = {
        "machine": {
            "cores": 2,
            "cpu": "AMD EPYC",
            "commit": "0123456789abcdef",
            "date": "2026-12-01T02:03:04Z",
        },
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


def test_the_caption_names_date_machine_and_commit(tmp_path: Path) -> None:
    assert plot.caption(plot.read(_file(tmp_path))) == (
        "counter model, 2026-12-01, 2 cores of AMD EPYC, commit 0123456, "
        "medians of 5 rounds in turns"
    )


def test_a_result_of_another_benchmark_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no result of `python -m bench growth`"):
        plot.read(_file(tmp_path, growth={"medians": {}}))


def test_the_svg_has_a_curve_for_each_server_in_each_panel(tmp_path: Path) -> None:
    picture = ElementTree.fromstring(plot.svg(plot.read(_file(tmp_path))))
    curves = [curve.get("points", "").split() for curve in picture.iter(f"{_SVG}polyline")]
    curves = [points for points in curves if len(points) > 1]
    assert [len(points) for points in curves] == [3, 2] * len(plot.PANELS)
    first = [tuple(map(float, point.split(","))) for point in curves[0]]
    xs, ys = zip(*first, strict=True)
    assert list(xs) == sorted(xs), "more streams are to the right"
    assert list(ys) == sorted(ys, reverse=True), "more tokens/s are above"
    texts = {text.text for text in picture.iter(f"{_SVG}text")}
    assert {"llmis", "llama.cpp", "1", "2", "16", *(p.title for p in plot.PANELS)} <= texts


@pytest.mark.parametrize(
    ("axis", "expected"),
    [
        ((0, 23_000, False), [0, 5000, 10_000, 15_000, 20_000]),
        ((0, 1.2, False), [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        ((3.0, 120.0, True), [5, 10, 20, 50, 100]),
    ],
)
def test_ticks_are_round_numbers(axis: tuple[float, float, bool], expected: list[float]) -> None:
    low, high, is_log = axis
    assert plot.Axis(low, high, 0, 100, is_log).ticks() == pytest.approx(expected)
