"""The engines. `load` is the only place that knows which classes there are."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import cast

from shared.errors import SettingsError
from worker.engines.protocol import Engine, EngineSettings

ENGINES = {
    "exllamav2": "worker.engines.exllamav2:ExLlamaV2Engine",
    "llamacpp": "worker.engines.llamacpp:LlamaCppEngine",
}
EMBEDDERS = {"llamacpp": "worker.engines.llama_embedding:LlamaEmbeddingEngine"}
"""Those that make embeddings of a model, in place of text."""

PACKAGES = {"exllamav2": ("exllamav2", "torch"), "llamacpp": ("xllamacpp",)}
"""Whose versions matter when an engine is looked into."""


def engine_for(path: Path) -> str:
    """The engine for the weights at a path: a folder is Hugging Face's, a file is GGUF."""
    return "exllamav2" if path.is_dir() else "llamacpp"


def load(name: str, settings: EngineSettings) -> Engine:
    """Load a model with the engine of that name. Raises SettingsError or EngineError."""
    classes = EMBEDDERS if settings.task == "embed" else ENGINES
    if name not in classes:
        raise SettingsError(
            f"engine = {name!r}: must be one of {', '.join(sorted(classes))} "
            f"for task = {settings.task!r}"
        )
    module_name, class_name = classes[name].split(":")
    # The engine's libraries are large and may be absent: imported only where one is loaded.
    engine_class = getattr(importlib.import_module(module_name), class_name)
    return cast(Callable[[EngineSettings], Engine], engine_class)(settings)
