"""Puts `FlashApi` in place of flash-attn in exllamav2.attn.

ExLlamaV2 0.3.2 calls flash_attn_with_kvcache, flash_attn_func and flash_attn_varlen_func as
globals of exllamav2/attn.py, and decides by four flags there (lines 24-64) and by a copy of
one in exllamav2/model.py (line 39). config.arch_compat_overrides reads the flags too, so
`attach` runs after the import and before an ExLlamaV2Config prepares a model.

Not covered: tensor parallelism, whose C++ calls flash_attn_2_cuda itself, and a config with
no_flash_attn, which turns these calls off.
"""

import importlib
import importlib.util
import logging
import os
from dataclasses import dataclass
from types import ModuleType

from shared.errors import EngineError, SettingsError
from worker.engines.exllamav2.attention.call import Attention
from worker.engines.exllamav2.attention.flash_api import FlashApi

_log = logging.getLogger(__name__)
CHOICES = ("auto", "flash-attn", "triton", "sdpa")
_FUNCTIONS = ("flash_attn_with_kvcache", "flash_attn_func", "flash_attn_varlen_func")
_FLAGS = (
    "has_flash_attn",
    "has_flash_attn_with_paged",
    "has_flash_attn_with_window",
    "has_flash_attn_with_softcap",
)
_OFF_SWITCH = "EXLLAMA_NO_FLASH_ATTN"


@dataclass(frozen=True, slots=True)
class AttentionInUse:
    """The attention that ExLlamaV2 uses, and why."""

    name: str
    """flash-attn, triton or sdpa."""
    reason: str


def attach(
    choice: str = "auto", attn: ModuleType | None = None, model: ModuleType | None = None
) -> AttentionInUse:
    """Choose the attention and install it; a second call may change the choice.

    `auto` takes flash-attn if ExLlamaV2 found one with pages, windows and soft caps (2.6.0 or
    newer), else Triton, else torch. `attn` and `model` are exllamav2's modules, imported here
    unless given. Raises SettingsError for a choice that this host cannot serve.
    """
    if choice not in CHOICES:
        raise SettingsError(f"attention = {choice!r}: must be one of {', '.join(CHOICES)}")
    if _OFF_SWITCH in os.environ:
        raise SettingsError(f"{_OFF_SWITCH} is set: ExLlamaV2 cannot batch without it; unset it")
    attn = attn or importlib.import_module("exllamav2.attn")
    model = model or importlib.import_module("exllamav2.model")
    chosen = _choose(choice, attn)
    if chosen.name == "flash-attn":
        vars(attn).update(_originals(attn))
        vars(model)["has_flash_attn"] = attn.has_flash_attn
    else:
        _put(FlashApi(new_attention(chosen.name)), attn, model)
    _log.info("attention in use", extra={"attention": chosen.name, "reason": chosen.reason})
    return chosen


def new_attention(name: str) -> Attention:
    """Make the `Attention` named triton or sdpa."""
    if name == "triton":
        # Here, because it imports triton, which may be absent.
        from worker.engines.exllamav2.attention.triton import TritonAttention

        return TritonAttention()
    from worker.engines.exllamav2.attention.sdpa import SdpaAttention

    return SdpaAttention()


def _choose(choice: str, attn: ModuleType) -> AttentionInUse:
    missing = _missing_of_flash_attn(attn)
    if choice == "flash-attn" and missing:
        raise SettingsError(f"attention = 'flash-attn': {missing}")
    if choice == "flash-attn" or (choice == "auto" and not missing):
        return AttentionInUse("flash-attn", "installed and recent enough")
    no_triton = "" if importlib.util.find_spec("triton") else "triton is not installed"
    if choice == "triton" and no_triton:
        raise SettingsError(f"attention = 'triton': {no_triton}")
    if choice == "triton" or (choice == "auto" and not no_triton):
        return AttentionInUse("triton", "asked for" if choice == "triton" else missing)
    return AttentionInUse("sdpa", "asked for" if choice == "sdpa" else f"{missing}; {no_triton}")


def _missing_of_flash_attn(attn: ModuleType) -> str:
    """Why flash-attn cannot be used; empty if it can. Reads the flags of ExLlamaV2's import."""
    found = _originals(attn)
    absent = [flag for flag in _FLAGS if not found.get(flag)]
    if absent == list(_FLAGS):
        return "flash-attn is not installed, or unusable"
    if absent:
        return f"flash-attn is too old ({', '.join(absent)} not set)"
    return ""


def _originals(attn: ModuleType) -> dict[str, object]:
    """Flags and functions as ExLlamaV2's import left them, saved at the first call."""
    if not hasattr(attn, "llmis_originals"):
        if not hasattr(attn, _FLAGS[0]):
            raise EngineError("exllamav2.attn has no has_flash_attn: not the version 0.3.2")
        names = (*_FLAGS, *_FUNCTIONS)
        vars(attn)["llmis_originals"] = {n: getattr(attn, n) for n in names if hasattr(attn, n)}
    originals: dict[str, object] = vars(attn)["llmis_originals"]
    return originals


def _put(api: FlashApi, attn: ModuleType, model: ModuleType) -> None:
    _originals(attn)
    vars(attn).update({name: getattr(api, name) for name in _FUNCTIONS})
    vars(attn).update(dict.fromkeys(_FLAGS, True))
    vars(model)["has_flash_attn"] = True
