"""What the two engines on llama.cpp do alike: check the settings, read the weights."""

import ctypes as c

from shared.errors import EngineError, SettingsError
from worker.engines import llama_abi
from worker.engines.llama_abi import Library
from worker.engines.protocol import EngineSettings

KV_TYPES = {"f16": 1, "q8_0": 8, "q4_0": 2}
"""Precision of the KV cache → enum ggml_type."""


def check(settings: EngineSettings) -> None:
    """Raises SettingsError."""
    if settings.speculation is not None or settings.cache_tokens:
        raise SettingsError("draft, cache_tokens: llamacpp has neither here")
    if settings.device not in ("auto", "cpu"):
        raise SettingsError(f"device = {settings.device!r}: llamacpp runs on the cpu here")
    if settings.quant not in KV_TYPES:
        raise SettingsError(f"quant = {settings.quant!r}: must be one of {', '.join(KV_TYPES)}")
    path = settings.path
    if not path.is_file():
        raise SettingsError(f"models: no file at {path}")
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise SettingsError(f"models: {path} is not a GGUF file (it begins with {magic!r})")


def load_model(library: Library, settings: EngineSettings) -> int:
    """Read the weights; the llama_model. Raises EngineError."""
    params = library.model_default_params()
    params.n_gpu_layers = 0
    on_progress = llama_abi.ProgressCallback(lambda done, _: _tell(settings, done))
    params.progress_callback = c.cast(on_progress, c.c_void_p)
    model: int | None = library.model_load_from_file(str(settings.path).encode(), params)
    if not model:
        reason = llama_abi.take_reason()
        raise EngineError(f"llama.cpp could not load {settings.path.name}: {reason}")
    return model


def new_context(library: Library, model: int, params: llama_abi.ContextParams, what: str) -> int:
    """Make a llama_context; `what` it is in words. Raises EngineError."""
    context: int | None = library.init_from_model(model, params)
    if not context:
        raise EngineError(
            f"llama.cpp could not make a context of {what}: {llama_abi.take_reason()}"
        )
    return context


def _tell(settings: EngineSettings, done: float) -> bool:
    """llama.cpp asks at every piece whether to go on."""
    settings.on_progress(done)
    return True
