"""Converts the RoPE fields of config.json, as transformers writes them, for ExLlamaV2 0.3.2."""

from pathlib import Path
from typing import Any

from shared.errors import SettingsError

_ROPE_TYPES = {"default", "linear", "su", "longrope", "yarn", "llama3", "mrope"}
_SLIDING_THETA = 10000.0
"""ExLlamaV2's constant for the sliding layers of Gemma 3."""


def flatten_rope(part: dict[str, Any], config: dict[str, Any], path: Path) -> None:
    """Turn `rope_parameters` (transformers 5) into `rope_theta` and `rope_scaling`."""
    parameters = part.pop("rope_parameters", None)
    if isinstance(parameters, dict):
        parameters = dict(_of_full_attention(parameters, path))
        for key in ("rope_theta", "partial_rotary_factor"):
            if key in parameters:
                fill(part, key, parameters.pop(key))
        if parameters.get("rope_type", parameters.get("type", "default")) != "default":
            fill(part, "rope_scaling", parameters)
    scaling = part.get("rope_scaling")
    if not isinstance(scaling, dict):
        return
    if "rope_type" in scaling:  # ExLlamaV2 rejects a config with both names
        scaling.pop("type", None)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in _ROPE_TYPES:
        raise SettingsError(
            f"models: {path} scales its positions by {kind!r}, which ExLlamaV2 0.3.2 would "
            f"ignore. It supports {', '.join(sorted(_ROPE_TYPES))}."
        )
    original = scaling.get("original_max_position_embeddings")
    if kind in ("su", "longrope") and original is not None:
        fill(config, "original_max_position_embeddings", original)
    if kind == "yarn":
        _complete_yarn(scaling, part, path)


def _complete_yarn(scaling: dict[str, Any], part: dict[str, Any], path: Path) -> None:
    """Fill in the defaults of transformers (modeling_rope_utils.py)."""
    trained = part.get("max_position_embeddings")
    fill(scaling, "original_max_position_embeddings", trained)
    original = scaling.get("original_max_position_embeddings")
    if not isinstance(original, int) or original < 1:
        raise SettingsError(
            f"models: rope_scaling of {path} lacks original_max_position_embeddings"
        )
    if isinstance(trained, int):
        fill(scaling, "factor", trained / original)


def fill(part: dict[str, Any], key: str, value: Any) -> None:
    """Set a field that is missing or null; one that an older transformers wrote stays."""
    if part.get(key) is None:
        part[key] = value


def _of_full_attention(parameters: dict[str, Any], path: Path) -> dict[str, Any]:
    """From parameters per kind of layer, those of full attention."""
    nested = parameters.get("full_attention")
    if not isinstance(nested, dict):
        return parameters
    sliding = parameters.get("sliding_attention")
    theta = sliding.get("rope_theta", _SLIDING_THETA) if isinstance(sliding, dict) else None
    if theta is not None and theta not in (_SLIDING_THETA, nested.get("rope_theta")):
        raise SettingsError(
            f"models: the sliding layers of {path} have rope_theta {theta}; ExLlamaV2 0.3.2 "
            f"has {_SLIDING_THETA:g} built in"
        )
    return nested
