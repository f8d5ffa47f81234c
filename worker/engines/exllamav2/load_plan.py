"""What to load and how large, decided before anything is allocated. Pure arithmetic."""

import logging
from dataclasses import dataclass

from shared.errors import SettingsError
from worker.cuda_devices import parse_devices
from worker.engines.exl2 import pages
from worker.engines.protocol import EngineSettings

_log = logging.getLogger(__name__)
CACHES = {
    "f16": "ExLlamaV2Cache", "fp16": "ExLlamaV2Cache", "q8": "ExLlamaV2Cache_Q8",
    "q8_0": "ExLlamaV2Cache_Q8", "q6": "ExLlamaV2Cache_Q6", "q4": "ExLlamaV2Cache_Q4",
    "q4_0": "ExLlamaV2Cache_Q4",
}  # fmt: skip
"""Precision of the KV cache → class of exllamav2."""
_MAX_INPUT_TOKENS = 2048
_MIN_CONTEXT = 2
"""A token of prompt and one of completion."""
_CLIFF_ROWS = 32
"""MAX_Q_GEMM_ROWS: with more rows in a step, quantised weights are unpacked each time
(exllamav2@v0.3.2:exllamav2_ext/cuda/q_gemm.cu)."""


@dataclass(frozen=True, slots=True)
class Plan:
    context_length: int
    """Tokens of a sequence that requests may use."""
    rope_tokens: int
    """Positions that are prepared: nothing checks them later."""
    cache_class: str
    cache_tokens: int
    max_input_tokens: int
    """The largest piece of a prompt in one step; a multiple of the page."""
    num_draft_tokens: int
    devices: list[int] | None
    """CUDA device numbers; None = all that are visible."""

    @property
    def num_pages(self) -> int:
        return self.cache_tokens // pages.PAGE_TOKENS


def make_plan(settings: EngineSettings, *, is_quantised: bool) -> Plan:
    """Raises SettingsError."""
    if settings.quant not in CACHES:
        raise SettingsError(
            f"quant = {settings.quant!r}: exllamav2 has {', '.join(CACHES)} for the KV cache"
        )
    speculation = settings.speculation
    num_draft_tokens = speculation.num_tokens if speculation else 0
    if speculation and not 1 <= num_draft_tokens <= 15:
        raise SettingsError(f"speculation of {num_draft_tokens} tokens: must be 1 to 15")
    # Guesses reach beyond the last token. The positions stay those that were asked for: some
    # models switch to other ones (longrope) where the context is longer than it was trained on.
    context_length = settings.context_length - num_draft_tokens
    if context_length < _MIN_CONTEXT:
        raise SettingsError(
            f"context_length = {settings.context_length} with {num_draft_tokens} draft tokens: "
            f"must be at least {_MIN_CONTEXT + num_draft_tokens}"
        )
    rope_tokens = max(settings.context_length, pages.PAGE_TOKENS)
    max_input_tokens = min(_MAX_INPUT_TOKENS, rope_tokens)
    max_input_tokens -= max_input_tokens % pages.PAGE_TOKENS
    most_slots = max_input_tokens // (num_draft_tokens + 1)
    if settings.slots > most_slots:
        raise SettingsError(
            f"slots = {settings.slots}: at most {most_slots} with context_length = "
            f"{settings.context_length} and {num_draft_tokens} draft tokens"
        )
    per_slot = pages.round_up(settings.context_length)
    cache_tokens = pages.round_up(settings.cache_tokens or settings.slots * per_slot)
    if cache_tokens < per_slot:
        raise SettingsError(
            f"cache_tokens = {settings.cache_tokens}: a sequence of context_length = "
            f"{settings.context_length} needs {per_slot}"
        )
    rows = settings.slots * (num_draft_tokens + 1)
    if is_quantised and rows > _CLIFF_ROWS:
        _log.warning(
            "slots = %d: with more than %d rows in a step (slots × tokens checked) quantised "
            "weights are unpacked in every step; measure whether that is worth it",
            settings.slots,
            _CLIFF_ROWS,
        )
    return Plan(
        context_length=context_length,
        rope_tokens=rope_tokens,
        cache_class=CACHES[settings.quant],
        cache_tokens=cache_tokens,
        max_input_tokens=max_input_tokens,
        num_draft_tokens=num_draft_tokens,
        devices=parse_devices(settings.device),
    )
