"""The llama.cpp engine: continuous batching over the slots of one llama_context.

Each slot is one sequence of the KV cache, with its own context. A step is one decode call whose
batch holds one token for every generating sequence and, within a budget, prompt tokens of those
in prefill. While all sequences generate and none joins or leaves, the batch of the last step is
kept, and only tokens and positions change. A free slot keeps its cache: the next sequence gets the
slot whose cache shares the longest prefix with its prompt.
"""

import time
from itertools import count

from shared.errors import EngineError
from worker.engines.base import EngineSettings
from worker.engines.llamacpp import bindings, load
from worker.engines.llamacpp.batch import BatchBuffer, Part
from worker.engines.llamacpp.logits import Logits
from worker.engines.llamacpp.prefill_budget import PrefillBudget, ScoringBudget
from worker.engines.llamacpp.sampler import new_chain
from worker.engines.llamacpp.slot import Output, Slot, choose_slot, common_prefix
from worker.engines.llamacpp.vocabulary import GgufVocabulary
from worker.grammar.compiler import GrammarCompiler
from worker.grammar.constraint import Constraint
from worker.sequence import Sequence, StepResult
from worker.text.logprobs import Row

_BATCH_TOKENS = 512
_SCORED_TOKENS = 16
"""Most prompt tokens with log probabilities per step: each takes a row of logits."""


class LlamaCppEngine:
    """See `worker.engines.base.Engine` for the contract."""

    name = "llamacpp"
    device = "cpu"
    embeds = False

    def __init__(self, settings: EngineSettings) -> None:
        load.check(settings)
        self._lib = bindings.load()
        self._model = load.load_text_model(self._lib, settings)
        self.vocabulary = GgufVocabulary(self._lib, self._model)
        self.vocab_size = self.vocabulary.size
        self._end_tokens = sorted(self.vocabulary.end_tokens)
        self._grammars = GrammarCompiler(self.vocabulary.new_grammar_tokenizer, self._end_tokens)
        self._context = self._new_context(settings)
        self._memory = self._lib.get_memory(self._context)
        self.context_length = min(settings.context_length, self._lib.n_ctx_seq(self._context))
        self._logits = Logits(self._lib, self._context, self.vocab_size)
        self._batch = BatchBuffer(_BATCH_TOKENS + settings.slots)
        self._kept: list[Output] = []
        """The outputs of the last step if it gave every busy sequence one token and drew its next
        one, and the same ones are still busy; else empty."""
        self._slots = [Slot(seq_id) for seq_id in range(settings.slots)]
        self._by_key: dict[tuple[str, int], Slot] = {}
        self._prefill_budget = PrefillBudget(_BATCH_TOKENS)
        self._scoring_budget = ScoringBudget(_SCORED_TOKENS)
        self._clock = count(1)

    def _new_context(self, settings: EngineSettings) -> int:
        params = self._lib.context_default_params()
        params.n_ctx = settings.context_length * settings.slots
        params.n_batch = _BATCH_TOKENS + settings.slots
        params.n_ubatch = _BATCH_TOKENS
        params.n_seq_max = settings.slots
        params.n_outputs_max = settings.slots + _SCORED_TOKENS
        what = f"{settings.slots} slots of {settings.context_length} tokens"
        return load.new_context(self._lib, self._model, settings, params, what)

    def close(self) -> None:
        for slot in self._slots:
            self._vacate(slot)
        self._lib.free(self._context)
        self._lib.model_free(self._model)

    @property
    def chat_template(self) -> str | None:
        return self._template(None)

    @property
    def tool_use_template(self) -> str | None:
        return self._template(b"tool_use")

    def _template(self, name: bytes | None) -> str | None:
        template: bytes | None = self._lib.model_chat_template(self._model, name)
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
        slot = choose_slot(self._slots, known)
        # - 1: the last known token is always computed, because its logits give the next one.
        keep = min(common_prefix(slot.cache, known), len(known) - 1)
        if sequence.prompt_logprobs:
            keep = 0  # cached tokens have no logits
        if not self._lib.memory_seq_rm(self._memory, slot.seq_id, keep, -1):
            # A recurrent state cannot be truncated: start over.
            self._lib.memory_seq_rm(self._memory, slot.seq_id, -1, -1)
            keep = 0
        sampler = new_chain(self._lib, sequence.sampling, self.vocab_size, self.context_length)
        if sampler is not None:
            for token in sequence.produced:
                self._lib.sampler_accept(sampler, token)
        slot.begin(sequence, keep, sampler, constraint, self.vocabulary)
        self._by_key[sequence.key] = slot
        self._kept = []

    def cancel(self, key: tuple[str, int]) -> None:
        slot = self._by_key.get(key)
        if slot is not None:
            self._vacate(slot)

    def step(self) -> list[StepResult]:
        """Raises EngineError when the decode call fails; all sequences are lost then."""
        if self._kept:
            is_streaming, num_read, outputs = True, 0, self._kept
            self._advance_batch()
        else:
            is_streaming = any(not slot.is_prefilling for slot in self._by_key.values())
            outputs, num_read = self._fill_batch(is_streaming)
        started = time.monotonic()
        status = self._lib.decode(self._context, self._batch.struct)
        if status != 0:
            self._reset()
            raise EngineError(f"llama_decode returned {status}")
        decode_s = time.monotonic() - started
        results = self._draw(outputs)
        # Where the batch is kept, no prompt is left to read.
        num_scored = 0
        if not self._kept:
            num_scored = sum(output.num_rows for output in outputs if output.is_scored)
        if not num_scored:
            self._prefill_budget.record(num_read, decode_s)
        if is_streaming and num_read == num_scored:
            self._scoring_budget.record(num_scored, time.monotonic() - started)
        if not self._kept:
            reading = [slot for slot in self._by_key.values() if slot.is_prefilling]
            # What is read again was reported before.
            results += [s.progress() for s in reading if len(s.cache) > s.num_known_read]
        return results

    # -- one step ----------------------------------------------------------------------------

    def _advance_batch(self) -> None:
        tokens = []
        for output in self._kept:
            slot = output.slot
            tokens.append(slot.next_token)
            slot.cache.append(slot.next_token)
        self._batch.advance(tokens)

    def _fill_batch(self, is_streaming: bool) -> tuple[list[Output], int]:
        """Write the batch; return its outputs and its number of prompt tokens.

        The parts are ordered by sequence id: llama.cpp computes neighbours together and splits
        the batch wherever the order breaks.
        """
        chunks, num_read = self._chunks(is_streaming)
        parts, outputs = [], []
        for seq_id in sorted(chunks):
            slot, chunk = chunks[seq_id]
            first_pos, sequence = len(slot.cache), slot.sequence
            assert sequence is not None, "only busy slots have a part"
            is_scored = slot.is_scoring
            slot.cache += chunk
            draws = not slot.is_prefilling and sequence.max_tokens > 0
            num_rows = len(chunk) if is_scored else int(draws)
            parts.append(Part(seq_id, first_pos, chunk, num_rows))
            outputs.append(Output(slot, len(chunk), num_rows, is_scored, draws))
        for output, row in zip(outputs, self._batch.fill(parts), strict=True):
            output.batch_row = row
        if len(outputs) == len(self._by_key) and all(output.is_next for output in outputs):
            self._kept = outputs
        return outputs, num_read

    def _chunks(self, is_streaming: bool) -> tuple[dict[int, tuple[Slot, list[int]]], int]:
        """The tokens of this step by sequence id, and how many are of prompts, oldest first."""
        chunks: dict[int, tuple[Slot, list[int]]] = {}
        room, scoring_room = self._prefill_budget.tokens, self._scoring_budget.tokens(is_streaming)
        num_read = 0
        for slot in self._by_key.values():
            assert slot.sequence is not None, "slots by key are busy"
            if not slot.is_prefilling:
                chunks[slot.seq_id] = (slot, [slot.next_token])
                continue
            is_scored, done = slot.is_scoring, len(slot.cache)
            end = done + (min(room, scoring_room) if is_scored else room)
            chunk = slot.known[done : min(end, slot.num_known_read) if slot.is_rereading else end]
            num_read += len(chunk)
            room -= len(chunk)
            if is_scored:
                scoring_room -= len(chunk)
            if chunk:
                chunks[slot.seq_id] = (slot, chunk)
        return chunks, num_read

    def _draw(self, outputs: list[Output]) -> list[StepResult]:
        """Compute log probabilities of prompts, and draw a token for each sequence that is read."""
        rows = self._logits.rows(sum(output.num_rows for output in outputs))
        best = self._logits.best(rows)
        drawing: list[tuple[Output, Row, Row | None]] = []
        results, end = [], 0
        for output in outputs:
            begin, end, slot = end, end + output.num_rows, output.slot
            if not all(best.is_valid[begin:end]):
                failed = slot.refuse_logits(output.first_pos)
                results += [failed] if failed is not None else []
            elif output.draws and slot.is_plain:
                results.append(slot.accept_plain(best.tokens[begin]))
            else:
                if output.is_scored:
                    slot.read_prompt_logprobs(list(rows[begin:end]), output.first_pos)
                if output.draws:
                    row = rows[end - 1]
                    drawing.append((output, row, slot.prepare(row, self._end_tokens)))
                elif not slot.is_prefilling:
                    results.append(slot.end_unread())
        results += [self._sample(output, row, raw) for output, row, raw in drawing]
        for result in results:
            if result.finish_reason is not None or result.error is not None:
                self._vacate(self._by_key[result.key])
        if not all(best.is_valid):
            self._clear_cache()
        return results

    def _sample(self, output: Output, row: Row, raw: Row | None) -> StepResult:
        """Draw from a row that may be masked; `raw` is the row before that."""
        slot = output.slot
        if slot.sampler is None:
            token = int(row.argmax())
        else:
            token = self._lib.sampler_sample(slot.sampler, self._context, output.batch_row)
        return slot.accept(token, raw)

    # -- slots -------------------------------------------------------------------------------

    def _vacate(self, slot: Slot) -> None:
        self._kept = []
        if slot.sequence is not None:
            del self._by_key[slot.sequence.key]
        if slot.sampler is not None:
            self._lib.sampler_free(slot.sampler)
        slot.sequence = slot.completion = slot.sampler = slot.constraint = None
        slot.used_at = next(self._clock)

    def _reset(self) -> None:
        """Give all sequences up after a failed decode: the contents of the cache are unknown."""
        for slot in self._slots:
            self._vacate(slot)
        self._clear_cache()

    def _clear_cache(self) -> None:
        """Zero the cells: a NaN in one spoils what attends over it, even where it is masked."""
        self._lib.memory_clear(self._memory, True)
        self._kept = []
        for slot in self._slots:
            slot.forget_cache()
