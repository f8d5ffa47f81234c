"""The files through which the web processes of a host share what they count.

Each process has its own, which `prometheus_client` writes; what is shown is their sum, gauges
too. Those of a process that has ended are added to files that stand for all the dead, so that
neither files nor the time to read them grow with restarts. Readers and the one who adds up hold
a lock: nothing is missing from a sum, and nothing is in it twice.

The files are read here and not by `MultiProcessCollector`: with ten models and four processes it
holds up the streams of a process for ten times as long.
"""

import fcntl
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from struct import Struct
from typing import NamedTuple

from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.utils import floatToGoString

_DEAD = "dead"
"""Instead of a pid."""
_LENGTH, _VALUE = Struct("i"), Struct("d")
_HEAD_BYTES, _TAIL_BYTES = 8, 16
"""Before the first entry: the bytes in use. Behind each key: its value and a time."""


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
    for kind, sums in _sums(folder).items():
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


def _sums(folder: Path) -> dict[str, dict[bytes, float]]:
    """Kind → key → the sum over all processes."""
    sums: dict[str, dict[bytes, float]] = defaultdict(lambda: defaultdict(float))
    with _locked(folder, fcntl.LOCK_SH):
        for file in sorted(folder.glob("*.db")):
            of_kind = sums[file.name.split("_")[0]]
            for key, value in _entries(file.read_bytes()):
                of_kind[key] += value
    return sums


def _entries(content: bytes) -> Iterable[tuple[bytes, float]]:
    """Source of the format: prometheus_client@v0.26.0:prometheus_client/mmap_dict.py."""
    # One that has just been created is empty for a moment.
    end = _LENGTH.unpack_from(content)[0] if len(content) >= _HEAD_BYTES else 0
    position = _HEAD_BYTES
    while position < end:
        key_at = position + 4
        length = _LENGTH.unpack_from(content, position)[0]
        value_at = key_at + length + 8 - (length + 4) % 8
        yield content[key_at : key_at + length], _VALUE.unpack_from(content, value_at)[0]
        position = value_at + _TAIL_BYTES


def bury(folder: Path, pid: int) -> None:
    """Add what a process has counted that has ended to what the dead have, and remove its files."""
    with _locked(folder, fcntl.LOCK_EX):
        for kind in ("counter", "histogram"):
            file = folder / f"{kind}_{pid}.db"
            if file.exists():
                _add(file.read_bytes(), folder / f"{kind}_{_DEAD}.db")
                file.unlink()
        for file in folder.glob(f"gauge_*_{pid}.db"):
            file.unlink()


def _add(content: bytes, target: Path) -> None:
    total = MmapedDict(str(target))  # type: ignore[no-untyped-call]
    try:
        for key, value in _entries(content):
            name = key.decode()
            before, _ = total.read_value(name)  # type: ignore[no-untyped-call]
            total.write_value(name, before + value, 0.0)  # type: ignore[no-untyped-call]
    finally:
        total.close()  # type: ignore[no-untyped-call]


@contextmanager
def _locked(folder: Path, how: int) -> Iterator[None]:
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, how)
        yield
