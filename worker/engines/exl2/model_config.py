"""config.json as ExLlamaV2 0.3.2 understands it.

ExLlamaV2 reads `rope_theta` and `rope_scaling`; what it does not find it takes to be 10000 and
unscaled, and what it does not know it loads as Llama: both give a model that talks nonsense and
no error. So the config is normalised, and what cannot be is refused. It reads the file from a
folder: it gets one with links to the files and a config.json of its own; the model's folder
stays as it is. Source: exllamav2@v0.3.2:exllamav2/config.py, architecture.py.
"""

import copy
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shared.errors import SettingsError
from worker.engines.exl2.model_folder import ModelFolder

ARCHITECTURES = frozenset(
    f"{name}ForCausalLM"
    for name in (
        "Llama", "Mistral", "Mixtral", "Yi", "Orion", "Qwen2", "Qwen3", "Qwen3Moe", "Gemma",
        "Gemma2", "Starcoder2", "Cohere", "Cohere2", "Dbrx", "Phi3", "GPTBigCode", "MiniCPM",
        "InternLM2", "Index", "Granite", "Glm4",
    )
) | {
    f"{name}ForConditionalGeneration"
    for name in ("Mistral3", "Gemma3", "Qwen2VL", "Qwen2_5_VL")
}  # fmt: skip
"""What architecture.py names, less GPT2 (its positions end with a table) and Gemmoe. Models
that also see are used for text alone."""

_ROPE_TYPES = {"default", "linear", "su", "longrope", "yarn", "llama3", "mrope"}
_SLIDING_THETA = 10000.0
"""What ExLlamaV2 has built in for the sliding layers of Gemma 3."""


def normalise(folder: ModelFolder) -> dict[str, Any]:
    """Return the config to load with. Raises SettingsError."""
    config = copy.deepcopy(folder.config)
    _check_architecture(config, folder.path)
    for part in (config, config.get("text_config")):
        if isinstance(part, dict):
            _flatten_rope(part, config, folder.path)
    return config


def is_quantised(config: dict[str, Any]) -> bool:
    return isinstance(config.get("quantization_config"), dict)


@contextmanager
def loadable_folder(folder: ModelFolder) -> Iterator[Path]:
    """A temporary folder to load from: links, and the normalised config. Raises SettingsError.

    Of the weights only those that the index names are there: ExLlamaV2 loads every .safetensors
    file that it sees, and some models come with a second copy in one piece.
    """
    config = normalise(folder)
    wanted = _indexed_files(folder.path)
    with tempfile.TemporaryDirectory(prefix="llmis-exl2-") as made:
        view = Path(made)
        for file in folder.path.iterdir():
            is_stray = file.suffix == ".safetensors" and wanted and file.name not in wanted
            if file.is_file() and file.name != "config.json" and not is_stray:
                (view / file.name).symlink_to(file.resolve())
        (view / "config.json").write_text(json.dumps(config), "utf-8")
        yield view


def _indexed_files(path: Path) -> set[str]:
    index = path / "model.safetensors.index.json"
    if not index.is_file():
        return set()
    try:
        wanted = set(json.loads(index.read_bytes())["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise SettingsError(f"models: {index} cannot be read: {exc!r}") from exc
    present = {file.name for file in path.glob("*.safetensors")}
    # A converter that leaves the index of the original behind: believe the files.
    return wanted if wanted <= present else set()


def _check_architecture(config: dict[str, Any], path: Path) -> None:
    declared = config.get("architectures")
    if not isinstance(declared, list) or len(declared) != 1:
        raise SettingsError(
            f"models: config.json of {path} must name exactly one of architectures, not {declared}"
        )
    if declared[0] not in ARCHITECTURES:
        raise SettingsError(
            f"models: {path} is a {declared[0]}, which ExLlamaV2 0.3.2 does not run. "
            f"It runs {', '.join(sorted(ARCHITECTURES))}."
        )


def _flatten_rope(part: dict[str, Any], config: dict[str, Any], path: Path) -> None:
    """Turn `rope_parameters` (transformers 5) into `rope_theta` and `rope_scaling`."""
    parameters = part.pop("rope_parameters", None)
    if isinstance(parameters, dict):
        parameters = dict(_of_full_attention(parameters, path))
        for key in ("rope_theta", "partial_rotary_factor"):
            if key in parameters:
                _fill(part, key, parameters.pop(key))
        if parameters.get("rope_type", parameters.get("type", "default")) != "default":
            _fill(part, "rope_scaling", parameters)
    scaling = part.get("rope_scaling")
    if not isinstance(scaling, dict):
        return
    if "rope_type" in scaling:  # with both names of it ExLlamaV2 refuses
        scaling.pop("type", None)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in _ROPE_TYPES:
        raise SettingsError(
            f"models: {path} scales its positions by {kind!r}, which ExLlamaV2 0.3.2 would "
            f"leave out. It knows {', '.join(sorted(_ROPE_TYPES))}."
        )
    original = scaling.get("original_max_position_embeddings")
    if kind in ("su", "longrope") and original is not None:
        _fill(config, "original_max_position_embeddings", original)
    if kind == "yarn" and original is None:
        trained = part.get("max_position_embeddings")
        factor = scaling.get("factor")
        if not isinstance(trained, int) or not isinstance(factor, int | float) or factor <= 0:
            raise SettingsError(
                f"models: rope_scaling of {path} lacks original_max_position_embeddings"
            )
        scaling["original_max_position_embeddings"] = int(trained / factor)


def _fill(part: dict[str, Any], key: str, value: Any) -> None:
    """Set what is missing or null; what an older transformers wrote stays."""
    if part.get(key) is None:
        part[key] = value


def _of_full_attention(parameters: dict[str, Any], path: Path) -> dict[str, Any]:
    """Of parameters for each kind of layer those of full attention."""
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
