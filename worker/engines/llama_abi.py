"""llama.cpp's C API, as the extension module of xllamacpp exports it, bound with ctypes.

ctypes releases the GIL around every call, so the other threads of the replica run while the
model computes. The layouts of the structures that pass by value were read from llama.h
(ggml-org/llama.cpp, autumn 2026) and hold for the pinned wheel; `load` compares the defaults
that the library fills in with the ones known for that layout and refuses a library that
differs. Why ctypes and not xllamacpp's Server class: docs/decisions/0001-llama-cpp-c-api.md.
"""

import ctypes as c
import logging
from collections import deque
from collections.abc import Callable
from typing import Any

from shared.errors import SettingsError

_log = logging.getLogger(__name__)

Pointer = c.c_void_p


ProgressCallback = c.CFUNCTYPE(c.c_bool, c.c_float, c.c_void_p)
"""llama_progress_callback: false would break the load off."""
FLASH_ATTN_ENABLED = 1


class ModelParams(c.Structure):
    """struct llama_model_params. The tail keeps room for fields that a later build appends."""

    _fields_ = [
        ("devices", Pointer),
        ("tensor_buft_overrides", Pointer),
        ("n_gpu_layers", c.c_int32),
        ("split_mode", c.c_int32),
        ("load_mode", c.c_int32),
        ("lazy_mode", c.c_int32),
        ("main_gpu", c.c_int32),
        ("tensor_split", Pointer),
        ("progress_callback", Pointer),
        ("progress_callback_user_data", Pointer),
        ("kv_overrides", Pointer),
        ("vocab_only", c.c_bool),
        ("check_tensors", c.c_bool),
        ("use_extra_bufts", c.c_bool),
        ("no_host", c.c_bool),
        ("no_alloc", c.c_bool),
        ("load_mtp", c.c_bool),
        ("_tail", c.c_uint8 * 64),
    ]


class ContextParams(c.Structure):
    """struct llama_context_params."""

    _fields_ = [
        ("n_ctx", c.c_uint32),
        ("n_batch", c.c_uint32),
        ("n_ubatch", c.c_uint32),
        ("n_seq_max", c.c_uint32),
        ("n_rs_seq", c.c_uint32),
        ("n_outputs_max", c.c_uint32),
        ("n_outputs_max_per_seq", c.c_uint32),
        ("n_threads", c.c_int32),
        ("n_threads_batch", c.c_int32),
        ("ctx_type", c.c_int32),
        ("rope_scaling_type", c.c_int32),
        ("pooling_type", c.c_int32),
        ("attention_type", c.c_int32),
        ("flash_attn_type", c.c_int32),
        ("rope_freq_base", c.c_float),
        ("rope_freq_scale", c.c_float),
        ("yarn_ext_factor", c.c_float),
        ("yarn_attn_factor", c.c_float),
        ("yarn_beta_fast", c.c_float),
        ("yarn_beta_slow", c.c_float),
        ("yarn_orig_ctx", c.c_uint32),
        ("defrag_thold", c.c_float),
        ("cb_eval", Pointer),
        ("cb_eval_user_data", Pointer),
        ("type_k", c.c_int32),
        ("type_v", c.c_int32),
        ("abort_callback", Pointer),
        ("abort_callback_data", Pointer),
        # Eight bytes that this build has and the header that was read does not; null by default.
        ("_reserved", Pointer),
        ("embeddings", c.c_bool),
        ("offload_kqv", c.c_bool),
        ("no_perf", c.c_bool),
        ("op_offload", c.c_bool),
        ("swa_full", c.c_bool),
        ("kv_unified", c.c_bool),
        ("samplers", Pointer),
        ("n_samplers", c.c_size_t),
        ("ctx_other", Pointer),
        ("_tail", c.c_uint8 * 64),
    ]


class SamplerChainParams(c.Structure):
    _fields_ = [("no_perf", c.c_bool)]


class LogitBias(c.Structure):
    _fields_ = [("token", c.c_int32), ("bias", c.c_float)]


class Batch(c.Structure):
    """struct llama_batch: the input of one decode call."""

    _fields_ = [
        ("n_tokens", c.c_int32),
        ("token", c.POINTER(c.c_int32)),
        ("embd", Pointer),
        ("pos", c.POINTER(c.c_int32)),
        ("n_seq_id", c.POINTER(c.c_int32)),
        ("seq_id", c.POINTER(c.POINTER(c.c_int32))),
        ("logits", c.POINTER(c.c_int8)),
    ]


_LogCallback = c.CFUNCTYPE(None, c.c_int, c.c_char_p, Pointer)

_SIGNATURES: dict[str, tuple[Any, ...]] = {
    # name: (result, *arguments)
    "llama_backend_init": (None,),
    "llama_log_set": (None, _LogCallback, Pointer),
    "llama_model_default_params": (ModelParams,),
    "llama_context_default_params": (ContextParams,),
    "llama_model_load_from_file": (Pointer, c.c_char_p, ModelParams),
    "llama_model_free": (None, Pointer),
    "llama_model_get_vocab": (Pointer, Pointer),
    "llama_model_chat_template": (c.c_char_p, Pointer, c.c_char_p),
    "llama_model_n_ctx_train": (c.c_int32, Pointer),
    "llama_model_has_encoder": (c.c_bool, Pointer),
    "llama_model_has_decoder": (c.c_bool, Pointer),
    "llama_model_n_embd_out": (c.c_int32, Pointer),
    "llama_model_meta_val_str": (c.c_int32, Pointer, c.c_char_p, c.c_char_p, c.c_size_t),
    "llama_init_from_model": (Pointer, Pointer, ContextParams),
    "llama_free": (None, Pointer),
    "llama_n_ctx_seq": (c.c_uint32, Pointer),
    "llama_get_memory": (Pointer, Pointer),
    "llama_memory_clear": (None, Pointer, c.c_bool),
    "llama_memory_seq_rm": (c.c_bool, Pointer, c.c_int32, c.c_int32, c.c_int32),
    "llama_decode": (c.c_int32, Pointer, Batch),
    "llama_get_logits": (Pointer, Pointer),
    "llama_get_embeddings_seq": (Pointer, Pointer, c.c_int32),
    "llama_vocab_n_tokens": (c.c_int32, Pointer),
    "llama_vocab_bos": (c.c_int32, Pointer),
    "llama_vocab_eos": (c.c_int32, Pointer),
    "llama_vocab_get_add_bos": (c.c_bool, Pointer),
    "llama_vocab_is_eog": (c.c_bool, Pointer, c.c_int32),
    "llama_vocab_get_text": (c.c_char_p, Pointer, c.c_int32),
    "llama_vocab_get_attr": (c.c_int32, Pointer, c.c_int32),
    "llama_vocab_fim_pre": (c.c_int32, Pointer),
    "llama_vocab_fim_suf": (c.c_int32, Pointer),
    "llama_vocab_fim_mid": (c.c_int32, Pointer),
    "llama_tokenize": (
        c.c_int32,
        Pointer,
        c.c_char_p,
        c.c_int32,
        c.POINTER(c.c_int32),
        c.c_int32,
        c.c_bool,
        c.c_bool,
    ),
    "llama_token_to_piece": (
        c.c_int32,
        Pointer,
        c.c_int32,
        c.c_char_p,
        c.c_int32,
        c.c_int32,
        c.c_bool,
    ),
    "llama_sampler_chain_init": (Pointer, SamplerChainParams),
    "llama_sampler_chain_add": (None, Pointer, Pointer),
    "llama_sampler_sample": (c.c_int32, Pointer, Pointer, c.c_int32),
    "llama_sampler_accept": (None, Pointer, c.c_int32),
    "llama_sampler_free": (None, Pointer),
    "llama_sampler_init_greedy": (Pointer,),
    "llama_sampler_init_dist": (Pointer, c.c_uint32),
    "llama_sampler_init_temp": (Pointer, c.c_float),
    "llama_sampler_init_top_k": (Pointer, c.c_int32),
    "llama_sampler_init_top_p": (Pointer, c.c_float, c.c_size_t),
    "llama_sampler_init_min_p": (Pointer, c.c_float, c.c_size_t),
    "llama_sampler_init_penalties": (
        Pointer,
        c.c_int32,
        c.c_int32,
        c.c_float,
        c.c_float,
        c.c_float,
    ),
    "llama_sampler_init_logit_bias": (Pointer, c.c_int32, c.c_int32, c.POINTER(LogitBias)),
}

# What the library's default functions fill in when the layouts above are right.
_KNOWN_MODEL_DEFAULTS = {"n_gpu_layers": -1, "split_mode": 1, "load_mode": -1, "lazy_mode": 1,
                         "main_gpu": 0, "vocab_only": False, "use_extra_bufts": True,
                         "no_alloc": False}  # fmt: skip
_KNOWN_CONTEXT_DEFAULTS = {"n_ctx": 512, "n_batch": 2048, "n_ubatch": 512, "n_seq_max": 1,
                           "n_threads": 4, "pooling_type": -1, "flash_attn_type": -1,
                           "yarn_beta_slow": -1.0, "defrag_thold": -1.0, "type_k": 1,
                           "type_v": 1, "embeddings": False, "offload_kqv": True,
                           "swa_full": True, "kv_unified": False, "n_samplers": 0}  # fmt: skip


class Library:
    """The bound functions, by their names in llama.h without the prefix `llama_`."""

    def __init__(self, path: str) -> None:
        library = c.CDLL(path)
        for name, (result, *arguments) in _SIGNATURES.items():
            function = getattr(library, name)
            function.restype = result
            function.argtypes = arguments
            setattr(self, name.removeprefix("llama_"), function)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        raise AttributeError(f"llama_{name} is not bound in {__name__}")


def _check(structure: c.Structure, known: dict[str, Any]) -> None:
    for field, expected in known.items():
        found = getattr(structure, field)
        if found != expected:
            raise SettingsError(
                f"xllamacpp: {type(structure).__name__}.{field} is {found!r} by default, "
                f"{expected!r} expected: this wheel has another layout. "
                "Install the version that requirements.txt pins."
            )


_errors: deque[str] = deque(maxlen=20)


def take_reason() -> str:
    """Why llama.cpp failed: the first error that it logged since this was asked last. Its
    functions themselves give no reason."""
    reason = _errors[0] if _errors else "it gave no reason"
    _errors.clear()
    return reason.rpartition("error loading model: ")[2]


def _forward_log(level: int, text: bytes | None, _user: Any) -> None:
    # ggml levels: 3 = warning, 4 = error; lower ones are the loader's chatter.
    if level in (3, 4) and text and text.strip(b".\n"):
        line = text.decode("utf-8", "replace").strip()
        _log.log(10 * level, "llama.cpp: %s", line)
        if level == 4:
            _errors.append(line)


_log_callback = _LogCallback(_forward_log)
"""Kept here: the library calls it for as long as the process lives."""


def load() -> Library:
    """Bind the library and start its backend. Raises SettingsError when the layout differs."""
    import xllamacpp.xllamacpp as extension  # 100 MB: loaded only where a model is

    library = Library(extension.__file__)
    _check(library.model_default_params(), _KNOWN_MODEL_DEFAULTS)
    _check(library.context_default_params(), _KNOWN_CONTEXT_DEFAULTS)
    library.log_set(_log_callback, None)
    library.backend_init()
    return library
