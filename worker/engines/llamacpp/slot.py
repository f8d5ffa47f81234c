"""A slot of the llama.cpp engine: a sequence of the KV cache and the completion in it."""

from dataclasses import dataclass, field

from shared.errors import EngineError
from shared.wire.events import FinishReason, TokenLogprobs
from worker.engines.llamacpp.vocabulary import GgufVocabulary
from worker.grammar.constraint import Constraint
from worker.sequence import INVALID_LOGITS, Sequence, StepResult
from worker.text.completion import SequenceCompletion
from worker.text.logprobs import Row, token_logprobs

_WORTHWHILE_PREFIX_TOKENS = 16
"""A shorter shared prefix does not outweigh a batch of neighbouring slots."""


@dataclass(slots=True)
class Slot:
    seq_id: int
    cache: list[int] = field(default_factory=list)
    """Token ids in the KV cache, by position. Kept when the sequence ends."""
    sequence: Sequence | None = None
    completion: SequenceCompletion | None = None
    known: list[int] = field(default_factory=list)
    """Tokens to read before the next one is drawn: `sequence.known_tokens`, or after the cache was
    cleared all tokens so far."""
    sampler: int | None = None
    """llama_sampler chain; None = greedy, by arg max over the logits."""
    constraint: Constraint | None = None
    is_plain: bool = False
    """Its tokens are the arg max over the logits as they are, which nothing else reads."""
    next_token: int = 0
    """While generating: the last drawn token, not yet in the cache."""
    used_at: int = 0
    num_known_read: int = 0
    """Tokens of `known` that were read once before the cache was cleared: read again, they are
    neither reported nor scored."""
    is_suspect: bool = False
    """The model gave no valid logits for the sequence; it reads its tokens again, once."""
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    """Of the prompt tokens read since the last result."""

    @property
    def is_prefilling(self) -> bool:
        return self.sequence is not None and len(self.cache) < len(self.known)

    @property
    def is_rereading(self) -> bool:
        return len(self.cache) < self.num_known_read

    @property
    def is_scoring(self) -> bool:
        """Log probabilities of the prompt tokens of this step are wanted."""
        wanted = self.sequence is not None and self.sequence.prompt_logprobs
        return wanted and self.is_prefilling and not self.is_rereading

    def begin(
        self,
        sequence: Sequence,
        num_cached: int,
        sampler: int | None,
        constraint: Constraint | None,
        vocabulary: GgufVocabulary,
    ) -> None:
        """Start a sequence, of whose prompt `num_cached` tokens are in the cache."""
        del self.cache[num_cached:]
        self.sequence, self.sampler, self.constraint = sequence, sampler, constraint
        is_masked = constraint is not None or sequence.min_tokens > 0
        is_scored = sequence.logprobs is not None or sequence.prompt_logprobs
        self.is_plain = sampler is None and not is_masked and not is_scored
        self.known = sequence.known_tokens
        self.num_known_read, self.is_suspect = 0, False
        self.completion = SequenceCompletion(vocabulary, sequence, vocabulary.end_tokens)
        self.completion.cached_tokens = num_cached
        self.prompt_logprobs.clear()

    def forget_cache(self) -> None:
        """The KV cache was cleared: a running sequence reads its tokens again and goes on."""
        if self.sequence is not None:
            if not self.is_prefilling:
                self.known = [*self.cache, self.next_token]
            self.num_known_read = max(self.num_known_read, len(self.cache))
        self.cache.clear()

    def refuse_logits(self, first_pos: int) -> StepResult | None:
        """Logits from `first_pos` on are not valid. The first time another sequence may have left
        NaN in the cells: the cache is to be cleared, and they are computed again."""
        sequence, _ = self._running()
        if self.is_suspect:
            return StepResult(sequence.key, error=EngineError(INVALID_LOGITS))
        self.is_suspect = True
        if not self.is_prefilling:  # else the rest of `known` has yet to be read
            self.known = list(self.cache)
        self.num_known_read = max(self.num_known_read, first_pos)
        self.cache.clear()
        return None

    def read_prompt_logprobs(self, rows: list[Row], first_pos: int) -> None:
        """Compute log probabilities of prompt tokens from the logits from `first_pos` on."""
        sequence, completion = self._running()
        if first_pos == 0:
            # Nothing precedes the first token, so no logits speak of it.
            first = completion.logprob(sequence.prompt[0], 0.0)
            self.prompt_logprobs.append(TokenLogprobs(first, []))
        # The logits at a position are those of the token after it.
        following = sequence.prompt[first_pos + 1 : first_pos + 1 + len(rows)]
        num_alternatives = sequence.logprobs or 0
        self.prompt_logprobs += [
            token_logprobs(row, token, num_alternatives, completion.logprob)
            for row, token in zip(rows, following, strict=False)
        ]

    def prepare(self, row: Row, end_tokens: list[int]) -> Row | None:
        """Mask forbidden tokens. Returns a copy of the untouched logits if `accept` needs them."""
        sequence, completion = self._running()
        raw = row.copy() if sequence.logprobs is not None else None
        if completion.num_required:
            row[end_tokens] = -float("inf")
        if self.constraint is not None:
            self.constraint.compute_mask()
            if self.constraint.error is None:
                row[self.constraint.forbidden(row.size)] = -float("inf")
        return raw

    def accept(self, token: int, raw: Row | None) -> StepResult:
        """Add a drawn token. With a finish reason or an error in the result it is the last one."""
        sequence, completion = self._running()
        if self.constraint is not None:
            self.constraint.accept(token)
            if self.constraint.error is not None:
                return StepResult(sequence.key, error=self.constraint.error)
        self.next_token = token
        result = StepResult(sequence.key, prompt_logprobs=self._take_prompt_logprobs())
        if raw is not None:
            is_end, num_alternatives = completion.is_end(token), sequence.logprobs or 0
            result.logprobs.append(
                token_logprobs(raw, token, num_alternatives, completion.logprob, is_end=is_end)
            )
        completion.accept([token], result)
        return result

    def accept_plain(self, token: int) -> StepResult:
        """`accept` of a plain slot."""
        assert self.completion is not None, "the slot is busy"
        self.next_token = token
        return self.completion.next(token)

    def end_unread(self) -> StepResult:
        """End a sequence without completion, once its prompt is read."""
        result = self.progress()
        result.finish_reason = FinishReason.LENGTH
        return result

    def progress(self) -> StepResult:
        """Report how much of the prompt is read."""
        sequence, completion = self._running()
        result = StepResult(sequence.key, prompt_logprobs=self._take_prompt_logprobs())
        completion.report_prompt(result, len(self.cache))
        return result

    def _running(self) -> tuple[Sequence, SequenceCompletion]:
        assert self.sequence is not None and self.completion is not None, "the slot is busy"
        return self.sequence, self.completion

    def _take_prompt_logprobs(self) -> list[TokenLogprobs]:
        taken, self.prompt_logprobs = self.prompt_logprobs, []
        return taken


@dataclass(slots=True)
class Output:
    """The output of a part of the batch: the logits of its last `num_rows` tokens."""

    slot: Slot
    num_tokens: int
    """Of the part: the last ones in the slot's cache."""
    num_rows: int
    is_scored: bool
    """The rows are of a prompt whose log probabilities are reported."""
    draws: bool
    """The next token is drawn from the last row."""
    batch_row: int = 0
    """Index of the part's last token in the batch."""

    @property
    def first_pos(self) -> int:
        """Position of the part's first token in its sequence."""
        return len(self.slot.cache) - self.num_tokens

    @property
    def is_next(self) -> bool:
        """The part is one token, after which the next one is drawn."""
        return self.draws and self.num_tokens == 1 and not self.is_scored


def choose_slot(slots: list[Slot], prompt: list[int]) -> Slot:
    """Choose a free slot: the one that saves most prefill; else one next to a busy slot, so that
    the batch is not split; then any shared prefix, then the least recently used."""
    free = [slot for slot in slots if slot.sequence is None]
    assert free, "submit needs a free slot"

    def is_busy(seq_id: int) -> bool:
        return 0 <= seq_id < len(slots) and slots[seq_id].sequence is not None

    def rank(slot: Slot) -> tuple[int, int, int, int]:
        shared = common_prefix(slot.cache, prompt)
        return (
            shared if shared >= _WORTHWHILE_PREFIX_TOKENS else 0,
            is_busy(slot.seq_id - 1) + is_busy(slot.seq_id + 1),
            shared,
            -slot.used_at,
        )

    return max(free, key=rank)


def common_prefix(left: list[int], right: list[int]) -> int:
    """Length of the common prefix, by bisection, because comparing slices is fast."""
    low, high = 0, min(len(left), len(right))
    while low < high:
        middle = (low + high + 1) // 2  # rounded up, else it would stay at low for ever
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
