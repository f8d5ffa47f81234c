"""The kernels compile without a GPU, for an H100 to what they were written to become."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
_SHARED_OF_PROGRAM = 227 * 1024
_SHARED_OF_CONSUMERS_PROGRAM = 99 * 1024
_SHARED_OF_SM = 228 * 1024
_SHARED_OF_SYSTEM = 1024
"""Taken from each program's share."""
_REGISTERS_OF_SM = 65_536


@pytest.fixture(scope="module")
def builds() -> dict[str, dict[str, Any]]:
    environment = os.environ | {
        "TRITON_INTERPRET": "0",
        "TRITON_CACHE_DIR": str(ROOT / "var" / "test" / "triton"),
    }
    result = subprocess.run(
        [sys.executable, "-m", "tests.kernels.gpu_build"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    return {line["name"]: line for line in lines}


def test_nothing_spills_and_everything_fits(builds: dict[str, dict[str, Any]]) -> None:
    for name, build in builds.items():
        if not name.startswith("small-"):
            assert build["stack"] == 0, build
            assert build["shared"] <= _SHARED_OF_PROGRAM, build


def test_a_consumers_card_has_room_for_the_small_tiles(builds: dict[str, dict[str, Any]]) -> None:
    """A few registers spill in its prefill, which is slower, not wrong."""
    small = [build for name, build in builds.items() if name.startswith("small-")]
    assert len(small) == 10
    for build in small:
        assert build["shared"] <= _SHARED_OF_CONSUMERS_PROGRAM, build
        assert build["stack"] <= 64, build


def test_keys_and_values_are_copied_sixteen_bytes_at_a_time(
    builds: dict[str, dict[str, Any]],
) -> None:
    for name, build in builds.items():
        if name not in ("combine", "append"):
            assert build["wide_copies"] > 0 and build["tensor_core"] > 0, build


def test_a_prefill_uses_hoppers_own_matrix_instruction(builds: dict[str, dict[str, Any]]) -> None:
    for name in ("paged-64-1024", "paged-128-1024", "paged-256-1024", "paged-128-64", "vision-72"):
        assert builds[name]["wgmma"] > 0, builds[name]


@pytest.mark.parametrize("rows", [4, 64, 1024])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_as_many_programs_fit_on_an_sm_as_the_splits_count_on(
    builds: dict[str, dict[str, Any]], head_dim: int, rows: int
) -> None:
    build = builds[f"paged-{head_dim}-{rows}"]
    count = build["programs_per_sm"]
    assert count * (build["shared"] + _SHARED_OF_SYSTEM) <= _SHARED_OF_SM, build
    # Registers are given out to warps, in steps of 8 a thread.
    registers = -(-build["registers"] // 8) * 8
    assert count * registers * build["threads"] <= _REGISTERS_OF_SM, build
