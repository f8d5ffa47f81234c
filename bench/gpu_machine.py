"""What the GPU is, and how much of its memory is taken. Loads no CUDA into this process."""

import json
import subprocess
import sys
import time

_FIELDS = ("name", "driver_version", "memory.total", "compute_cap", "clocks.max.sm")
_VERSIONS = """
import json, sys, torch, triton
print(json.dumps({"torch": torch.__version__, "cuda": torch.version.cuda,
                  "triton": triton.__version__,
                  "multiprocessors": torch.cuda.get_device_properties(0).multi_processor_count}))
"""


def device_facts() -> dict[str, object]:
    """The first device. Raises OSError or CalledProcessError where there is none."""
    values = _ask(",".join(_FIELDS)).split(", ")
    facts: dict[str, object] = dict(zip(_FIELDS, values, strict=True))
    # In a process of its own, or this one would hold a CUDA context on the device it measures.
    said = subprocess.run([sys.executable, "-c", _VERSIONS], capture_output=True, check=True)
    facts |= json.loads(said.stdout)
    return facts


def used_bytes(limit_s: float = 10.0) -> int:
    """Memory taken on the first device, by everybody, to the MiB, once it does not change."""
    deadline = time.monotonic() + limit_s
    before, now = -1, _used_mib()
    while before != now and time.monotonic() < deadline:
        time.sleep(0.3)
        before, now = now, _used_mib()
    return now << 20


def _used_mib() -> int:
    return int(_ask("memory.used"))


def _ask(fields: str) -> str:
    command = ["nvidia-smi", "--id=0", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
