"""Positions scaled by YaRN, as transformers computes them.

ExLlamaV2 0.3.2 (exllamav2/rope.py, get_rope_params_yarn) scales only if the prepared context is
longer than the original one, takes the prepared context for the original length, and ignores
attention_factor and the betas, so positions would depend on context_length.
Formula: transformers@v5:src/transformers/modeling_rope_utils.py, _compute_yarn_parameters; paper:
https://arxiv.org/abs/2309.00071.
"""

import importlib
import math
from dataclasses import dataclass
from typing import Any

import torch

_ATTRIBUTE = "llmis_yarn"
"""Attribute of an ExLlamaV2Config that holds its `Yarn`."""


@dataclass(frozen=True, slots=True)
class Yarn:
    factor: float
    original_length: int
    """Trained positions, before the context was extended."""
    attention_factor: float
    beta_fast: float
    """Dimensions that rotate at least this often within the original length are not scaled."""
    beta_slow: float
    """Dimensions that rotate at most this often are scaled by the whole factor."""
    truncate: bool
    """Whether the two limits are rounded to whole dimensions."""


def read(scaling: dict[str, Any]) -> Yarn:
    """Read `rope_scaling`, as completed by `rope_config`."""
    factor = float(scaling["factor"])
    attention_factor = scaling.get("attention_factor")
    if attention_factor is None:
        mscale, over = scaling.get("mscale"), scaling.get("mscale_all_dim")
        attention_factor = _magnitude(factor, 1.0)
        if mscale and over:
            attention_factor = _magnitude(factor, mscale) / _magnitude(factor, over)
    return Yarn(
        factor=factor,
        original_length=int(scaling["original_max_position_embeddings"]),
        attention_factor=float(attention_factor),
        beta_fast=float(scaling.get("beta_fast") or 32),
        beta_slow=float(scaling.get("beta_slow") or 1),
        truncate=bool(scaling.get("truncate", True)),
    )


def attach(config: Any, scaling: dict[str, Any]) -> None:
    """Compute the positions of a model with this ExLlamaV2Config here."""
    setattr(config, _ATTRIBUTE, read(scaling))
    # get_rope_params looks it up as a global of its module, for every model it loads.
    vars(importlib.import_module("exllamav2.rope"))["get_rope_params_yarn"] = _rope_params


def frequencies(yarn: Yarn, dim: int, base: float) -> torch.Tensor:
    """`(dim / 2,) float32`: rotation of each pair of dimensions per position, in radians."""
    plain = base ** -(torch.arange(0, dim, 2).float() / dim)
    low, high = (_dimension(yarn, dim, base, beta) for beta in (yarn.beta_fast, yarn.beta_slow))
    if yarn.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    width = high - low or 0.001  # as transformers: avoids a division by zero
    stretched = torch.clamp((torch.arange(dim // 2).float() - low) / width, 0, 1)
    return plain / yarn.factor * stretched + plain * (1 - stretched)


def _rope_params(device: torch.device, config: Any, base: float) -> tuple[torch.Tensor, float]:
    """Replaces exllamav2.rope.get_rope_params_yarn."""
    yarn: Yarn = getattr(config, _ATTRIBUTE)
    dim = int(config.head_dim * config.partial_rotary_factor)
    return frequencies(yarn, dim, base).to(device), yarn.attention_factor


def _dimension(yarn: Yarn, dim: int, base: float, num_turns: float) -> float:
    """The dimension that rotates `num_turns` times within the original length."""
    wavelength = yarn.original_length / (num_turns * 2 * math.pi)
    return dim * math.log(wavelength) / (2 * math.log(base))


def _magnitude(factor: float, weight: float) -> float:
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0
