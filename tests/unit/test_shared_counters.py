"""What processes that share their counters have counted, also those that have ended."""

import errno
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from app import counter_text, shared_counters
from tests.conftest import wait_for
from tests.metrics_page import Page

_COUNTING = """
import os, sys
os.environ["PROMETHEUS_MULTIPROC_DIR"] = sys.argv[1]
from app import meters, metrics
for _ in range(int(sys.argv[2])):
    metrics.REQUESTS.labels("m", "finished", "stop").inc()
    meters.meters_of("m").e2e_latency.observe(0.012)
    meters.meters_of("m").e2e_latency.observe(1000.0)
    meters.meters_of("m").generation_tokens.inc(3)
metrics.STREAMS.set(2)
meters.flush()
print(os.getpid())
"""


def _count(folder: Path, number: int = 1) -> int:
    """In a process of its own, whose pid is returned."""
    done = subprocess.run(
        [sys.executable, "-c", _COUNTING, str(folder), str(number)],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


def _is_buried(folder: Path, pid: int) -> bool:
    try:
        shared_counters.bury(folder, pid)
    except BlockingIOError:
        return False
    return True


def _page(folder: Path) -> Page:
    return Page(counter_text.shown(folder))


def test_what_the_processes_have_counted_is_added_up(tmp_path: Path) -> None:
    _count(tmp_path, 2)
    _count(tmp_path, 3)
    page = _page(tmp_path)
    assert page.value("llmis_requests_total", model="m", outcome="finished") == 5
    assert page.value("llmis_generation_tokens_total", model="m") == 15
    assert page.value("llmis_streams") == 4
    name = "llmis_e2e_request_latency_seconds"
    at = {has["le"]: value for has, value in page.samples[f"{name}_bucket"]}
    assert (at["0.01"], at["0.015"], at["600.0"], at["+Inf"]) == (0, 5, 5, 10)
    assert page.value(f"{name}_count") == 10
    assert page.value(f"{name}_sum") == 5 * 1000.012
    assert "# TYPE llmis_requests_total counter" in page.text
    assert f"# TYPE {name} histogram" in page.text


def test_the_dead_are_counted_once_and_leave_no_files(tmp_path: Path) -> None:
    living = _count(tmp_path)
    sizes = set()
    for number in range(1, 9):
        shared_counters.bury(tmp_path, _count(tmp_path, number))
        sizes.add(len(list(tmp_path.iterdir())))
    page = _page(tmp_path)
    assert page.value("llmis_requests_total") == 1 + sum(range(1, 9))
    assert page.value("llmis_e2e_request_latency_seconds_count") == 2 * page.value(
        "llmis_requests_total"
    )
    assert page.value("llmis_streams") == 2, "only who lives has streams"
    assert len(sizes) == 1, "files do not grow with restarts"
    shared_counters.bury(tmp_path, living)
    shared_counters.bury(tmp_path, living)
    assert _page(tmp_path).value("llmis_requests_total") == 1 + sum(range(1, 9))
    assert not list(tmp_path.glob(f"*_{living}.db"))


def test_nobody_sees_a_sum_with_a_process_missing_or_in_it_twice(tmp_path: Path) -> None:
    """Somebody reads all the time while processes are buried, come back, and are buried again."""
    pids = [_count(tmp_path, 2) for _ in range(6)]
    alive = {file: file.read_bytes() for file in tmp_path.glob("*.db")}
    seen: list[str] = []
    with subprocess.Popen(
        [sys.executable, "-c", _READING, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as reading:
        assert reading.stdout is not None
        reader = threading.Thread(target=seen.extend, args=(iter(reading.stdout.readline, ""),))
        reader.start()
        while len(seen) < _NUM_READ and reading.poll() is None:
            for pid in pids:
                wait_for(lambda pid=pid: _is_buried(tmp_path, pid), "nobody reads", 60)
            with shared_counters._locked(tmp_path, shared_counters.fcntl.LOCK_EX):
                for file in tmp_path.glob("*.db"):
                    file.unlink()
                for file, content in alive.items():
                    file.write_bytes(content)
        reading.terminate()
        reader.join()
    assert set(seen) == {"12.0\n"}
    assert len(seen) >= _NUM_READ, "the reader has not failed"


_NUM_READ = 100
_READING = """
import sys
from pathlib import Path
from app import counter_text, shared_counters
from tests.metrics_page import Page
while True:
    print(Page(counter_text.shown(Path(sys.argv[1]))).value("llmis_requests_total"), flush=True)
"""


def test_a_file_that_is_just_made_is_empty(tmp_path: Path) -> None:
    _count(tmp_path)
    (tmp_path / "counter_1.db").touch()
    (tmp_path / "histogram_1.db").write_bytes(bytes(65536))
    assert _page(tmp_path).value("llmis_requests_total") == 1
    shared_counters.bury(tmp_path, 1)
    assert _page(tmp_path).value("llmis_requests_total") == 1


def test_labels_are_escaped(tmp_path: Path) -> None:
    code = _COUNTING.replace('"m"', repr('a"b\\c\nd'))
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), "1"], check=True, capture_output=True
    )
    assert r'model="a\"b\\c\nd"' in counter_text.shown(tmp_path)


def test_a_reader_waits_for_who_adds_up(tmp_path: Path) -> None:
    _count(tmp_path)
    with shared_counters._locked(tmp_path, shared_counters.fcntl.LOCK_EX):
        seen: list[str] = []
        reader = threading.Thread(target=lambda: seen.append(counter_text.shown(tmp_path)))
        reader.start()
        reader.join(0.05)
        assert not seen
    reader.join()
    assert seen


def test_who_adds_up_does_not_wait_for_a_reader(tmp_path: Path) -> None:
    pid = _count(tmp_path)
    reading = shared_counters._locked(tmp_path, shared_counters.fcntl.LOCK_SH)
    with reading, pytest.raises(BlockingIOError):
        shared_counters.bury(tmp_path, pid)
    shared_counters.bury(tmp_path, pid)
    assert _page(tmp_path).value("llmis_requests_total") == 1


def test_what_cannot_be_written_is_counted_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared_counters.bury(tmp_path, _count(tmp_path))
    pid = _count(tmp_path, 2)

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError, match="no space"):
        shared_counters.bury(tmp_path, pid)
    page = _page(tmp_path)
    assert page.value("llmis_requests_total") == 3
    assert page.value("llmis_streams") == 0


def test_each_owner_has_a_folder_of_its_own_and_begins_at_zero(tmp_path: Path) -> None:
    own = "import sys; from pathlib import Path; from app.shared_counters import own_folder; "
    own += "print(own_folder(Path(sys.argv[1])).name, flush=True); sys.stdin.read()"
    owners = [subprocess.Popen([sys.executable, "-c", own, str(tmp_path)], **_PIPES)]
    assert owners[0].stdout.readline() == "1\n"
    (tmp_path / "1" / "counter_1.db").touch()
    owners.append(subprocess.Popen([sys.executable, "-c", own, str(tmp_path)], **_PIPES))
    assert owners[1].stdout.readline() == "2\n"
    assert (tmp_path / "1" / "counter_1.db").exists()
    for owner in owners:
        owner.communicate()
    assert shared_counters.own_folder(tmp_path).name == "1"
    assert not (tmp_path / "1" / "counter_1.db").exists()


_PIPES: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
