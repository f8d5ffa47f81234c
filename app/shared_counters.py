"""The files through which the web processes of a host share their counters and histograms.

Each process has its own, named by its pid; what is shown is their sum. Those of a process that
has ended are added to one file that stands for all the dead, so that neither files nor the time
to read them grow with restarts. Readers and the one who adds up hold a lock: nothing is missing
from a sum, and nothing is in it twice.
"""

import fcntl
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from prometheus_client.metrics_core import Metric
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

_DEAD = "dead"
"""Instead of a pid."""
_ADDABLE = ("counter", "histogram")


class SharedCounters(Collector):
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def collect(self) -> Iterable[Metric]:
        with _locked(self._folder, fcntl.LOCK_SH):
            # One that has just been created is empty for a moment.
            files = [str(file) for file in self._folder.glob("*.db") if file.stat().st_size]
            metrics: Iterable[Metric] = MultiProcessCollector.merge(files)  # type: ignore[no-untyped-call]
        return metrics


def bury(folder: Path, pid: int) -> None:
    """Add the counters of a process that has ended to those of the dead, and remove its files."""
    with _locked(folder, fcntl.LOCK_EX):
        for kind in _ADDABLE:
            file = folder / f"{kind}_{pid}.db"
            if file.exists():
                if file.stat().st_size:
                    _add(file, folder / f"{kind}_{_DEAD}.db")
                file.unlink()
        for file in folder.glob(f"gauge_*_{pid}.db"):
            file.unlink()


def _add(source: Path, target: Path) -> None:
    total = MmapedDict(str(target))  # type: ignore[no-untyped-call]
    try:
        for key, value, _, _ in MmapedDict.read_all_values_from_file(str(source)):  # type: ignore[no-untyped-call]
            before, _ = total.read_value(key)  # type: ignore[no-untyped-call]
            total.write_value(key, before + value, 0.0)  # type: ignore[no-untyped-call]
    finally:
        total.close()  # type: ignore[no-untyped-call]


@contextmanager
def _locked(folder: Path, how: int) -> Iterator[None]:
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, how)
        yield
