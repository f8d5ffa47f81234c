"""`python -m bench plot FILE.json`: draws the result of `python -m bench growth` as a PNG.

matplotlib is loaded here alone; it is in requirements-bench.txt.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from bench.measure import Numbers
from bench.processes import ROOT

_PATH = ROOT / "docs" / "growth.png"
_DPI = 110


class Panel(Struct, frozen=True):
    title: str
    value: Callable[[Numbers], float]
    is_log: bool = False


PANELS = (
    Panel("tokens per second", lambda n: n.tokens_per_s),
    Panel("time to first token, median, ms", lambda n: n.ttft_p50_ms, is_log=True),
    Panel("CPU seconds for 1,000 tokens", lambda n: n.cpu_s_per_1k),
)


class Line(Struct, frozen=True):
    """One server in one panel, in the order of the streams. A load that stalled is left out."""

    server: str
    streams: list[int]
    values: list[float]


class _Growth(Struct):
    streams: dict[str, int]
    """Load label → streams at the same time."""
    medians: dict[str, dict[str, Numbers | None]]


class _Content(Struct):
    machine: dict[str, Any]
    rounds: int
    growth: _Growth


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench plot", description=__doc__)
    parser.add_argument("file", type=Path, help="of bench/results, by `python -m bench growth`")
    parser.add_argument("--to", type=Path, default=_PATH, help="the picture (docs/growth.png)")
    given = parser.parse_args(arguments)
    content = read(given.file)
    draw(content, given.to)
    print(f"written: {given.to}")
    return 0


def read(path: Path) -> _Content:
    """Raises SystemExit for a file of another benchmark."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Content)
    except msgspec.ValidationError as exc:
        raise SystemExit(f"{path} is no result of `python -m bench growth`: {exc}") from exc


def lines(content: _Content, panel: Panel) -> list[Line]:
    """What a panel shows, in the order in which the servers took turns."""
    growth = content.growth
    labels = sorted(growth.streams, key=growth.streams.__getitem__)
    found = []
    for server in growth.medians[labels[0]]:
        points = [(growth.streams[label], growth.medians[label][server]) for label in labels]
        whole = [(streams, numbers) for streams, numbers in points if numbers is not None]
        values = [panel.value(numbers) for _, numbers in whole]
        found.append(Line(server, [streams for streams, _ in whole], values))
    return found


def draw(content: _Content, path: Path) -> None:
    """Raises SystemExit without matplotlib."""
    try:
        import matplotlib
    except ImportError as exc:
        raise SystemExit(
            "the plot needs matplotlib: .venv/bin/python -m pip install -r requirements-bench.txt"
        ) from exc
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(PANELS), figsize=(15, 4.6), layout="constrained")
    for panel, axis in zip(PANELS, axes, strict=True):
        for line in lines(content, panel):
            axis.plot(line.streams, line.values, marker="o", markersize=4, label=line.server)
        axis.set_title(panel.title, fontsize=11)
        axis.set_xlabel("streams at the same time")
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:.0f}")
        axis.set_yscale("log" if panel.is_log else "linear")
        if not panel.is_log:
            axis.set_ylim(bottom=0)
        axis.yaxis.set_major_formatter("{x:,g}")
        axis.grid(visible=True, alpha=0.3)
    axes[0].legend()
    figure.suptitle(caption(content), fontsize=9)
    figure.savefig(path, dpi=_DPI, metadata={"Software": None})
    pyplot.close(figure)


def caption(content: _Content) -> str:
    machine = content.machine
    return (
        f"counter model, medians of {content.rounds} rounds in turns, {machine['cores']} cores of "
        f"{machine['cpu']}, commit {machine['commit'][:7]}"
    )
