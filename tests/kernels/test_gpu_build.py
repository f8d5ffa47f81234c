"""The kernels compile without a GPU, for an H100 to what they were written to become."""

import hashlib
import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from tests.kernels.gpu_build import SHARED_BYTES_OF_SM

ROOT = Path(__file__).parent.parent.parent
_SHARED_OF_SYSTEM = 1024
"""Taken from each program's share of an SM, and from what a lone one may have."""
_SPILLS = {"small-": 64}
"""Bytes of a thread by the beginning of a name: slower for it, not wrong."""
_REGISTERS_OF_SM = 65_536


_RECORD = Path(__file__).parent / "compiled.json"
"""What the kernels compiled to, with the fingerprint of what that depends on."""
_SOURCES = (
    "worker/engines/exllamav2/attention/kernels.py",
    "worker/engines/exllamav2/attention/tiles.py",
    "tests/kernels/gpu_build.py",
)


def _fingerprint() -> str:
    digest = hashlib.sha256(version("triton").encode())
    for path in _SOURCES:
        digest.update((ROOT / path).read_bytes())
    return digest.hexdigest()


def _compile() -> dict[str, dict[str, Any]]:
    result = subprocess.run(
        [sys.executable, "-m", "tests.kernels.gpu_build"],
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    return {line["name"]: line for line in lines}


@pytest.fixture(scope="module")
def builds() -> dict[str, dict[str, Any]]:
    """Compiled anew, in half a minute, only when a source or Triton has changed. The record that
    is written then belongs to the commit of the change."""
    fingerprint = _fingerprint()
    record = json.loads(_RECORD.read_text()) if _RECORD.exists() else {}
    if record.get("fingerprint") != fingerprint:
        record = {"fingerprint": fingerprint, "builds": _compile()}
        _RECORD.write_text(json.dumps(record, indent=1) + "\n")
    return dict(record["builds"])


def test_everything_fits_and_next_to_nothing_spills(builds: dict[str, dict[str, Any]]) -> None:
    assert len(builds) > 30
    for name, build in builds.items():
        limit = max((n for start, n in _SPILLS.items() if name.startswith(start)), default=0)
        assert build["stack"] <= limit, build
        assert build["shared"] <= SHARED_BYTES_OF_SM[build["arch"]] - _SHARED_OF_SYSTEM, build


def test_keys_and_values_are_copied_sixteen_bytes_at_a_time(
    builds: dict[str, dict[str, Any]],
) -> None:
    for name, build in builds.items():
        if name not in ("combine", "append"):
            assert build["wide_copies"] > 0 and build["tensor_core"] > 0, build


def test_a_prefill_uses_hoppers_own_matrix_instruction(builds: dict[str, dict[str, Any]]) -> None:
    for name in ("paged-64-1024", "paged-128-1024", "paged-256-1024", "vision-72"):
        assert builds[name]["wgmma"] > 0, builds[name]


@pytest.mark.parametrize("rows", [4, 1024])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("prefix", ["", "middle-", "small-"])
def test_as_many_programs_fit_on_an_sm_as_the_splits_count_on(
    builds: dict[str, dict[str, Any]], prefix: str, head_dim: int, rows: int
) -> None:
    build = builds[f"{prefix}paged-{head_dim}-{rows}"]
    count = build["programs_per_sm"]
    shared = build["shared"] + _SHARED_OF_SYSTEM
    assert count * shared <= SHARED_BYTES_OF_SM[build["arch"]], build
    # Registers are given out to warps, in steps of 8 a thread.
    registers = -(-build["registers"] // 8) * 8
    assert count * registers * build["threads"] <= _REGISTERS_OF_SM, build
