"""Sizes of the cache and of steps, computed before anything is allocated. Pure arithmetic."""

import logging
from dataclasses import dataclass

from shared.errors import SettingsError
from worker.cuda_devices import parse_devices
from worker.engines.base import EngineSettings
from worker.engines.exllamav2 import pages

_log = logging.getLogger(__name__)
CACHES = {
    "f16": "ExLlamaV2Cache",
    "fp16": "ExLlamaV2Cache",
    "q8": "ExLlamaV2Cache_Q8",
    "q8_0": "ExLlamaV2Cache_Q8",
    "q6": "ExLlamaV2Cache_Q6",
    "q4": "ExLlamaV2Cache_Q4",
    "q4_0": "ExLlamaV2Cache_Q4",
}
"""Precision of the KV cache → class of exllamav2."""
_MAX_INPUT_TOKENS = 2048
_MIN_CONTEXT = 2
"""One token of prompt and one of completion."""
_MAX_DRAFT_TOKENS = 15
_CLIFF_ROWS = 32
"""MAX_Q_GEMM_ROWS: with more rows in a step, quantised weights are unpacked each time
(exllamav2@v0.3.2:exllamav2_ext/cuda/q_gemm.cu)."""


@dataclass(frozen=True, slots=True)
class Plan:
    context_length: int
    """Tokens per sequence that requests may use."""
    rope_tokens: int
    """Prepared positions; exllamav2 does not check positions against them."""
    cache_class: str
    cache_tokens: int
    max_input_tokens: int
    """The largest prompt chunk of a step; a multiple of the page."""
    num_draft_tokens: int
    devices: list[int] | None
    """CUDA device numbers; None = all visible ones."""

    @property
    def num_pages(self) -> int:
        return self.cache_tokens // pages.PAGE_TOKENS


def make_plan(settings: EngineSettings, *, is_quantised: bool) -> Plan:
    """Raises SettingsError."""
    if settings.quant not in CACHES:
        raise SettingsError(
            f"quant = {settings.quant!r}: exllamav2 has {', '.join(CACHES)} for the KV cache"
        )
    num_draft_tokens = _num_draft_tokens(settings)
    if settings.context_length - num_draft_tokens < _MIN_CONTEXT:
        raise SettingsError(
            f"context_length = {settings.context_length} with {num_draft_tokens} draft tokens: "
            f"must be at least {_MIN_CONTEXT + num_draft_tokens}"
        )
    rope_tokens = max(settings.context_length, pages.PAGE_TOKENS)
    max_input_tokens = min(_MAX_INPUT_TOKENS, rope_tokens)
    max_input_tokens -= max_input_tokens % pages.PAGE_TOKENS
    # A step has one token and its drafts per slot, and one input buffer for all slots.
    rows_per_slot = num_draft_tokens + 1
    most_slots = max_input_tokens // rows_per_slot
    if settings.slots > most_slots:
        raise SettingsError(
            f"slots = {settings.slots}: at most {most_slots} with context_length = "
            f"{settings.context_length} and {num_draft_tokens} draft tokens"
        )
    if is_quantised and settings.slots * rows_per_slot > _CLIFF_ROWS:
        _log.warning(
            "slots = %d: with more than %d rows per step (slots × tokens checked) quantised "
            "weights are unpacked in every step; measure whether this is worth it",
            settings.slots,
            _CLIFF_ROWS,
        )
    return Plan(
        # The drafts reach beyond the last token, so requests may use less than the prepared
        # positions. More cannot be prepared: longrope models then switch to other factors.
        context_length=settings.context_length - num_draft_tokens,
        rope_tokens=rope_tokens,
        cache_class=CACHES[settings.quant],
        cache_tokens=_cache_tokens(settings),
        max_input_tokens=max_input_tokens,
        num_draft_tokens=num_draft_tokens,
        devices=parse_devices(settings.device),
    )


def _num_draft_tokens(settings: EngineSettings) -> int:
    if settings.speculation is None:
        return 0
    num_tokens = settings.speculation.num_tokens
    if not 1 <= num_tokens <= _MAX_DRAFT_TOKENS:
        raise SettingsError(f"speculation of {num_tokens} tokens: must be 1 to {_MAX_DRAFT_TOKENS}")
    return num_tokens


def _cache_tokens(settings: EngineSettings) -> int:
    per_slot = pages.round_up(settings.context_length)
    cache_tokens = pages.round_up(settings.cache_tokens or settings.slots * per_slot)
    if cache_tokens < per_slot:
        raise SettingsError(
            f"cache_tokens = {settings.cache_tokens}: a sequence of context_length = "
            f"{settings.context_length} needs {per_slot}"
        )
    return cache_tokens
