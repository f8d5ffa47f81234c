"""A running sequence of ExLlamaV2: turns the generator's results into `StepResult`s.

Engine loop only, except the hook around the sampler, which runs in the generator's sampling
threads while the loop waits for them.
"""

import math
from collections import deque
from collections.abc import Callable
from typing import Any

import torch

from shared.errors import EngineError, LlmisError
from shared.wire.events import TokenLogprobs
from worker.engines.exllamav2 import sampling
from worker.engines.exllamav2.model.vocabulary import TokenizerJsonVocabulary
from worker.engines.exllamav2.pages import PAGE_TOKENS
from worker.grammar.constraint import Constraint
from worker.sequence import INVALID_LOGITS, Sequence, StepResult
from worker.text.completion import SequenceCompletion
from worker.text.logprobs import Row, token_logprobs


class RunningSequence:
    """`SequenceCompletion` makes text from the token ids, as in every engine. The generator has no
    text (see `load.never_decode`), so it holds none back."""

    def __init__(
        self,
        sequence: Sequence,
        vocabulary: TokenizerJsonVocabulary,
        stop_ids: frozenset[int],
        constraint: Constraint | None,
        unread_tokens: int,
    ) -> None:
        self.sequence = sequence
        self._constraint = constraint
        self.unread_tokens = unread_tokens
        """Estimate of the prompt tokens not computed yet; 0 once a token is drawn."""
        self.job: Any = None
        """The ExLlamaV2DynamicJob."""
        self.completion = SequenceCompletion(vocabulary, sequence, stop_ids)
        self._logprobs: deque[TokenLogprobs] = deque()
        """Of the tokens drawn but not yet in a result, in order."""
        self._error: EngineError | None = None

    @property
    def error(self) -> LlmisError | None:
        """Why this sequence alone has to end. Tokens drawn after that are meaningless."""
        return self._error or (self._constraint.error if self._constraint else None)

    @property
    def is_reading(self) -> bool:
        """The prompt is in prefill."""
        return self.unread_tokens > 0

    @property
    def num_tokens(self) -> int:
        """Prompt and completion so far."""
        return len(self.sequence.prompt) + self.completion.num_tokens

    def watch(self, job: Any, vocab_size: int) -> None:
        """Wrap the job's sampling.

        The generator calls `receive_logits(logits)` once per sampled position, with untouched
        logits `(1, 1, padded_vocab) float32 cpu`; the first value returned is the drawn token.
        """
        self.job = job
        sequence, completion, draw = self.sequence, self.completion, job.receive_logits
        follows = sampling.has_penalty(sequence.sampling)
        num_alternatives = sequence.logprobs

        def receive_logits(logits: torch.Tensor) -> Any:
            if not are_valid(logits, vocab_size):
                self._error = EngineError(INVALID_LOGITS)
                logits.zero_()  # something to draw from: the token is dropped
            if follows:
                sampling.follow_output(job.gen_settings, len(sequence.produced) + job.new_tokens)
            if num_alternatives is None:
                return draw(logits)
            raw = raw_logits(logits, vocab_size)
            drawn = draw(logits)
            token = int(drawn[0].item())
            is_end = completion.is_end(token)
            self._logprobs.append(
                token_logprobs(raw, token, num_alternatives, completion.logprob, is_end=is_end)
            )
            return drawn

        job.receive_logits = receive_logits

    # -- results -----------------------------------------------------------------------------

    def read_progress(self, result: dict[str, Any]) -> StepResult:
        """From a result of the stage "prefill"."""
        done: int = result["curr_progress"]
        self.unread_tokens = max(0, result["max_progress"] - done)
        step = StepResult(self.sequence.key)
        self.completion.cached_tokens = self._cached_tokens()
        self.completion.report_prompt(step, done)
        return step

    def read_tokens(self, result: dict[str, Any]) -> StepResult:
        """From a result of the stage "streaming"."""
        self.unread_tokens = 0
        is_last = result["eos"]
        # The last result also has the tokens that the generator held back.
        drawn = _token_ids(result) + (_token_ids(result.get("held", {})) if is_last else [])
        step = StepResult(self.sequence.key)
        if self.completion.num_tokens == len(self.sequence.produced):  # reported with the first
            self.completion.cached_tokens = self._cached_tokens()
        self.completion.accept(drawn, step, is_last=is_last)
        # With speculation the step may have drawn more tokens after the one that ends the text.
        num_reported = min(len(step.token_ids), len(self._logprobs))
        step.logprobs = [self._logprobs.popleft() for _ in range(num_reported)]
        return step

    def _cached_tokens(self) -> int:
        """The generator reports it only at the end of a job, and a job may be cancelled before."""
        return int(self.job.cached_pages) * PAGE_TOKENS + int(self.job.cached_tokens)


def are_valid(logits: torch.Tensor, vocab_size: int) -> bool:
    """Whether a token can be drawn: with NaN the sampler's best one is uninitialised memory
    (exllamav2@v0.3.2:exllamav2_ext/cpp/sampling_avx2.cpp, softmax_cpu_avx2)."""
    # The maximum is NaN if any value is.
    return math.isfinite(float(logits[0, -1, :vocab_size].max()))


def raw_logits(logits: torch.Tensor, vocab_size: int) -> Row:
    """Copy the row of one position, without the padding, whose logits mean nothing. `logits`:
    `(1, 1, padded_vocab) float32 cpu`.

    The generator's own results do not serve: `token_probs` and `top_k_probs` are of what is left
    after truncation, and the sampler changes `logits` in place.
    """
    row: Row = logits[0, -1, :vocab_size].numpy().copy()
    return row


def _token_ids(result: dict[str, Any]) -> list[int]:
    """`token_ids` is `(1, n) int64 cpu`, or absent."""
    ids = result.get("token_ids")
    return [] if ids is None else ids[0].tolist()


def new_job(
    job_class: Callable[..., Any],
    running: RunningSequence,
    settings: Any,
    stop_ids: list[int],
    filters: list[Any],
    num_draft_tokens: int,
) -> Any:
    """Make the ExLlamaV2DynamicJob of a sequence. With speculation the generator stops
    `num_draft_tokens` before `max_new_tokens`, so these are added."""
    sequence = running.sequence
    return job_class(
        input_ids=torch.tensor([sequence.known_tokens], dtype=torch.long),
        max_new_tokens=sequence.num_left + num_draft_tokens,
        min_new_tokens=running.completion.num_required,
        gen_settings=settings,
        seed=sequence.sampling.seed,
        stop_conditions=[] if sequence.ignore_eos else list(stop_ids),
        filters=filters,
        identifier=sequence.key,
    )
