"""Cores and memory, as far as this process may use them."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from cli.doctor.finding import Finding, ok, problem, warning
from cli.doctor.installation import weights_bytes
from cli.text import size
from shared.settings import Settings

_CGROUP = Path("/sys/fs/cgroup")


def check_cores(settings: Settings, cgroup: Path = _CGROUP) -> Finding:
    """More compute threads than cores make every step wait for the last of them."""
    cores = available_cores(cgroup)
    greedy = [model.name for model in settings.models if model.threads > cores]
    text = f"{cores:g} usable"
    if greedy:
        mend = "set threads of these models to 0 or to less"
        return warning("cores", f"{text}, fewer than the threads of {', '.join(greedy)}", mend)
    if cores < 2:
        return warning(
            "cores", f"{text}: engine, web tier and Redis share it", "give the service two cores"
        )
    return ok("cores", text)


def available_cores(cgroup: Path = _CGROUP) -> float:
    """Cores that this process may run on, with the quota of its container."""
    cores = float(len(os.sched_getaffinity(0)))
    words = _words(cgroup / "cpu.max")
    if len(words) == 2 and words[0] != "max":
        # https://docs.kernel.org/admin-guide/cgroup-v2.html#cpu-interface-files
        cores = min(cores, int(words[0]) / int(words[1]))
    return cores


def check_memory(settings: Settings, *, is_running: bool, cgroup: Path = _CGROUP) -> Finding:
    """Weigh the configured models against what there is; KV cache and the rest come on top.

    While the service runs its models are in memory already, and what is free says nothing.
    """
    total_bytes, free_bytes = memory_bytes(cgroup)
    need_bytes = sum(_present_weights(settings))
    text = f"{size(free_bytes)} free of {size(total_bytes)}; the weights need {size(need_bytes)}"
    mend = "configure fewer or smaller models in llmis.toml"
    if need_bytes > total_bytes:
        return problem("memory", text, mend)
    if not is_running and need_bytes > free_bytes:
        return warning("memory", text, f"end what else uses it, or {mend}")
    return ok("memory", text)


def memory_bytes(cgroup: Path = _CGROUP) -> tuple[int, int]:
    """Total and free memory, within the limit of the container."""
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    total_bytes = page_bytes * os.sysconf("SC_PHYS_PAGES")
    free_bytes = page_bytes * os.sysconf("SC_AVPHYS_PAGES")
    for line in Path("/proc/meminfo").read_text().splitlines():
        # Free, and what the kernel would give back: the page cache above all.
        if line.startswith("MemAvailable:"):
            free_bytes = 1024 * int(line.split()[1])
    limit, used = _words(cgroup / "memory.max"), _words(cgroup / "memory.current")
    if limit and used and limit[0] != "max":
        total_bytes = min(total_bytes, int(limit[0]))
        free_bytes = min(free_bytes, max(0, int(limit[0]) - int(used[0])))
    return total_bytes, free_bytes


def _present_weights(settings: Settings) -> Iterator[int]:
    for model in settings.models:
        # What is missing or unreadable is the finding of another check.
        with contextlib.suppress(OSError):
            yield weights_bytes(settings.weights_path(model))


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []
