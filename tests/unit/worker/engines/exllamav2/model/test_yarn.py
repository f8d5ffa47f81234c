"""ExLlamaV2: positions scaled by YaRN, with the formula of the paper and of transformers."""

import math
from typing import Any

import pytest

from worker.engines.exllamav2.model.yarn import frequencies, read

BASE, DIM = 10000.0, 128


def _of_transformers(scaling: dict[str, Any], i: int) -> float:
    """modeling_rope_utils.py, _compute_yarn_parameters, for one pair of dimensions."""
    original = scaling["original_max_position_embeddings"]

    def correction(turns: float) -> float:
        return DIM * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(BASE))

    low = correction(scaling.get("beta_fast", 32))
    high = correction(scaling.get("beta_slow", 1))
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, DIM - 1)
    ramp = min(max((i - low) / (high - low), 0.0), 1.0)
    frequency = BASE ** -(2 * i / DIM)
    return frequency / scaling["factor"] * ramp + frequency * (1 - ramp)


@pytest.mark.parametrize(
    "options", [{}, {"beta_fast": 16, "beta_slow": 2}, {"truncate": False}, {"factor": 32.0}]
)
def test_how_far_each_pair_turns(options: dict[str, Any]) -> None:
    scaling = {"factor": 4.0, "original_max_position_embeddings": 32768} | options
    found = frequencies(read(scaling), DIM, BASE).tolist()
    assert found == pytest.approx([_of_transformers(scaling, i) for i in range(DIM // 2)])
    assert found[0] == 1.0, "what turns often stays"
    slowest = BASE ** -((DIM - 2) / DIM)
    assert found[-1] == pytest.approx(slowest / scaling["factor"])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 0.1 * math.log(4) + 1),
        ({"factor": 1.0}, 1.0),
        ({"attention_factor": 1.5}, 1.5),
        ({"mscale": 1.0, "mscale_all_dim": 1.0}, 1.0),
        ({"mscale": 0.707, "mscale_all_dim": 0.5},
         (0.0707 * math.log(4) + 1) / (0.05 * math.log(4) + 1)),
    ],
)  # fmt: skip
def test_how_much_longer_the_vectors_become(options: dict[str, Any], expected: float) -> None:
    scaling = {"factor": 4.0, "original_max_position_embeddings": 32768} | options
    assert read(scaling).attention_factor == pytest.approx(expected)
