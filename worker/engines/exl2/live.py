"""A sequence while ExLlamaV2 generates it: from the generator's results to ours.

Engine loop only, but for the two hooks around the sampler, which run in the generator's
sampling threads while the loop waits for them.
"""

import math
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from shared.errors import EngineError, LlmisError
from shared.messages import FinishReason, TokenLogprobs
from worker.engines.constraint import Constraint
from worker.engines.exl2 import logprobs, sampling
from worker.engines.exl2.pages import PAGE_TOKENS
from worker.engines.exl2.vocabulary import Vocabulary
from worker.engines.protocol import Sequence, StepResult, assembler_of, logprob_in, piece_in


class LiveSequence:
    """Text comes from the token ids, by way of our own assembler, as with every engine. The
    generator knows no text (see `loading`), so it holds none back."""

    def __init__(
        self,
        sequence: Sequence,
        vocabulary: Vocabulary,
        stop_ids: frozenset[int],
        constraint: Constraint | None,
        unread_tokens: int,
    ) -> None:
        self.sequence = sequence
        self._constraint = constraint
        self.unread_tokens = unread_tokens
        """Prompt tokens not computed yet, as far as is known; 0 once tokens come."""
        self.job: Any = None
        """The ExLlamaV2DynamicJob."""
        self._vocabulary = vocabulary
        self._stop_ids = frozenset() if sequence.ignore_eos else stop_ids
        self._assembler, _ = assembler_of(vocabulary, sequence)
        self._num_generated = len(sequence.produced)
        self._has_drawn = False
        self._logprobs: deque[TokenLogprobs] = deque()
        """Of the tokens drawn and not yet taken, in order."""
        self._error: EngineError | None = None

    @property
    def error(self) -> LlmisError | None:
        """Why the sequence, alone, has to end. What was drawn since then means nothing."""
        return self._error or (self._constraint.error if self._constraint else None)

    @property
    def is_reading(self) -> bool:
        """The prompt is not computed yet."""
        return self.unread_tokens > 0

    @property
    def num_tokens(self) -> int:
        """Prompt and completion so far, without what is held back."""
        return len(self.sequence.prompt) + self._num_generated

    def watch(self, job: Any, vocab_size: int) -> None:
        """Put the hooks around the job's sampling.

        `receive_logits(logits)` is called once for each position that is sampled, with logits
        `(1, 1, padded_vocab) float32 cpu` nobody has touched, and returns the drawn token first.
        """
        self.job = job
        sequence, draw = self.sequence, job.receive_logits
        follows = sampling.has_penalty(sequence.sampling)
        num_alternatives = sequence.logprobs
        report = partial(logprob_in, self._vocabulary, sequence)

        def receive_logits(logits: torch.Tensor) -> Any:
            self._check(logits[0, -1, :vocab_size])
            if self._error is not None:
                logits.zero_()  # anything that can be drawn: the token is not taken
            if follows:
                sampling.follow_output(job.gen_settings, len(sequence.produced) + job.new_tokens)
            if num_alternatives is None:
                return draw(logits)
            raw = logprobs.raw_logits(logits, vocab_size)
            drawn = draw(logits)
            token = int(drawn[0].item())
            is_end = token in self._stop_ids
            self._logprobs.append(
                logprobs.token_logprobs(raw, token, num_alternatives, report, is_end=is_end)
            )
            return drawn

        job.receive_logits = receive_logits

    def _check(self, row: torch.Tensor) -> None:
        """With NaN the sampler's best token is memory that nobody has written
        (exllamav2@v0.3.2:exllamav2_ext/cpp/sampling_avx2.cpp, softmax_cpu_avx2)."""
        if not math.isfinite(float(row.max())):  # NaN if there is any
            self._error = EngineError("The model computed no valid probabilities (NaN).")

    # -- results -----------------------------------------------------------------------------

    def read(self, result: dict[str, Any]) -> StepResult:
        """From a result of the stage "prefill"."""
        done: int = result["curr_progress"]
        self.unread_tokens = max(0, result["max_progress"] - done)
        return StepResult(
            self.sequence.key, prefilled_tokens=done, cached_tokens=self._cached_tokens()
        )

    def take(self, result: dict[str, Any]) -> StepResult:
        """From a result of the stage "streaming"."""
        self.unread_tokens = 0
        drawn = _token_ids(result)
        if result["eos"]:
            drawn += _token_ids(result.get("held", {}))
        taken = StepResult(self.sequence.key)
        for token in drawn:
            if taken.finish_reason is None:
                self._accept(token, taken)
        if result["eos"] and taken.finish_reason is None:
            # Not by a token that we count as an end: the generator knows why.
            taken.text += self._assembler.finish()
            taken.finish_reason = self._assembler.reason
        taken.filtered = self._assembler.report()
        return taken

    def _accept(self, token: int, taken: StepResult) -> None:
        self._num_generated += 1
        taken.token_ids.append(token)
        if self._logprobs:
            taken.logprobs.append(self._logprobs.popleft())
        if not self._has_drawn:
            self._has_drawn = True
            taken.prefilled_tokens = len(self.sequence.known_tokens)
            taken.cached_tokens = self._cached_tokens()
        if token in self._stop_ids:
            taken.text += self._assembler.finish()
            taken.finish_reason = self._assembler.reason
            return
        piece = piece_in(self._vocabulary, self.sequence, token)
        taken.text += self._assembler.push(piece)
        if self._assembler.is_stopped:
            taken.finish_reason = self._assembler.reason
        elif self._num_generated >= self.sequence.max_tokens:
            taken.text += self._assembler.finish()
            is_cut = self._assembler.is_stopped
            taken.finish_reason = self._assembler.reason if is_cut else FinishReason.LENGTH

    def _cached_tokens(self) -> int:
        """As the generator reports it at the end of a job; ours may end before."""
        return int(self.job.cached_pages) * PAGE_TOKENS + int(self.job.cached_tokens)


def _token_ids(result: dict[str, Any]) -> list[int]:
    """`token_ids` is `(1, n) int64 cpu`, or absent."""
    ids = result.get("token_ids")
    return [] if ids is None else ids[0].tolist()


def new_job(
    job_class: Callable[..., Any],
    live: LiveSequence,
    settings: Any,
    stop_ids: list[int],
    filters: list[Any],
    num_draft_tokens: int,
) -> Any:
    """Make the ExLlamaV2DynamicJob of a sequence.

    With speculation the generator ends `num_draft_tokens` before `max_new_tokens`.
    """
    sequence = live.sequence
    return job_class(
        input_ids=torch.tensor([sequence.known_tokens], dtype=torch.long),
        max_new_tokens=sequence.num_left + num_draft_tokens,
        min_new_tokens=max(0, sequence.min_tokens - len(sequence.produced)),
        gen_settings=settings,
        seed=sequence.sampling.seed,
        stop_conditions=[] if sequence.ignore_eos else list(stop_ids),
        filters=filters,
        identifier=sequence.key,
    )
