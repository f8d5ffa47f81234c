"""A sequence in an engine, and the result of a step for it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from shared.denylist.denylist import OutputRules
from shared.errors import LlmisError
from shared.wire.events import Filtered, FinishReason, TokenLogprobs
from shared.wire.job import Grammar, Sampling
from worker.text_parts import TextParser

INVALID_LOGITS = "The model computed no valid numbers (NaN or infinite)."
"""The error of a sequence whose logits or vector cannot be used."""


@dataclass(frozen=True, slots=True)
class Speculation:
    """Speculative decoding: propose draft tokens and let the model check several in one step."""

    draft_path: Path | None = None
    """Folder of a draft model with the same vocabulary; None = n-grams of the text so far."""
    num_tokens: int = 4
    """Draft tokens per step, at least 1."""


@dataclass(slots=True)
class Sequence:
    """One sequence to generate: a choice of a job."""

    key: tuple[str, int]
    """(job id, choice index), unique among the live sequences."""
    prompt: list[int]
    """Token ids: at least one, fewer than the context length; for an engine that embeds, at
    most the context length."""
    max_tokens: int
    """Prompt and completion together fit the context. 0 = only prefill; always 0 for an engine
    that embeds."""
    sampling: Sampling
    stop: list[str] = field(default_factory=list)
    """Strings that end the completion: in its content, or as the name of a control token."""
    new_parser: Callable[[], TextParser | None] | None = None
    """Makes a parser that finds the content in the text; without one all of it is content."""
    strip_leading_space: bool = False
    """Drop one space at the start of the text, which a chat template leaves out."""
    logprobs: int | None = None
    """Alternatives to report per token; None = no log probabilities at all."""
    grammar: Grammar | None = None
    compiled: Any = None
    """The grammar compiled by the engine's `check`; `submit` needs it."""
    min_tokens: int = 0
    """No end token is drawn before this many tokens; stop strings still end the text."""
    ignore_eos: bool = False
    """Continue to `max_tokens` even if an end token is drawn."""
    shown_tokens: frozenset[int] = frozenset()
    """Control tokens whose name is part of the text, such as tool call marks."""
    prompt_logprobs: bool = False
    """Also report log probabilities of the prompt. Needs `logprobs`."""
    produced: list[int] = field(default_factory=list)
    """Completion tokens of an earlier attempt whose results clients already have: the engine
    continues after them as if it had drawn them. Fewer than `max_tokens`."""

    rules: OutputRules | None = None
    """The denylist's output rules; None = the text is not filtered."""
    seen: int | None = None
    """With `produced`: see `Filtered.seen`. None = it was not filtered."""

    @property
    def known_tokens(self) -> list[int]:
        """The tokens to prefill before the next one is drawn."""
        return self.prompt + self.produced if self.produced else self.prompt

    @property
    def num_left(self) -> int:
        """Tokens that may still be drawn."""
        return self.max_tokens - len(self.produced)


class StepResult(msgspec.Struct):
    """Result of one step for one sequence. A struct, because an engine makes one per token."""

    key: tuple[str, int]
    text: str = ""
    """Text that is final: whole characters, no part of a stop string."""
    token_ids: list[int] = []
    finish_reason: FinishReason | None = None
    prefilled_tokens: int = 0
    """Prompt tokens read so far, reported during prefill. 0 = nothing new."""
    cached_tokens: int = 0
    """With `prefilled_tokens`: those of them found in the KV cache."""
    logprobs: list[TokenLogprobs] = []
    """One per entry of `token_ids`, if the sequence asked for them."""
    prompt_logprobs: list[TokenLogprobs] = []
    """Of the prompt tokens read since the last result, if the sequence asked for them."""
    embedding: bytes | None = None
    """From an engine that embeds, with the finish reason: float32, little-endian."""
    filtered: Filtered | None = None
    """With `token_ids`: what the denylist and stop strings did; see `Delta.filtered`."""
    reasoning_tokens: int | None = None
    """With `token_ids`: tokens of the reasoning so far, those of earlier attempts included; None =
    they are not counted."""
    error: LlmisError | None = None
    """Only this sequence failed and has left the batch. Its job ends with this error."""
