"""The attention benchmark as far as a host without a GPU can take it."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench import attention

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a host without a GPU")
def test_without_a_gpu_it_says_so_and_ends() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "bench.attention"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1 and not result.stdout
    assert "needs a CUDA GPU" in result.stderr


def test_bytes_are_those_of_all_keys_and_values() -> None:
    shape = attention.Shape(32, 8, 128)
    assert attention.kv_bytes(shape, 32, 4096) == 32 * 4096 * 8 * 128 * 2 * 2


def test_the_table_shows_every_case() -> None:
    case = {
        "attention": "triton", "batch": 32, "context": 4096, "time_us": 200.0,
        "bytes_per_s": 2.7e12, "of_copy": 0.9,
    }  # fmt: skip
    text = attention._table({"device": "H100", "copy_bytes_per_s": 3e12, "cases": [case]})
    assert "H100: copy 3,000 GB/s" in text
    assert "32 × 4,096" in text and "2,700" in text and "90%" in text
