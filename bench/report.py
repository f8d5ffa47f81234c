"""The tables on the terminal, and the files in bench/results."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import msgspec
from msgspec import Struct

from bench.measure import Numbers

_RESULTS = Path(__file__).parent / "results"
_ROLES = ("web", "replica", "redis")
"""Processes of the service with a column of their own."""


class Column(Struct, frozen=True):
    """One column of a table that sets servers side by side."""

    title: str
    value: Callable[[Numbers], float | None]
    """None = the server has no such value."""
    form: str
    has_ratio: bool = True

    def cell(self, numbers: Numbers) -> str:
        value = self.value(numbers)
        return "-" if value is None else format(value, self.form)

    def ratio(self, ours: Numbers, theirs: Numbers) -> str:
        left, right = self.value(ours), self.value(theirs)
        if not self.has_ratio:
            return ""
        return f"{left / right:.2f}" if left is not None and right else "-"


def _role_per_1k(role: str, numbers: Numbers) -> float | None:
    return numbers.cpu_by_role.get(role)


def _role_per_request(role: str, numbers: Numbers) -> float | None:
    return numbers.cpu_ms_per_request_of(role)


_TTFT = (
    Column("TTFT p50", lambda n: n.ttft_p50_ms, ",.1f"),
    Column("p99", lambda n: n.ttft_p99_ms, ",.1f"),
)
_LAST = Column("last", lambda n: n.ttft_last_ms, ",.1f")
_CPU_PER_REQUEST = (
    Column("CPU ms/request", lambda n: n.cpu_ms_per_request, ".2f"),
    *(Column(role, partial(_role_per_request, role), ".2f") for role in _ROLES),
)
_OTHER_CORES = Column("other cores", lambda n: n.other_cores, ".2f", has_ratio=False)
OF_TOKENS = (
    Column("tokens/s", lambda n: n.tokens_per_s, ",.0f"),
    *_TTFT,
    Column("ITL p50", lambda n: n.itl_p50_ms, ".2f"),
    Column("p99", lambda n: n.itl_p99_ms, ".2f"),
    Column("/token p50", lambda n: n.itl_token_p50_ms, ".2f"),
    Column("p99", lambda n: n.itl_token_p99_ms, ".2f"),
    Column("tokens/chunk", lambda n: n.tokens_per_chunk, ".1f"),
    Column("CPU s/1k", lambda n: n.cpu_s_per_1k, ".3f"),
    *(Column(role, partial(_role_per_1k, role), ".3f") for role in _ROLES),
    Column("load CPU", lambda n: n.load_cpu_s_per_1k, ".3f"),
    _OTHER_CORES,
)
"""CPU seconds are those for 1,000 tokens: of all processes of the server, then of each."""
OF_REQUESTS = (
    Column("requests/s", lambda n: n.requests_per_s, ",.0f"),
    *_TTFT,
    *_CPU_PER_REQUEST,
    _OTHER_CORES,
)
OF_BURSTS = (*_TTFT, _LAST, *_CPU_PER_REQUEST, _OTHER_CORES)


def side_by_side_table(
    results: Mapping[str, Mapping[str, Numbers | None]],
    ours: str = "llmis",
    columns: Sequence[Column] = OF_TOKENS,
) -> str:
    """A row per load and server, and the ratio of ours to each other one. Times in milliseconds.
    None = the server stalled in every round."""
    rows = [["load", "server", *(column.title for column in columns)]]
    for label, by_server in results.items():
        for server, numbers in by_server.items():
            if numbers is None:
                cells = ["stalled", *[""] * (len(columns) - 1)]
            else:
                cells = [column.cell(numbers) for column in columns]
            rows.append([label, server, *cells])
            label = ""
        for server, theirs in by_server.items():
            own = by_server[ours]
            if server != ours and own is not None and theirs is not None:
                ratios = (column.ratio(own, theirs) for column in columns)
                rows.append(["", f"{ours} / {server}", *ratios])
    return table(rows)


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
