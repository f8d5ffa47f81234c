"""`python -m bench plot FILE.json`: draws the result of `python -m bench growth` as a PNG.

The picture is an SVG that the browser of the tests renders: no drawing library is needed.
"""

import argparse
import math
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from bench.measure import Numbers
from bench.processes import ROOT
from tests.support.browser import chromium

_PATH = ROOT / "docs" / "growth.png"
_PANEL_WIDTH, _HEIGHT = 480, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 20, 70, 50
"""Margins of a panel, in pixels."""
_COLORS = ("#0b63ce", "#d1495b", "#5b8c2a")
"""In the order of the servers."""


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


# -- the picture -----------------------------------------------------------------------------


def draw(content: _Content, path: Path) -> None:
    size = {"width": _PANEL_WIDTH * len(PANELS), "height": _HEIGHT}
    with chromium() as browser:
        page = browser.new_page(viewport=size, device_scale_factor=1.5)  # type: ignore[arg-type]
        page.set_content(f'<body style="margin: 0">{svg(content)}</body>')
        page.screenshot(path=path)


def svg(content: _Content) -> str:
    """The panels side by side, below them what was measured."""
    width = _PANEL_WIDTH * len(PANELS)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{_HEIGHT}" '
        'font-family="sans-serif" font-size="12" fill="#333">',
        f'<rect width="{width}" height="{_HEIGHT}" fill="white"/>',
        _text(width / 2, 20, caption(content), "middle"),
    ]
    for number, panel in enumerate(PANELS):
        left = number * _PANEL_WIDTH
        parts += _panel(panel, lines(content, panel), left, with_legend=number == 0)
    return "".join([*parts, "</svg>"])


class Axis(Struct, frozen=True):
    """From values to pixels."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool

    def at(self, value: float) -> float:
        low, high, here = (math.log(v) if self.is_log else v for v in (self.low, self.high, value))
        return self.start + (self.end - self.start) * (here - low) / (high - low)

    def ticks(self) -> list[float]:
        """1, 2 or 5 times a power of ten; of a linear axis at most seven."""
        exponents = range(-6, 10)
        if self.is_log:
            ticks = [f * 10.0**e for e in exponents for f in (1, 2, 5)]
            return [tick for tick in ticks if self.low <= tick <= self.high]
        step = next(
            f * 10.0**e for e in exponents for f in (1, 2, 5) if f * 10.0**e * 6 > self.high
        )
        return [i * step for i in range(int(self.high / step) + 1)]


def _panel(panel: Panel, of_servers: list[Line], left: int, *, with_legend: bool) -> list[str]:
    streams = sorted({n for line in of_servers for n in line.streams}) or [1]
    values = [value for line in of_servers for value in line.values] or [1.0]
    low, high = (min(values) / 1.2, max(values) * 1.2) if panel.is_log else (0, max(values) * 1.05)
    x0, x1 = left + _LEFT, left + _PANEL_WIDTH - _RIGHT
    across = Axis(streams[0] / 1.2, streams[-1] * 1.2, x0, x1, is_log=True)
    up = Axis(low, high, _HEIGHT - _BOTTOM, _TOP, panel.is_log)
    parts = [_text((x0 + x1) / 2, _TOP - 20, panel.title, "middle")]
    parts.append(_text((x0 + x1) / 2, _HEIGHT - 12, "streams at the same time", "middle"))
    for tick in up.ticks():
        parts.append(_line(x0, up.at(tick), x1, up.at(tick)))
        parts.append(_text(x0 - 8, up.at(tick) + 4, f"{tick:,.6g}", "end"))
    for num_streams in streams:
        at = across.at(num_streams)
        parts.append(_line(at, up.start, at, up.end))
        parts.append(_text(at, up.start + 18, str(num_streams), "middle"))
    for number, (line, color) in enumerate(zip(of_servers, _COLORS, strict=False)):
        points = zip(line.streams, line.values, strict=True)
        places = [(across.at(n), up.at(value)) for n, value in points]
        parts += _curve(places, color)
        if with_legend:
            # Tokens/s begin at 0 and grow: the lower right corner is free.
            y = up.start - 18 * (len(of_servers) - number)
            parts += _curve([(x1 - 90, y)], color)
            parts.append(_text(x1 - 80, y + 4, line.server))
    return parts


def _curve(places: list[tuple[float, float]], color: str) -> list[str]:
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dots = [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{color}"/>' for x, y in places]
    return [f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2"/>', *dots]


def _line(x0: float, y0: float, x1: float, y1: float) -> str:
    return f'<path d="M{x0:.1f},{y0:.1f}L{x1:.1f},{y1:.1f}" stroke="#ddd"/>'


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def caption(content: _Content) -> str:
    machine = content.machine
    return (
        f"counter model, {machine['date'][:10]}, {machine['cores']} cores of {machine['cpu']}, "
        f"commit {machine['commit'][:7]}, medians of {content.rounds} rounds in turns"
    )
