"""The llama.cpp engine: continuous batching over the slots of one llama_context.

Each slot is one sequence of the KV cache, with a context of its own. A step is one decode call
whose batch holds one token for every sequence that generates and, within a budget, prompt
tokens of those that are still read. A slot that is free keeps its cache: the next sequence
goes to the slot whose cache shares the longest prefix with its prompt.
"""

import ctypes as c
import logging
import time
from dataclasses import dataclass, field
from itertools import count

import numpy as np

from shared.errors import EngineError, InvalidRequest, SettingsError
from shared.messages import FinishReason
from worker.engines import llama_abi, llama_loading
from worker.engines.llama_batch import BatchBuffer, Part
from worker.engines.llama_sampler import new_chain
from worker.engines.llama_vocabulary import Vocabulary
from worker.engines.prefill import PrefillBudget
from worker.engines.protocol import EngineSettings, Sequence, StepResult
from worker.text import TextAssembler

_log = logging.getLogger(__name__)
_BATCH_TOKENS = 512
_WORTHWHILE_PREFIX_TOKENS = 16
"""A shared prefix that is shorter is no reason to tear the batch apart."""


@dataclass(slots=True)
class _Slot:
    """A sequence of the KV cache and, while it is busy, what is generated in it."""

    seq_id: int
    cache: list[int] = field(default_factory=list)
    """Token ids whose keys and values are in the cache, by position."""
    sequence: Sequence | None = None
    sampler: int | None = None
    """llama_sampler chain; None = greedy, taken by arg max over the logits."""
    assembler: TextAssembler = field(default_factory=lambda: TextAssembler([]))
    next_token: int = 0
    """While generating: the token drawn last, not yet in the cache."""
    num_generated: int = 0
    num_cached: int = 0
    """Prompt tokens found in the cache when the sequence came."""
    used_at: int = 0

    @property
    def is_prefilling(self) -> bool:
        return self.sequence is not None and len(self.cache) < len(self.sequence.prompt)


class LlamaCppEngine:
    """See `worker.engines.protocol.Engine` for the contract."""

    name = "llamacpp"
    device = "cpu"
    embeds = False

    def __init__(self, settings: EngineSettings) -> None:
        llama_loading.check(settings)
        self._lib = llama_abi.load()
        self._model = self._load_model(settings)
        self.vocabulary = Vocabulary(self._lib, self._model)
        self.vocab_size = self.vocabulary.size
        self._context = self._new_context(settings)
        self._memory = self._lib.get_memory(self._context)
        self.context_length = min(settings.context_length, self._lib.n_ctx_seq(self._context))
        self._batch = BatchBuffer(_BATCH_TOKENS + settings.slots)
        self._slots = [_Slot(seq_id) for seq_id in range(settings.slots)]
        self._by_key: dict[tuple[str, int], _Slot] = {}
        self._prefill_budget = PrefillBudget(_BATCH_TOKENS)
        self._clock = count(1)

    # -- loading -----------------------------------------------------------------------------

    def _load_model(self, settings: EngineSettings) -> int:
        model = llama_loading.load_model(self._lib, settings)
        if self._lib.model_has_encoder(model) or not self._lib.model_has_decoder(model):
            raise SettingsError(f"models: {settings.path.name} is no model that generates text")
        trained = self._lib.model_n_ctx_train(model)
        if settings.context_length > trained:
            _log.warning(
                "context_length = %d, but the model was trained on %d",
                settings.context_length,
                trained,
            )
        return model

    def _new_context(self, settings: EngineSettings) -> int:
        params = self._lib.context_default_params()
        params.n_ctx = settings.context_length * settings.slots
        params.n_batch = _BATCH_TOKENS + settings.slots
        params.n_ubatch = _BATCH_TOKENS
        params.n_seq_max = settings.slots
        params.n_outputs_max = settings.slots
        params.n_threads = params.n_threads_batch = settings.threads
        params.type_k = params.type_v = llama_loading.KV_TYPES[settings.quant]
        if settings.quant != "f16":
            params.flash_attn_type = llama_abi.FLASH_ATTN_ENABLED  # a quantised V needs it
        what = f"{settings.slots} slots of {settings.context_length} tokens"
        return llama_loading.new_context(self._lib, self._model, params, what)

    def close(self) -> None:
        for slot in self._slots:
            self._vacate(slot)
        self._lib.free(self._context)
        self._lib.model_free(self._model)

    @property
    def chat_template(self) -> str | None:
        template: bytes | None = self._lib.model_chat_template(self._model, None)
        return template.decode("utf-8", "replace") if template else None

    # -- the protocol ------------------------------------------------------------------------

    @property
    def free_slots(self) -> int:
        return len(self._slots) - len(self._by_key)

    @property
    def has_work(self) -> bool:
        return bool(self._by_key)

    def check(self, sequence: Sequence) -> None:
        for param, is_asked in (
            ("logprobs", sequence.logprobs is not None),
            ("response_format", sequence.grammar is not None),
            ("min_tokens", sequence.min_tokens > 0),
            ("ignore_eos", sequence.ignore_eos),
        ):
            if is_asked:
                raise InvalidRequest(f"This model's engine does not do {param}.", param=param)

    def can_admit(self, sequence: Sequence) -> bool:
        return self.free_slots > 0

    def submit(self, sequence: Sequence) -> None:
        assert sequence.prompt, "a sequence begins with at least one token"
        slot = self._choose_slot(sequence.prompt)
        # The last prompt token is always computed: its logits give the first new token.
        keep = min(_common_prefix(slot.cache, sequence.prompt), len(sequence.prompt) - 1)
        if not self._lib.memory_seq_rm(self._memory, slot.seq_id, keep, -1):
            # Recurrent states cannot be cut back.
            self._lib.memory_seq_rm(self._memory, slot.seq_id, -1, -1)
            keep = 0
        del slot.cache[keep:]
        slot.num_cached = keep
        slot.sequence = sequence
        slot.sampler = new_chain(self._lib, sequence.sampling, self.vocab_size, self.context_length)
        slot.assembler = TextAssembler(
            sequence.stop, strip_leading_space=sequence.strip_leading_space
        )
        slot.num_generated = 0
        self._by_key[sequence.key] = slot

    def cancel(self, key: tuple[str, int]) -> None:
        slot = self._by_key.get(key)
        if slot is not None:
            self._vacate(slot)

    def step(self) -> list[StepResult]:
        """Raises EngineError when the decode call fails; all sequences are lost then."""
        outputs, num_prefill = self._fill_batch()
        started = time.monotonic()
        status = self._lib.decode(self._context, self._batch.struct)
        if status != 0:
            self._reset()
            raise EngineError(f"llama_decode returned {status}")
        self._prefill_budget.record(num_prefill, time.monotonic() - started)
        results = [
            self._accept(slot, token)
            for (slot, _), token in zip(outputs, self._draw(outputs), strict=True)
        ]
        results.extend(self._prefill_results())
        return results

    # -- one step ----------------------------------------------------------------------------

    def _fill_batch(self) -> tuple[list[tuple[_Slot, int]], int]:
        """Write the batch; return the slots that get a token with their rows, and the number
        of prompt tokens in it.

        Prompts are read in the order in which they came. In the batch the parts stand in the
        order of the cache's sequences: llama.cpp computes neighbours together and splits the
        batch wherever the order breaks.
        """
        chunks: dict[int, tuple[_Slot, list[int]]] = {}
        budget, num_prefill = self._prefill_budget.tokens, 0
        for slot in self._by_key.values():
            if slot.is_prefilling:
                assert slot.sequence is not None, "a slot that reads a prompt is busy"
                done = len(slot.cache)
                chunk = slot.sequence.prompt[done : done + budget - num_prefill]
                num_prefill += len(chunk)
            else:
                chunk = [slot.next_token]
            if chunk:
                chunks[slot.seq_id] = (slot, chunk)
        parts, drawing = [], []
        for seq_id in sorted(chunks):
            slot, chunk = chunks[seq_id]
            first_pos = len(slot.cache)
            slot.cache += chunk
            has_output = not slot.is_prefilling
            parts.append(Part(seq_id, first_pos, chunk, has_output))
            if has_output:
                drawing.append(slot)
        return list(zip(drawing, self._batch.fill(parts), strict=True)), num_prefill

    def _draw(self, outputs: list[tuple[_Slot, int]]) -> list[int]:
        """Draw one token for each output row."""
        if not outputs:
            return []
        tokens = [0] * len(outputs)
        if any(slot.sampler is None for slot, _ in outputs):
            address = self._lib.get_logits(self._context)
            buffer = (c.c_float * (len(outputs) * self.vocab_size)).from_address(address)
            logits = np.ctypeslib.as_array(buffer).reshape(len(outputs), self.vocab_size)
            tokens = logits.argmax(axis=1).tolist()
        for i, (slot, row) in enumerate(outputs):
            if slot.sampler is not None:
                tokens[i] = self._lib.sampler_sample(slot.sampler, self._context, row)
        return tokens

    def _accept(self, slot: _Slot, token: int) -> StepResult:
        """Add a drawn token to its sequence and free the slot if that was the last one."""
        sequence = slot.sequence
        assert sequence is not None, "outputs name busy slots only"
        slot.next_token = token
        slot.num_generated += 1
        result = StepResult(sequence.key, token_ids=[token])
        if slot.num_generated == 1:
            result.prefilled_tokens = len(slot.cache)
            result.cached_tokens = slot.num_cached
        if self.vocabulary.is_end(token):
            result.text = slot.assembler.finish()
            result.finish_reason = FinishReason.STOP
        else:
            result.text = slot.assembler.push(self.vocabulary.piece(token))
            if slot.assembler.is_stopped:
                result.finish_reason = FinishReason.STOP
            elif slot.num_generated >= sequence.max_tokens:
                result.text += slot.assembler.finish()
                result.finish_reason = FinishReason.LENGTH
        if result.finish_reason is not None:
            self._vacate(slot)
        return result

    def _prefill_results(self) -> list[StepResult]:
        return [
            StepResult(key, prefilled_tokens=len(slot.cache), cached_tokens=slot.num_cached)
            for key, slot in self._by_key.items()
            if slot.is_prefilling
        ]

    # -- slots -------------------------------------------------------------------------------

    def _choose_slot(self, prompt: list[int]) -> _Slot:
        """Choose a free slot: the one that saves most prefill; else one beside a busy slot, so
        that the batch stays in one piece; then any shared prefix, then the one unused longest."""
        free = [slot for slot in self._slots if slot.sequence is None]
        assert free, "submit needs a free slot"

        def rank(slot: _Slot) -> tuple[int, int, int, int]:
            shared = _common_prefix(slot.cache, prompt)
            return (
                shared if shared >= _WORTHWHILE_PREFIX_TOKENS else 0,
                self._is_busy(slot.seq_id - 1) + self._is_busy(slot.seq_id + 1),
                shared,
                -slot.used_at,
            )

        return max(free, key=rank)

    def _is_busy(self, seq_id: int) -> bool:
        return 0 <= seq_id < len(self._slots) and self._slots[seq_id].sequence is not None

    def _vacate(self, slot: _Slot) -> None:
        if slot.sequence is not None:
            del self._by_key[slot.sequence.key]
        if slot.sampler is not None:
            self._lib.sampler_free(slot.sampler)
        slot.sequence = slot.sampler = None
        slot.used_at = next(self._clock)

    def _reset(self) -> None:
        """After a failed decode the cache is unknown: forget all of it."""
        self._lib.memory_clear(self._memory, True)
        for slot in self._slots:
            self._vacate(slot)
            slot.cache.clear()


def _common_prefix(left: list[int], right: list[int]) -> int:
    """Number of leading elements that both lists share, by halving: slices compare in C."""
    low, high = 0, min(len(left), len(right))
    while low < high:
        middle = (low + high + 1) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
