"""The memory of the host, within the limits of its cgroups."""

from pathlib import Path

import psutil
import pytest

from worker.agent.host_memory import HostMemory, host_memory

_GIB = 1 << 30


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of 16 GiB, 12 of them available."""

    class Machine:
        total = 16 * _GIB
        available = 12 * _GIB

    monkeypatch.setattr(psutil, "virtual_memory", Machine)


def _memory(tmp_path: Path, own: str, files: dict[str, object]) -> HostMemory:
    """What a process with `own` as its /proc/self/cgroup is told."""
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "cgroup").write_text(own)
    for name, content in files.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return host_memory(proc=tmp_path / "proc", cgroup=tmp_path / "cgroup")


def test_without_cgroups_it_is_the_machine(tmp_path: Path) -> None:
    assert host_memory(proc=tmp_path, cgroup=tmp_path) == HostMemory(16 * _GIB, 12 * _GIB)


def test_version_2_without_a_limit(tmp_path: Path) -> None:
    files = {"memory.max": "max", "memory.current": 5 * _GIB}
    assert _memory(tmp_path, "0::/\n", files) == HostMemory(16 * _GIB, 12 * _GIB)


def test_version_2_takes_the_tightest_on_the_way_up(tmp_path: Path) -> None:
    files: dict[str, object] = {
        "memory.max": 10 * _GIB,
        "memory.current": 9 * _GIB,
        "memory.stat": f"anon 1\ninactive_file {2 * _GIB}\nactive_file 7",
        "a/memory.max": 8 * _GIB,
        "a/memory.current": 1 * _GIB,
        "a/b/memory.max": "max",
        "a/b/memory.current": 1 * _GIB,
    }
    # The least total is a's 8; the least room is the root's 10 - 9 + 2.
    assert _memory(tmp_path, "0::/a/b\n", files) == HostMemory(8 * _GIB, 3 * _GIB)


def test_version_2_with_the_path_of_the_host(tmp_path: Path) -> None:
    files: dict[str, object] = {"memory.max": 4 * _GIB, "memory.current": 1 * _GIB}
    found = _memory(tmp_path, "0::/kubepods/pod1/x\n", files)
    assert found == HostMemory(4 * _GIB, 3 * _GIB)


def test_version_1(tmp_path: Path) -> None:
    files: dict[str, object] = {
        "memory/memory.limit_in_bytes": 9223372036854771712,
        "memory/memory.usage_in_bytes": 20 * _GIB,
        "memory/docker/x/memory.limit_in_bytes": 2 * _GIB,
        "memory/docker/x/memory.usage_in_bytes": 1 * _GIB,
        "memory/docker/x/memory.stat": f"inactive_file 1\ntotal_inactive_file {_GIB // 2}",
        "unified/docker/x/cgroup.procs": "1",
    }
    own = "4:cpu,memory:/docker/x\n2:cpuset:/\n0::/docker/x\n"
    assert _memory(tmp_path, own, files) == HostMemory(2 * _GIB, _GIB + _GIB // 2)


def test_what_is_over_its_limit_has_nothing_left(tmp_path: Path) -> None:
    files: dict[str, object] = {"memory.max": 2 * _GIB, "memory.current": 3 * _GIB}
    assert _memory(tmp_path, "0::/\n", files).available_bytes == 0


@pytest.mark.parametrize("content", ["", "-", "many", "\u00b2"])
def test_files_that_say_nothing_are_no_limit(tmp_path: Path, content: str) -> None:
    files: dict[str, object] = {"memory.max": content, "memory.stat": content}
    assert _memory(tmp_path, "0::/\nnonsense\n", files).total_bytes == 16 * _GIB


def test_the_path_does_not_lead_out_of_the_mount(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1")
    assert _memory(tmp_path, "0::/..\n", {"x": 1}).total_bytes == 16 * _GIB
