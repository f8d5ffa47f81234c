"""Checks the settings, loads the weights and makes the context, for both llama.cpp engines."""

import ctypes as c
import logging

from shared.errors import EngineError, SettingsError
from worker.engines.base import EngineSettings
from worker.engines.llamacpp import bindings
from worker.engines.llamacpp.bindings import Library

_log = logging.getLogger(__name__)
KV_TYPES = {"f16": 1, "q8_0": 8, "q4_0": 2}
"""Precision of the KV cache → enum ggml_type."""


def check(settings: EngineSettings) -> None:
    """Raises SettingsError."""
    if settings.speculation is not None or settings.cache_tokens:
        raise SettingsError("draft, cache_tokens: llamacpp supports neither here")
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
    """Load the weights; returns the llama_model. Raises EngineError."""
    params = library.model_default_params()
    params.n_gpu_layers = 0
    on_progress = bindings.ProgressCallback(lambda done, _: _report_progress(settings, done))
    params.progress_callback = c.cast(on_progress, c.c_void_p)
    model: int | None = library.model_load_from_file(str(settings.path).encode(), params)
    if not model:
        reason = bindings.take_reason()
        raise EngineError(f"llama.cpp could not load {settings.path.name}: {reason}")
    return model


def load_text_model(library: Library, settings: EngineSettings) -> int:
    """Load the weights of a model that generates text. Raises EngineError or SettingsError."""
    model = load_model(library, settings)
    if library.model_has_encoder(model) or not library.model_has_decoder(model):
        raise SettingsError(f"models: {settings.path.name} does not generate text")
    given, trained = settings.context_length, library.model_n_ctx_train(model)
    if given > trained:
        _log.warning("context_length = %d, but the model was trained on %d", given, trained)
    return model


def new_context(
    library: Library,
    model: int,
    settings: EngineSettings,
    params: bindings.ContextParams,
    what: str,
) -> int:
    """Make a llama_context with the threads and the precision of the settings; `what` describes
    its size in errors. Raises EngineError."""
    params.n_threads = params.n_threads_batch = settings.threads
    params.type_k = params.type_v = KV_TYPES[settings.quant]
    if settings.quant != "f16":
        params.flash_attn_type = bindings.FLASH_ATTN_ENABLED  # required by a quantised V
    context: int | None = library.init_from_model(model, params)
    if not context:
        raise EngineError(f"llama.cpp could not make a context of {what}: {bindings.take_reason()}")
    return context


def _report_progress(settings: EngineSettings, done: float) -> bool:
    """Called for every piece of the weights; true = continue."""
    settings.on_progress(done)
    return True
