"""The tables on the terminal, and the files in bench/results."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from bench.measure import Numbers

_RESULTS = Path(__file__).parent / "results"
_COLUMNS: dict[str, Callable[[Numbers], str]] = {
    "tokens/s": lambda n: f"{n.tokens_per_s:,.0f}",
    "TTFT p50": lambda n: f"{n.ttft_p50_ms:.1f}",
    "p99": lambda n: f"{n.ttft_p99_ms:.1f}",
    "ITL p50": lambda n: f"{n.itl_p50_ms:.2f}",
    "p99 ": lambda n: f"{n.itl_p99_ms:.2f}",
    "/token p50": lambda n: f"{n.itl_token_p50_ms:.2f}",
    "p99  ": lambda n: f"{n.itl_token_p99_ms:.2f}",
    "tokens/chunk": lambda n: f"{n.tokens_per_chunk:.1f}",
    "CPU s/1k": lambda n: f"{n.cpu_s_per_1k:.3f}",
    "load CPU": lambda n: f"{n.load_cpu_s_per_1k:.3f}",
    "other cores": lambda n: f"{n.other_cores:.2f}",
}


def side_by_side_table(
    results: Mapping[str, Mapping[str, Numbers | None]],
    theirs: str = "llama.cpp",
    ours: str = "llmis",
) -> str:
    """Two rows per load and the ratio ours / theirs. Times in milliseconds. None = the server
    stalled in every round."""
    rows = [["load", "server", *_COLUMNS]]
    for label, by_server in results.items():
        for server, numbers in by_server.items():
            if numbers is None:
                shown = ["stalled", *[""] * (len(_COLUMNS) - 1)]
            else:
                shown = [show(numbers) for show in _COLUMNS.values()]
            rows.append([label, server, *shown])
            label = ""
        left, right = by_server[ours], by_server[theirs]
        if left is not None and right is not None:
            rows.append(["", "ratio", *_ratios(left, right)])
    return table(rows)


def _ratios(ours: Numbers, theirs: Numbers) -> list[str]:
    skipped = ("cpu_by_role", "other_cores")
    fields = [name for name in Numbers.__struct_fields__ if name not in skipped]
    pairs = [(getattr(ours, name), getattr(theirs, name)) for name in fields]
    return [*(f"{left / right:.2f}" if right else "-" for left, right in pairs), ""]


def table(rows: list[list[str]]) -> str:
    """Plain text: the first two columns to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def write(name: str, content: dict[str, object]) -> Path:
    """Write bench/results/<date>-<name>.json; the name says when it ran, to the second."""
    _RESULTS.mkdir(exist_ok=True)
    path = _RESULTS / f"{time.strftime('%Y-%m-%d-%H%M%S')}-{name}.json"
    path.write_bytes(msgspec.json.format(msgspec.json.encode(content), indent=1) + b"\n")
    return path
