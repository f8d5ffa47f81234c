"""The machine, the build, and whether ExLlamaV2's attention can be replaced."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tools.gpu.questions.parts import generator_of


def machine() -> dict[str, Any]:
    """What is this machine?"""
    import torch

    commands = {
        "smi": "nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader",
        "nvcc": "nvcc --version | tail -2 | head -1",
        "cxx": "c++ --version | head -1",
    }
    said = {
        name: subprocess.run(command, shell=True, capture_output=True, text=True).stdout.strip()
        for name, command in commands.items()
    }
    return {
        **said,
        "cores": os.cpu_count(),
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "capability": torch.cuda.get_device_capability(),
        "flash_attn": _is_installed("flash_attn"),
        "xformers": _is_installed("xformers"),
    }


def _is_installed(name: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(name) is not None


def arch_names() -> dict[str, Any]:
    """Does torch report architectures such as sm_90a, on which ext.py's int() would fail?"""
    import torch

    names = torch.cuda.get_arch_list()
    return {"arch_list": names, "would_fail": any(not n.split("_")[1].isdigit() for n in names)}


def import_time() -> dict[str, Any]:
    """Does the extension load, prebuilt, and how long do the imports take?"""
    started = time.monotonic()
    import torch

    torch_s = time.monotonic() - started
    import exllamav2
    from exllamav2 import ext

    return {
        "version": exllamav2.__version__,
        "is_jit": ext.build_jit,
        "path": ext.ext_c.__file__,
        "so_mib": Path(ext.ext_c.__file__).stat().st_size >> 20,
        "torch_s": round(torch_s, 2),
        "all_s": round(time.monotonic() - started, 2),
        "cuda": torch.cuda.is_available(),
    }


def paged_without_flash_attn() -> dict[str, Any]:
    """Without flash-attn, does the paged generator refuse, and accept after attach()?

    Expected: AssertionError, then yes (attn.py:84-90)."""
    try:
        generator_of("tiny")
        refused = ""
    except AssertionError as exc:
        refused = str(exc)[:200]
    from worker.engines.exllamav2.attention.attach import attach

    in_use = attach("sdpa")
    generator_of("tiny")
    return {"refused_with": refused, "attached": str(in_use)}
