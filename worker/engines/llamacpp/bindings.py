"""llama.cpp's C API, as the extension module of xllamacpp exports it, bound with ctypes.

ctypes releases the GIL around every call, so the other threads of the replica run while the
model computes. The layouts of the structures passed by value were read from llama.h
(ggml-org/llama.cpp, autumn 2026) and hold for the pinned wheel; `load` compares the defaults
that the library fills in with those known for the layout, and rejects a library that differs.
Why ctypes and not xllamacpp's Server class: docs/decisions/0001-llama-cpp-c-api.md.
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
"""llama_progress_callback: false aborts the load."""
FLASH_ATTN_ENABLED = 1


def _fields(*rows: tuple[Any, str]) -> list[tuple[str, Any]]:
    """The fields of a structure in their order, from rows of one type and its names."""
    return [(name, type_) for type_, names in rows for name in names.split()]


class ModelParams(c.Structure):
    """struct llama_model_params. The tail is space for fields that a later build appends."""

    _fields_ = _fields(
        (Pointer, "devices tensor_buft_overrides"),
        (c.c_int32, "n_gpu_layers split_mode load_mode lazy_mode main_gpu"),
        (Pointer, "tensor_split progress_callback progress_callback_user_data kv_overrides"),
        (c.c_bool, "vocab_only check_tensors use_extra_bufts no_host no_alloc load_mtp"),
        (c.c_uint8 * 64, "_tail"),
    )


class ContextParams(c.Structure):
    """struct llama_context_params."""

    _fields_ = _fields(
        (c.c_uint32, "n_ctx n_batch n_ubatch n_seq_max n_rs_seq n_outputs_max"),
        (c.c_uint32, "n_outputs_max_per_seq"),
        (c.c_int32, "n_threads n_threads_batch ctx_type rope_scaling_type pooling_type"),
        (c.c_int32, "attention_type flash_attn_type"),
        (c.c_float, "rope_freq_base rope_freq_scale"),
        (c.c_float, "yarn_ext_factor yarn_attn_factor yarn_beta_fast yarn_beta_slow"),
        (c.c_uint32, "yarn_orig_ctx"),
        (c.c_float, "defrag_thold"),
        (Pointer, "cb_eval cb_eval_user_data"),
        (c.c_int32, "type_k type_v"),
        (Pointer, "abort_callback abort_callback_data"),
        # Eight bytes that this build has and the header does not; null by default.
        (Pointer, "_reserved"),
        (c.c_bool, "embeddings offload_kqv no_perf op_offload swa_full kv_unified"),
        (Pointer, "samplers"),
        (c.c_size_t, "n_samplers"),
        (Pointer, "ctx_other"),
        (c.c_uint8 * 64, "_tail"),
    )


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
_Int, _UInt, _Size, _Float, _Bool = c.c_int32, c.c_uint32, c.c_size_t, c.c_float, c.c_bool
_Text, _Ints = c.c_char_p, c.POINTER(c.c_int32)

_SIGNATURES: dict[str, tuple[Any, ...]] = {
    # name: (result, *arguments)
    "llama_backend_init": (None,),
    "llama_log_set": (None, _LogCallback, Pointer),
    "llama_model_default_params": (ModelParams,),
    "llama_context_default_params": (ContextParams,),
    "llama_model_load_from_file": (Pointer, _Text, ModelParams),
    "llama_model_free": (None, Pointer),
    "llama_model_get_vocab": (Pointer, Pointer),
    "llama_model_chat_template": (_Text, Pointer, _Text),
    "llama_model_n_ctx_train": (_Int, Pointer),
    "llama_model_has_encoder": (_Bool, Pointer),
    "llama_model_has_decoder": (_Bool, Pointer),
    "llama_model_n_embd_out": (_Int, Pointer),
    "llama_model_meta_val_str": (_Int, Pointer, _Text, _Text, _Size),
    "llama_init_from_model": (Pointer, Pointer, ContextParams),
    "llama_free": (None, Pointer),
    "llama_n_ctx_seq": (_UInt, Pointer),
    "llama_get_memory": (Pointer, Pointer),
    "llama_memory_clear": (None, Pointer, _Bool),
    "llama_memory_seq_rm": (_Bool, Pointer, _Int, _Int, _Int),
    "llama_decode": (_Int, Pointer, Batch),
    "llama_get_logits": (Pointer, Pointer),
    "llama_get_embeddings_seq": (Pointer, Pointer, _Int),
    "llama_vocab_n_tokens": (_Int, Pointer),
    "llama_vocab_bos": (_Int, Pointer),
    "llama_vocab_eos": (_Int, Pointer),
    "llama_vocab_get_add_bos": (_Bool, Pointer),
    "llama_vocab_get_add_eos": (_Bool, Pointer),
    "llama_vocab_is_eog": (_Bool, Pointer, _Int),
    "llama_vocab_get_text": (_Text, Pointer, _Int),
    "llama_vocab_get_attr": (_Int, Pointer, _Int),
    "llama_vocab_fim_pre": (_Int, Pointer),
    "llama_vocab_fim_suf": (_Int, Pointer),
    "llama_vocab_fim_mid": (_Int, Pointer),
    "llama_tokenize": (_Int, Pointer, _Text, _Int, _Ints, _Int, _Bool, _Bool),
    "llama_token_to_piece": (_Int, Pointer, _Int, _Text, _Int, _Int, _Bool),
    "llama_sampler_chain_init": (Pointer, SamplerChainParams),
    "llama_sampler_chain_add": (None, Pointer, Pointer),
    "llama_sampler_sample": (_Int, Pointer, Pointer, _Int),
    "llama_sampler_accept": (None, Pointer, _Int),
    "llama_sampler_free": (None, Pointer),
    "llama_sampler_init_greedy": (Pointer,),
    "llama_sampler_init_dist": (Pointer, _UInt),
    "llama_sampler_init_temp": (Pointer, _Float),
    "llama_sampler_init_top_k": (Pointer, _Int),
    "llama_sampler_init_top_p": (Pointer, _Float, _Size),
    "llama_sampler_init_min_p": (Pointer, _Float, _Size),
    "llama_sampler_init_penalties": (Pointer, _Int, _Int, _Float, _Float, _Float),
    "llama_sampler_init_logit_bias": (Pointer, _Int, _Int, c.POINTER(LogitBias)),
}

# What the library's default functions fill in when the layouts above are right.
_KNOWN_MODEL_DEFAULTS = {
    "n_gpu_layers": -1,
    "split_mode": 1,
    "load_mode": -1,
    "lazy_mode": 1,
    "main_gpu": 0,
    "vocab_only": False,
    "use_extra_bufts": True,
    "no_alloc": False,
}
_KNOWN_CONTEXT_DEFAULTS = {
    "n_ctx": 512,
    "n_batch": 2048,
    "n_ubatch": 512,
    "n_seq_max": 1,
    "n_threads": 4,
    "pooling_type": -1,
    "flash_attn_type": -1,
    "yarn_beta_slow": -1.0,
    "defrag_thold": -1.0,
    "type_k": 1,
    "type_v": 1,
    "embeddings": False,
    "offload_kqv": True,
    "swa_full": True,
    "kv_unified": False,
    "n_samplers": 0,
}


class Library:
    """The bound functions, named as in llama.h without the prefix `llama_`."""

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
                f"{expected!r} expected: this wheel has a different layout. "
                "Install the version pinned in requirements.txt."
            )


_errors: deque[str] = deque(maxlen=20)


def take_reason() -> str:
    """The first error that llama.cpp logged since the last call: its functions themselves return
    no reason."""
    reason = _errors[0] if _errors else "it gave no reason"
    _errors.clear()
    return reason.rpartition("error loading model: ")[2]


def _forward_log(level: int, text: bytes | None, _user: Any) -> None:
    # ggml levels: 3 = warning, 4 = error; × 10 gives those of logging. Lower ones are verbose.
    if level in (3, 4) and text and text.strip(b".\n"):
        line = text.decode("utf-8", "replace").strip()
        _log.log(10 * level, "llama.cpp: %s", line)
        if level == 4:
            _errors.append(line)


_log_callback = _LogCallback(_forward_log)
"""Referenced here because the library calls it until the process ends."""


def load() -> Library:
    """Bind the library and start its backend. Raises SettingsError when the layout differs."""
    import xllamacpp.xllamacpp as extension  # 100 MB: imported only to load a model

    library = Library(extension.__file__)
    _check(library.model_default_params(), _KNOWN_MODEL_DEFAULTS)
    _check(library.context_default_params(), _KNOWN_CONTEXT_DEFAULTS)
    library.log_set(_log_callback, None)
    library.backend_init()
    return library
