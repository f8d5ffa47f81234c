"""`/metrics`' text of what the web processes have counted together."""

import json
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from prometheus_client.utils import floatToGoString

from app.shared_counters import sums_of


class _Series(NamedTuple):
    """What a key in the files says."""

    family: str
    text: str
    name: str
    labels: str
    """As they are shown, but for `le`."""
    bound: float
    """Of a bucket; otherwise 0."""


def shown(folder: Path) -> str:
    """All counters, histograms and gauges in Prometheus' text format."""
    lines: list[str] = []
    for kind, sums in sums_of(folder).items():
        families: dict[str, list[tuple[_Series, float]]] = defaultdict(list)
        for key, value in sums.items():
            series = _series(key)
            families[series.family].append((series, value))
        for family, found in families.items():
            name = f"{family}_total" if kind == "counter" else family
            lines += (f"# HELP {name} {found[0][0].text}", f"# TYPE {name} {kind}")
            if kind == "histogram":
                lines += _histogram(family, found)
            else:
                lines += (_line(one.name, one.labels, value) for one, value in found)
    return "\n".join([*lines, ""])


def _histogram(family: str, found: list[tuple[_Series, float]]) -> Iterator[str]:
    """The files have what fell into each bucket alone; what is shown goes up from one to the
    next."""
    totals: dict[str, float] = defaultdict(float)
    buckets = sorted((s.labels, s.bound, value) for s, value in found if s.name.endswith("_bucket"))
    for labels, bound, value in buckets:
        totals[labels] += value
        bounded = ",".join(filter(None, (labels, f'le="{_worded(bound)}"')))
        yield _line(f"{family}_bucket", bounded, totals[labels])
    for series, value in found:
        if series.name.endswith("_sum"):
            yield _line(f"{family}_sum", series.labels, value)
            yield _line(f"{family}_count", series.labels, totals[series.labels])


def _line(name: str, labels: str, value: float) -> str:
    return f"{name}{{{labels}}} {_worded(value)}" if labels else f"{name} {_worded(value)}"


@cache
def _series(key: bytes) -> _Series:
    family, name, labels, text = json.loads(key)
    bound = float(labels.pop("le", 0))
    pairs = (f'{label}="{_escaped(value)}"' for label, value in sorted(labels.items()))
    return _Series(family, text, name, ",".join(pairs), bound)


def _worded(value: float) -> str:
    return str(floatToGoString(value))  # type: ignore[no-untyped-call]


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
