"""The llama.cpp engine: continuous batching over the slots of one llama_context.

Each slot is one sequence of the KV cache, with a context of its own. A step is one decode call
whose batch holds one token for every sequence that generates and, within a budget, prompt
tokens of those that are still read. A slot that is free keeps its cache: the next sequence
goes to the slot whose cache shares the longest prefix with its prompt.
"""

import ctypes as c
import logging
import time
from dataclasses import dataclass
from itertools import count

import numpy as np
from numpy.typing import NDArray

from shared.errors import EngineError, SettingsError
from worker.engines import llama_abi, llama_loading
from worker.engines.constraint import Constraint
from worker.engines.grammar import GrammarCompiler
from worker.engines.llama_batch import BatchBuffer, Part
from worker.engines.llama_logits import Row
from worker.engines.llama_sampler import new_chain
from worker.engines.llama_slot import Slot, common_prefix
from worker.engines.llama_vocabulary import Vocabulary
from worker.engines.prefill import PrefillBudget, ScoringBudget
from worker.engines.protocol import EngineSettings, Sequence, StepResult

_log = logging.getLogger(__name__)
_BATCH_TOKENS = 512
_SCORED_TOKENS = 16
"""Prompt tokens a step at most whose log probabilities are wanted: each takes a row of logits."""
_WORTHWHILE_PREFIX_TOKENS = 16
"""A shared prefix that is shorter is no reason to tear the batch apart."""


@dataclass(slots=True)
class _Output:
    """What a part of the batch gives: the logits of its last `num_rows` tokens."""

    slot: Slot
    first_pos: int
    num_rows: int
    is_scored: bool
    """They are of a prompt, whose log probabilities are wanted."""
    draws: bool
    """The next token is drawn from the last row."""
    batch_row: int = 0
    """The part's last token in the batch."""


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
        self._end_tokens = sorted(self.vocabulary.end_tokens)
        self._grammars = GrammarCompiler(self.vocabulary.new_grammar_tokenizer, self._end_tokens)
        self._context = self._new_context(settings)
        self._memory = self._lib.get_memory(self._context)
        self.context_length = min(settings.context_length, self._lib.n_ctx_seq(self._context))
        self._batch = BatchBuffer(_BATCH_TOKENS + settings.slots)
        self._slots = [Slot(seq_id) for seq_id in range(settings.slots)]
        self._by_key: dict[tuple[str, int], Slot] = {}
        self._prefill_budget = PrefillBudget(_BATCH_TOKENS)
        self._scoring_budget = ScoringBudget(_SCORED_TOKENS)
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
        params.n_outputs_max = settings.slots + _SCORED_TOKENS
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
    def kv_usage(self) -> float:
        held = sum(len(slot.cache) for slot in self._slots if slot.sequence is not None)
        return float(held / (self.context_length * len(self._slots)))

    @property
    def device_bytes(self) -> dict[str, int]:
        return {}

    @property
    def has_work(self) -> bool:
        return bool(self._by_key)

    def check(self, sequence: Sequence) -> None:
        if sequence.grammar is not None:
            sequence.compiled = self._grammars.compiled(sequence.grammar)

    def can_admit(self, sequence: Sequence) -> bool:
        return self.free_slots > 0

    def submit(self, sequence: Sequence) -> None:
        assert sequence.prompt, "a sequence begins with at least one token"
        constraint = None
        if sequence.grammar is not None:
            assert sequence.compiled is not None, "`check` has compiled it"
            constraint = Constraint(sequence.compiled, sequence.produced)
            constraint.begin()
        known = sequence.known_tokens
        slot = self._choose_slot(known)
        # The last prompt token is always computed: its logits give the first new token.
        keep = min(common_prefix(slot.cache, known), len(known) - 1)
        if sequence.prompt_logprobs:
            keep = 0
        if not self._lib.memory_seq_rm(self._memory, slot.seq_id, keep, -1):
            # Recurrent states cannot be cut back.
            self._lib.memory_seq_rm(self._memory, slot.seq_id, -1, -1)
            keep = 0
        sampler = new_chain(self._lib, sequence.sampling, self.vocab_size, self.context_length)
        if sampler is not None:
            for token in sequence.produced:
                self._lib.sampler_accept(sampler, token)
        slot.begin(sequence, keep, sampler, constraint, self.vocabulary)
        self._by_key[sequence.key] = slot

    def cancel(self, key: tuple[str, int]) -> None:
        slot = self._by_key.get(key)
        if slot is not None:
            self._vacate(slot)

    def step(self) -> list[StepResult]:
        """Raises EngineError when the decode call fails; all sequences are lost then."""
        is_streaming = any(not slot.is_prefilling for slot in self._by_key.values())
        outputs, num_read = self._fill_batch(is_streaming)
        started = time.monotonic()
        status = self._lib.decode(self._context, self._batch.struct)
        if status != 0:
            self._reset()
            raise EngineError(f"llama_decode returned {status}")
        decode_s = time.monotonic() - started
        results = self._draw(outputs)
        num_scored = sum(output.num_rows for output in outputs if output.is_scored)
        if not num_scored:
            self._prefill_budget.record(num_read, decode_s)
        if is_streaming and num_read == num_scored:
            self._scoring_budget.record(num_scored, time.monotonic() - started)
        results.extend(slot.progress() for slot in self._by_key.values() if slot.is_prefilling)
        return results

    # -- one step ----------------------------------------------------------------------------

    def _fill_batch(self, is_streaming: bool) -> tuple[list[_Output], int]:
        """Write the batch; return who gets logits, and the number of prompt tokens in it.

        In the batch the parts stand in the order of the cache's sequences: llama.cpp computes
        neighbours together and splits the batch wherever the order breaks.
        """
        chunks, num_read = self._chunks(is_streaming)
        parts, outputs = [], []
        for seq_id in sorted(chunks):
            slot, chunk = chunks[seq_id]
            first_pos, sequence = len(slot.cache), slot.sequence
            assert sequence is not None, "only busy slots have a part"
            is_scored = sequence.prompt_logprobs and slot.is_prefilling
            slot.cache += chunk
            draws = not slot.is_prefilling and sequence.max_tokens > 0
            num_rows = len(chunk) if is_scored else int(draws)
            parts.append(Part(seq_id, first_pos, chunk, num_rows))
            outputs.append(_Output(slot, first_pos, num_rows, is_scored, draws))
        for output, row in zip(outputs, self._batch.fill(parts), strict=True):
            output.batch_row = row
        return outputs, num_read

    def _chunks(self, is_streaming: bool) -> tuple[dict[int, tuple[Slot, list[int]]], int]:
        """By sequence id the tokens that this step computes, and how many are of prompts.

        Prompts are read in the order in which they came.
        """
        chunks: dict[int, tuple[Slot, list[int]]] = {}
        room, scoring_room = self._prefill_budget.tokens, self._scoring_budget.tokens(is_streaming)
        num_read = 0
        for slot in self._by_key.values():
            assert slot.sequence is not None, "slots by key are busy"
            if not slot.is_prefilling:
                chunks[slot.seq_id] = (slot, [slot.next_token])
                continue
            is_scored, done = slot.sequence.prompt_logprobs, len(slot.cache)
            chunk = slot.known[done : done + (min(room, scoring_room) if is_scored else room)]
            num_read += len(chunk)
            room -= len(chunk)
            if is_scored:
                scoring_room -= len(chunk)
            if chunk:
                chunks[slot.seq_id] = (slot, chunk)
        return chunks, num_read

    def _draw(self, outputs: list[_Output]) -> list[StepResult]:
        """Read the prompts' log probabilities, and draw one token for each part that ends."""
        rows = self._logits(sum(output.num_rows for output in outputs))
        drawing: list[tuple[_Output, int, Row | None]] = []
        results, end = [], 0
        for output in outputs:
            begin, end, slot = end, end + output.num_rows, output.slot
            if output.is_scored:
                slot.read_prompt_logprobs(list(rows[begin:end]), output.first_pos, self.vocabulary)
            if output.draws:
                raw = slot.prepare(rows[end - 1], self._end_tokens)
                drawing.append((output, end - 1, raw))
            elif not slot.is_prefilling:
                results.append(slot.end_unread())
        for output, row, raw in drawing:
            slot = output.slot
            if slot.sampler is None:
                token = int(rows[row].argmax())
            else:
                token = self._lib.sampler_sample(slot.sampler, self._context, output.batch_row)
            results.append(slot.accept(token, raw, self.vocabulary))
        for result in results:
            if result.finish_reason is not None or result.error is not None:
                self._vacate(self._by_key[result.key])
        return results

    def _logits(self, num_rows: int) -> NDArray[np.float32]:
        """`(num_rows, vocab_size)`, in llama.cpp's own memory: what is written there counts."""
        if not num_rows:
            return np.empty((0, self.vocab_size), np.float32)
        address = self._lib.get_logits(self._context)
        buffer = (c.c_float * (num_rows * self.vocab_size)).from_address(address)
        return np.ctypeslib.as_array(buffer).reshape(num_rows, self.vocab_size)

    # -- slots -------------------------------------------------------------------------------

    def _choose_slot(self, prompt: list[int]) -> Slot:
        """Choose a free slot: the one that saves most prefill; else one beside a busy slot, so
        that the batch stays in one piece; then any shared prefix, then the one unused longest."""
        free = [slot for slot in self._slots if slot.sequence is None]
        assert free, "submit needs a free slot"

        def rank(slot: Slot) -> tuple[int, int, int, int]:
            shared = common_prefix(slot.cache, prompt)
            return (
                shared if shared >= _WORTHWHILE_PREFIX_TOKENS else 0,
                self._is_busy(slot.seq_id - 1) + self._is_busy(slot.seq_id + 1),
                shared,
                -slot.used_at,
            )

        return max(free, key=rank)

    def _is_busy(self, seq_id: int) -> bool:
        return 0 <= seq_id < len(self._slots) and self._slots[seq_id].sequence is not None

    def _vacate(self, slot: Slot) -> None:
        if slot.sequence is not None:
            del self._by_key[slot.sequence.key]
        if slot.sampler is not None:
            self._lib.sampler_free(slot.sampler)
        slot.sequence = slot.sampler = slot.constraint = None
        slot.used_at = next(self._clock)

    def _reset(self) -> None:
        """After a failed decode the cache is unknown: forget all of it."""
        self._lib.memory_clear(self._memory, True)
        for slot in self._slots:
            self._vacate(slot)
            slot.cache.clear()
