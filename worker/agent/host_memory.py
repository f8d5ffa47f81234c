"""The memory of this host, and how much of it this process may still take. In a container the
kernel reports the whole machine; the container's limit is in the cgroups."""

from dataclasses import dataclass
from pathlib import Path

import psutil

_PROC = Path("/proc")
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class HostMemory:
    total_bytes: int
    available_bytes: int
    """Can be taken without swapping: free memory and reclaimable caches."""


@dataclass(frozen=True, slots=True)
class _CgroupFiles:
    """The file names of one version of the cgroup memory controller."""

    limit: str
    usage: str
    inactive_file: str
    """Key in memory.stat: page cache that the kernel reclaims first."""


_V1 = _CgroupFiles("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = _CgroupFiles("memory.max", "memory.current", "inactive_file")


def host_memory(*, proc: Path = _PROC, cgroup: Path = _CGROUP) -> HostMemory:
    """The machine's memory within the tightest limit of this process's cgroups. `cgroup` is where
    the controllers are mounted. A file that cannot be read sets no limit."""
    machine = psutil.virtual_memory()
    total_bytes, available_bytes = int(machine.total), int(machine.available)
    for root, inside, version in _hierarchies(proc, cgroup):
        for folder in _up_to(root, inside):
            limit_bytes = _number(folder / version.limit)
            if limit_bytes is None:
                continue
            total_bytes = min(total_bytes, limit_bytes)
            usage_bytes = _number(folder / version.usage) or 0
            reclaimable_bytes = min(usage_bytes, _stat(folder, version.inactive_file))
            available_bytes = min(available_bytes, limit_bytes - usage_bytes + reclaimable_bytes)
    return HostMemory(total_bytes, max(0, min(available_bytes, total_bytes)))


def _hierarchies(proc: Path, cgroup: Path) -> list[tuple[Path, str, _CgroupFiles]]:
    """The cgroups of this process: (mount, path below it, version) for each hierarchy."""
    try:
        lines = (proc / "self" / "cgroup").read_text("utf-8", "replace").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, inside = rest.partition(":")
        if "memory" in controllers.split(","):
            found.append((cgroup / "memory", inside, _V1))
        elif not controllers:
            # Hybrid mode: beside version 1, version 2 is mounted at `unified`.
            unified = cgroup / "unified"
            found.append((unified if unified.is_dir() else cgroup, inside, _V2))
    return found


def _up_to(root: Path, inside: str) -> list[Path]:
    """The folders from a cgroup up to the mount. A limit on any level binds. In a container without
    a cgroup namespace the path is the host's: it need not exist below the mount, which is the
    container's own cgroup."""
    parts = [part for part in inside.split("/") if part not in ("", ".", "..")]
    return [root.joinpath(*parts[:count]) for count in range(len(parts), -1, -1)]


def _number(path: Path) -> int | None:
    """The number in a file; None if the file is missing or says `max`."""
    try:
        return int(path.read_text("ascii"))
    except (OSError, ValueError):
        return None


def _stat(folder: Path, name: str) -> int:
    """A value of memory.stat, 0 if it is missing."""
    try:
        lines = (folder / "memory.stat").read_text("ascii").splitlines()
    except (OSError, ValueError):
        return 0
    for line in lines:
        key, _, value = line.partition(" ")
        if key == name and value.isdigit():
            return int(value)
    return 0
