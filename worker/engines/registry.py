"""The table of engines. Only `load` imports one."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import cast

from shared.errors import SettingsError
from worker.engines.base import Engine, EngineSettings

ENGINES = {
    "exllamav2": "worker.engines.exllamav2.engine:ExLlamaV2Engine",
    "llamacpp": "worker.engines.llamacpp.engine:LlamaCppEngine",
}
EMBEDDERS = {"llamacpp": "worker.engines.llamacpp.embedding_engine:LlamaEmbeddingEngine"}
"""Engines that compute embeddings instead of text."""

PACKAGES = {"exllamav2": ("exllamav2", "torch"), "llamacpp": ("xllamacpp",)}
"""Packages whose versions a report about an engine names."""


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
    # An engine's libraries are large and may be absent: import them only to load a model.
    engine_class = getattr(importlib.import_module(module_name), class_name)
    return cast(Callable[[EngineSettings], Engine], engine_class)(settings)
