"""Checks of the cores and the memory that this process may use."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from cli.doctor.finding import Finding, ok, problem, warning
from cli.doctor.installation import weights_bytes
from cli.text import size
from shared.settings.fields import Settings

_CGROUP = Path("/sys/fs/cgroup")


def check_cores(settings: Settings, cgroup: Path = _CGROUP) -> Finding:
    """With more compute threads than cores every step waits for the last thread."""
    cores = available_cores(cgroup)
    too_many = [model.name for model in settings.models if model.threads > cores]
    text = f"{cores:g} usable"
    if too_many:
        mend = "set threads of these models to 0 or to a smaller number"
        return warning("cores", f"{text}, fewer than the threads of {', '.join(too_many)}", mend)
    if cores < 2:
        return warning(
            "cores", f"{text}: engine, web tier and Redis share it", "give the service two cores"
        )
    return ok("cores", text)


def available_cores(cgroup: Path = _CGROUP) -> float:
    """Cores that this process may run on, within the quota of its container."""
    cores = float(len(os.sched_getaffinity(0)))
    quota = _fields(cgroup / "cpu.max")
    if len(quota) == 2 and quota[0] != "max":
        # https://docs.kernel.org/admin-guide/cgroup-v2.html#cpu-interface-files
        cores = min(cores, int(quota[0]) / int(quota[1]))
    return cores


def check_memory(settings: Settings, *, is_running: bool, cgroup: Path = _CGROUP) -> Finding:
    """Compare the weights of the configured models with the memory; KV caches are not counted.
    While the service runs, its models are in memory already: free memory is not compared then."""
    total_bytes, free_bytes = memory_bytes(cgroup)
    need_bytes = sum(_present_weights(settings))
    text = f"{size(free_bytes)} free of {size(total_bytes)}; the weights need {size(need_bytes)}"
    mend = "configure fewer or smaller models in llmis.toml"
    if need_bytes > total_bytes:
        return problem("memory", text, mend)
    if not is_running and need_bytes > free_bytes:
        return warning("memory", text, f"stop other programs that use it, or {mend}")
    return ok("memory", text)


def memory_bytes(cgroup: Path = _CGROUP) -> tuple[int, int]:
    """Total and free bytes, within the limit of the container."""
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    total_bytes = page_bytes * os.sysconf("SC_PHYS_PAGES")
    free_bytes = page_bytes * os.sysconf("SC_AVPHYS_PAGES")
    for line in Path("/proc/meminfo").read_text().splitlines():
        # Free memory and what the kernel can reclaim: the page cache above all.
        if line.startswith("MemAvailable:"):
            free_bytes = 1024 * int(line.split()[1])
    limit, used = _fields(cgroup / "memory.max"), _fields(cgroup / "memory.current")
    if limit and used and limit[0] != "max":
        total_bytes = min(total_bytes, int(limit[0]))
        free_bytes = min(free_bytes, max(0, int(limit[0]) - int(used[0])))
    return total_bytes, free_bytes


def _present_weights(settings: Settings) -> Iterator[int]:
    for model in settings.models:
        # Missing or unreadable files are the finding of another check.
        with contextlib.suppress(OSError):
            yield weights_bytes(settings.weights_path(model))


def _fields(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []
