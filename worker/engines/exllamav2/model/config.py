"""config.json as ExLlamaV2 0.3.2 understands it.

ExLlamaV2 takes a missing `rope_theta` for 10000, a missing `rope_scaling` for unscaled, and an
unknown architecture for Llama: the model then writes nonsense, without an error. So the config is
normalised, or rejected. ExLlamaV2 reads it from a folder, so it gets a temporary one with links to
the files and the normalised config.json; the model's folder is not changed.
Source: exllamav2@v0.3.2:exllamav2/config.py, architecture.py.
"""

import copy
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shared.errors import SettingsError
from worker.engines.exllamav2.model.folder import ModelFolder
from worker.engines.exllamav2.model.rope import fill, flatten_rope

_CAUSAL = (
    "Llama Mistral Mixtral Yi Orion Qwen2 Qwen3 Qwen3Moe Gemma Gemma2 Starcoder2 Cohere Cohere2 "
    "Phi3 MiniCPM InternLM2 Index Granite Glm4"
)
_MULTIMODAL = "Mistral3 Gemma3 Qwen2VL Qwen2_5_VL"
ARCHITECTURES = frozenset(f"{name}ForCausalLM" for name in _CAUSAL.split()) | {
    f"{name}ForConditionalGeneration" for name in _MULTIMODAL.split()
}
"""Those of architecture.py, without GPT2 and GPTBigCode (positions from a table of fixed length),
Dbrx (no memory estimate) and Gemmoe. Vision models are used for text only."""

_ALTERNATING = {"Cohere2ForCausalLM", "Gemma2ForCausalLM", "Gemma3ForConditionalGeneration"}
"""Some of their layers attend to a sliding window only."""
_GPTQ_BITS = 4


def normalise(folder: ModelFolder) -> dict[str, Any]:
    """Return the config to load with. Raises SettingsError."""
    config = copy.deepcopy(folder.config)
    _check_architecture(config, folder.path)
    _check_quantisation(config, folder.path)
    for part in (config, config.get("text_config")):
        if isinstance(part, dict):
            flatten_rope(part, config, folder.path)
    if config["architectures"][0] in _ALTERNATING:
        _set_sliding_pattern(config, folder.path)
    return config


def rope_scaling(folder: ModelFolder) -> dict[str, Any]:
    """The normalised `rope_scaling` of the text model; empty if it has none."""
    config = normalise(folder)
    parts = (config, config.get("text_config"))
    found = (part.get("rope_scaling") for part in parts if isinstance(part, dict))
    return next((scaling for scaling in found if scaling), {})


def is_quantised(config: dict[str, Any]) -> bool:
    return isinstance(config.get("quantization_config"), dict)


@contextmanager
def loadable_folder(folder: ModelFolder) -> Iterator[Path]:
    """A temporary folder to load from: links, and the normalised config. Raises SettingsError.
    Leaves out weights that the index does not name: ExLlamaV2 loads every .safetensors file, and
    some models come with a second copy of the weights in one file."""
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
    # Some converters leave the index of the original behind: then trust the files.
    return wanted if wanted <= present else set()


def _check_architecture(config: dict[str, Any], path: Path) -> None:
    declared = config.get("architectures")
    if not isinstance(declared, list) or len(declared) != 1:
        raise SettingsError(
            f"models: config.json of {path} must name exactly one of architectures, not {declared}"
        )
    if declared[0] not in ARCHITECTURES:
        raise SettingsError(
            f"models: {path} is a {declared[0]}, which ExLlamaV2 0.3.2 does not support. "
            f"It supports {', '.join(sorted(ARCHITECTURES))}."
        )


def _check_quantisation(config: dict[str, Any], path: Path) -> None:
    """Reject other methods: ExLlamaV2 recognises weights by tensor names, so it would report
    missing tensors, or take packed integers for weights."""
    declared = config.get("quantization_config")
    if not isinstance(declared, dict):
        return
    method, bits = declared.get("quant_method"), declared.get("bits")
    if method not in (None, "exl2", "gptq"):
        raise SettingsError(
            f"models: the weights of {path} are quantised by {method!r}; ExLlamaV2 supports "
            "exl2, gptq with 4 bits, and 16-bit weights"
        )
    if method == "gptq" and bits not in (None, _GPTQ_BITS):
        raise SettingsError(f"models: {path} is GPTQ with {bits} bits; ExLlamaV2 supports 4")


def _set_sliding_pattern(config: dict[str, Any], path: Path) -> None:
    """Set `sliding_window_pattern` (every n-th layer has full attention), which ExLlamaV2 reads at
    the top level only, from the `layer_types` that transformers writes since 4.53. Raises
    SettingsError if they have no period."""
    text = config.get("text_config")
    text = text if isinstance(text, dict) else config
    kinds = text.get("layer_types")
    if not isinstance(kinds, list) or not kinds:
        fill(config, "sliding_window_pattern", text.get("sliding_window_pattern"))
        return
    pattern = 1 + (kinds.index("full_attention") if "full_attention" in kinds else len(kinds))
    expected = [
        "sliding_attention" if (i + 1) % pattern else "full_attention" for i in range(len(kinds))
    ]
    # ExLlamaV2 takes a pattern of 1 for every second layer.
    if pattern == 1 or kinds != expected:
        raise SettingsError(
            f"models: layer_types of {path} have no period, which ExLlamaV2 0.3.2 needs"
        )
    config["sliding_window_pattern"] = pattern
