"""A slot of the llama.cpp engine: one sequence of the KV cache and what is generated in it."""

from dataclasses import dataclass, field
from functools import partial

from shared.messages import FinishReason, TokenLogprobs
from worker.engines.constraint import Constraint
from worker.engines.llama_logits import Row, token_logprobs
from worker.engines.llama_vocabulary import Vocabulary
from worker.engines.protocol import Sequence, StepResult, assembler_of, logprob_in, piece_in
from worker.text import TextAssembler


@dataclass(slots=True)
class Slot:
    seq_id: int
    cache: list[int] = field(default_factory=list)
    """Token ids whose keys and values are in the cache, by position."""
    sequence: Sequence | None = None
    known: list[int] = field(default_factory=list)
    """The tokens to be read before the first one is drawn."""
    sampler: int | None = None
    """llama_sampler chain; None = greedy, taken by arg max over the logits."""
    constraint: Constraint | None = None
    assembler: TextAssembler = field(default_factory=lambda: TextAssembler([]))
    next_token: int = 0
    """While generating: the token drawn last, not yet in the cache."""
    num_generated: int = 0
    has_drawn: bool = False
    num_cached: int = 0
    """Prompt tokens found in the cache when the sequence came."""
    used_at: int = 0
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    """Of the prompt tokens read since the last result."""

    @property
    def is_prefilling(self) -> bool:
        return self.sequence is not None and len(self.cache) < len(self.known)

    def begin(
        self,
        sequence: Sequence,
        num_cached: int,
        sampler: int | None,
        constraint: Constraint | None,
        vocabulary: Vocabulary,
    ) -> None:
        """Take a sequence of whose prompt `num_cached` tokens are in the cache."""
        del self.cache[num_cached:]
        self.num_cached = num_cached
        self.sequence, self.sampler, self.constraint = sequence, sampler, constraint
        self.known = sequence.known_tokens
        self.assembler, _ = assembler_of(vocabulary, sequence)
        self.num_generated = len(sequence.produced)
        self.has_drawn = False
        self.prompt_logprobs.clear()

    def read_prompt_logprobs(self, rows: list[Row], first_pos: int, vocabulary: Vocabulary) -> None:
        """Note what the logits at `first_pos` and on say of the prompt's next tokens."""
        sequence = self.sequence
        assert sequence is not None, "only a busy slot reads a prompt"
        report = partial(logprob_in, vocabulary, sequence)
        if first_pos == 0:
            self.prompt_logprobs.append(TokenLogprobs(report(sequence.prompt[0], 0.0), []))
        following = sequence.prompt[first_pos + 1 : first_pos + 1 + len(rows)]
        for row, token in zip(rows, following, strict=False):
            self.prompt_logprobs.append(token_logprobs(row, token, sequence.logprobs or 0, report))

    def prepare(self, row: Row, end_tokens: list[int]) -> Row | None:
        """Mask what may not be drawn. Returns the untouched logits if they are wanted later."""
        sequence = self.sequence
        assert sequence is not None, "only a busy slot draws"
        raw = row.copy() if sequence.logprobs is not None else None
        if self.num_generated < sequence.min_tokens:
            row[end_tokens] = -float("inf")
        if self.constraint is not None:
            self.constraint.compute_mask()
            if self.constraint.error is None:
                row[self.constraint.forbidden(row.size)] = -float("inf")
        return raw

    def accept(self, token: int, raw: Row | None, vocabulary: Vocabulary) -> StepResult:
        """Add a drawn token. A finish reason or an error in the result: it was the last one."""
        sequence = self.sequence
        assert sequence is not None, "only a busy slot draws"
        if self.constraint is not None:
            self.constraint.accept(token)
            if self.constraint.error is not None:
                return StepResult(sequence.key, error=self.constraint.error)
        self.next_token = token
        self.num_generated += 1
        result = StepResult(sequence.key, token_ids=[token])
        if not self.has_drawn:
            self.has_drawn = True
            self._report_prompt(result)
        is_end = token in vocabulary.end_tokens and not sequence.ignore_eos
        if raw is not None:
            report = partial(logprob_in, vocabulary, sequence)
            result.logprobs.append(
                token_logprobs(raw, token, sequence.logprobs or 0, report, is_end=is_end)
            )
        assembler = self.assembler
        if is_end:
            result.text = assembler.finish()
            result.finish_reason = assembler.reason
        else:
            result.text = assembler.push(piece_in(vocabulary, sequence, token))
            if assembler.is_stopped:
                result.finish_reason = assembler.reason
            elif self.num_generated >= sequence.max_tokens:
                result.text += assembler.finish()
                is_cut = assembler.is_stopped
                result.finish_reason = assembler.reason if is_cut else FinishReason.LENGTH
        result.filtered = assembler.report()
        return result

    def end_unread(self) -> StepResult:
        """The prompt is read, and nothing is to be generated."""
        assert self.sequence is not None, "only a busy slot ends"
        result = StepResult(self.sequence.key, finish_reason=FinishReason.LENGTH)
        self._report_prompt(result)
        return result

    def progress(self) -> StepResult:
        """How far the prompt is read."""
        assert self.sequence is not None, "only a busy slot reads"
        result = StepResult(self.sequence.key)
        self._report_prompt(result)
        return result

    def _report_prompt(self, result: StepResult) -> None:
        result.prefilled_tokens = len(self.cache)
        result.cached_tokens = self.num_cached
        result.prompt_logprobs = self.prompt_logprobs.copy()
        self.prompt_logprobs.clear()


def common_prefix(left: list[int], right: list[int]) -> int:
    """Number of leading elements that both lists share, by halving: slices compare in C."""
    low, high = 0, min(len(left), len(right))
    while low < high:
        middle = (low + high + 1) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
