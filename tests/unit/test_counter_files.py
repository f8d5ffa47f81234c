"""Counters of a web process whose folder is full, or is not there."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from app import shared_counters
from app.counter_files import CounterFile

_MANY = [f"a key that is long enough for some hundred to fill a file {n:04}" for n in range(2000)]


def _fill(file: CounterFile) -> None:
    for n, key in enumerate(_MANY):
        file.write_value(key, float(n), 0.0)
    assert [file.read_value(key)[0] for key in _MANY] == list(range(len(_MANY)))


def _sum(folder: Path) -> float:
    return sum(shared_counters.sums_of(folder).get("counter", {}).values())


def _fail(*_: object) -> None:
    raise OSError(errno.ENOSPC, "no space left")


def test_a_file_grows_and_has_its_room_on_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "new" / "counter_1.db"
    _fill(CounterFile(str(path)))
    assert path.stat().st_blocks * 512 >= path.stat().st_size
    assert _sum(path.parent) == sum(range(len(_MANY)))
    again = CounterFile(str(path))
    assert again.read_value(_MANY[7])[0] == 7


def test_without_room_for_a_file_counters_are_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "posix_fallocate", _fail)
    _fill(CounterFile(str(tmp_path / "counter_1.db")))
    assert _sum(tmp_path) == 0


def test_without_room_to_grow_what_is_in_the_file_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = CounterFile(str(tmp_path / "counter_1.db"))
    file.write_value("before", 5.0, 0.0)
    monkeypatch.setattr(os, "posix_fallocate", _fail)
    _fill(file)
    file.write_value("before", 6.0, 0.0)
    assert file.read_value("before")[0] == 6
    assert _sum(tmp_path) >= 5


_FULL = """
import os, sys
from pathlib import Path
folder = Path(sys.argv[1])
os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder / "metrics")
if sys.argv[2] == "from the start":
    (folder / "filler").write_bytes(bytes(200_000))
from app import metrics
for n in range(3000):
    metrics.REQUESTS.labels(f"model-{n}", "finished", "stop").inc()
print(metrics.REQUESTS.labels("model-2999", "finished", "stop")._value.get())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root for a small file system")
@pytest.mark.parametrize("when", ["from the start", "later"])
def test_a_full_disk_kills_nobody(tmp_path: Path, when: str) -> None:
    mounted = shutil.which("unshare")
    assert mounted is not None
    mount = 'mount -t tmpfs -o size=240k none "$0" && exec "$@"'
    command = [mounted, "--mount", "sh", "-c", mount, str(tmp_path)]
    done = subprocess.run(
        [*command, sys.executable, "-c", _FULL, str(tmp_path), when],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "1.0\n"
