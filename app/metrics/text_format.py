"""`/metrics`' text of what the web processes have counted together."""

import json
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

from prometheus_client.utils import floatToGoString


class _Series(NamedTuple):
    """What a key of `app.metrics.store` says."""

    family: str
    suffix: str
    labels: str
    """As they are shown, but for `le`."""
    bound: float
    """Of a bucket; otherwise 0."""


def metrics_text(sums: dict[str, float], descriptions: dict[str, tuple[str, str]]) -> str:
    """Format sums as Prometheus' text. `descriptions`: family → type and help; a family that is
    not in it is left out: code of another version counts it."""
    families: dict[str, list[tuple[_Series, float]]] = defaultdict(list)
    for series, value in sorted((_series(key), value) for key, value in sums.items()):
        families[series.family].append((series, value))
    lines: list[str] = []
    for family in families.keys() & descriptions.keys():
        kind, text = descriptions[family]
        name = f"{family}_total" if kind == "counter" else family
        lines += (f"# HELP {name} {text}", f"# TYPE {name} {kind}")
        if kind == "histogram":
            lines += _histogram(family, families[family])
        else:
            lines += (_line(name, series.labels, value) for series, value in families[family])
    return "\n".join([*lines, ""])


def _histogram(family: str, sorted_series: list[tuple[_Series, float]]) -> Iterator[str]:
    """Buckets come before sums. A bucket of the store counts itself alone; in the text it counts
    the ones below it, too."""
    totals: dict[str, float] = defaultdict(float)
    for (_, suffix, labels, bound), value in sorted_series:
        if suffix == "_bucket":
            totals[labels] += value
            bounded = ",".join(filter(None, (labels, f'le="{_number(bound)}"')))
            yield _line(f"{family}_bucket", bounded, totals[labels])
        elif suffix == "_sum":
            yield _line(f"{family}_sum", labels, value)
            yield _line(f"{family}_count", labels, totals[labels])


def _line(name: str, labels: str, value: float) -> str:
    return f"{name}{{{labels}}} {_number(value)}" if labels else f"{name} {_number(value)}"


@cache
def _series(key: str) -> _Series:
    family, suffix, labels = json.loads(key)
    bound = float(labels.pop("le", 0))
    pairs = (f'{label}="{_escaped(value)}"' for label, value in sorted(labels.items()))
    return _Series(family, suffix, ",".join(pairs), bound)


def _number(value: float) -> str:
    return str(floatToGoString(value))  # type: ignore[no-untyped-call]


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
