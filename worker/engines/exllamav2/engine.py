"""The ExLlamaV2 engine: continuous batching over a paged KV cache on one or several GPUs.

The engine loop thread owns the generator. A sequence is one of its jobs; a step is one `iterate`:
a chunk of each prompt in prefill, one after the other, then one token for each other sequence
(several with speculation). Decisions: docs/decisions/0007-exllamav2-engine.md.
"""

import gc
import logging
import traceback
from typing import Any

from shared.errors import EngineError, InvalidRequest
from worker.engines.base import EngineFatal, EngineSettings
from worker.engines.exllamav2 import admission, load, pages, sampling
from worker.engines.exllamav2.admission import PageAdmission
from worker.engines.exllamav2.batch_limits import BatchLimits
from worker.engines.exllamav2.failures import Quarantine, StepFailure, classify
from worker.engines.exllamav2.grammar_filter import new_filter
from worker.engines.exllamav2.model.folder import read_folder
from worker.engines.exllamav2.model.vocabulary import TokenizerJsonVocabulary
from worker.engines.exllamav2.pages import Key
from worker.engines.exllamav2.request_checks import check_limits
from worker.engines.exllamav2.running_sequence import RunningSequence, new_job
from worker.engines.exllamav2.warm_up import first_generator
from worker.foreign import foreign_errors
from worker.grammar.compiler import GrammarCompiler
from worker.grammar.constraint import Constraint
from worker.sequence import Sequence, StepResult

_log = logging.getLogger(__name__)
_MAX_FAILURES_IN_A_ROW = 4
"""Failures without a completed sequence between them, after which the process has to end."""


class ExLlamaV2Engine:
    """See `worker.engines.base.Engine` for the contract."""

    name = "exllamav2"
    embeds = False

    def __init__(self, settings: EngineSettings) -> None:
        folder = read_folder(settings.path)
        self.vocabulary = TokenizerJsonVocabulary(folder)
        self._stop_ids = self.vocabulary.stop_ids
        if not self._stop_ids:
            _log.warning("%s declares no end token: texts end only by length", settings.path.name)
        self.chat_template = folder.chat_template
        self.tool_use_template = folder.tool_use_template
        self._grammars = GrammarCompiler(self.vocabulary.new_llguidance_tokenizer, self._stop_ids)
        self._loaded = load.load(settings, folder)
        plan = self._loaded.plan
        self.device = self._loaded.device
        self.context_length = plan.context_length
        self.vocab_size = min(self._loaded.vocab_size, self.vocabulary.size)
        self._limits = BatchLimits(settings.slots, plan.max_input_tokens)
        self._generator: Any = first_generator(self._loaded, self._limits)
        self._running: dict[Key, RunningSequence] = {}
        self._admission = PageAdmission(plan.num_pages, plan.num_draft_tokens)
        self._ledger = self._admission.ledger
        self._quarantine = Quarantine(settings.poison)
        self._failures_in_a_row = 0
        self._cancel_error: Exception | None = None
        """A failure between two steps; the next step raises it."""

    def close(self) -> None:
        for key in list(self._running):
            self.cancel(key)
        if self._generator is not None:
            _end_threads(self._generator)
        self._generator = None
        self._loaded.unload()

    # -- the protocol ------------------------------------------------------------------------

    @property
    def free_slots(self) -> int:
        return max(0, self._limits.max_batch - len(self._running))

    @property
    def kv_usage(self) -> float:
        return 1.0 - self._ledger.free_pages / self._ledger.num_pages

    @property
    def device_bytes(self) -> dict[str, int]:
        return self._loaded.device_bytes()

    @property
    def has_work(self) -> bool:
        return bool(self._running) or self._cancel_error is not None

    def check(self, sequence: Sequence) -> None:
        self._check_fields(sequence)
        if sequence.grammar is not None:
            sequence.compiled = self._grammars.compiled(sequence.grammar)

    def _check_fields(self, sequence: Sequence) -> None:
        self._quarantine.check(sequence)
        check_limits(sequence, self.vocab_size, self.context_length)

    def can_admit(self, sequence: Sequence) -> bool:
        if self._cancel_error is not None:
            return False
        if not self._ledger.can_ever_fit(self._admission.demand(sequence)):
            return True
        return self.free_slots > 0 and self._admission.has_room(sequence, self._running.values())

    def submit(self, sequence: Sequence) -> None:
        assert sequence.prompt, "a sequence begins with at least one token"
        # Not `check`: it compiles the grammar, which would block the loop.
        self._check_fields(sequence)
        wanted = self._admission.demand(sequence)
        if not self._ledger.can_ever_fit(wanted):
            raise InvalidRequest(
                f"The request needs {wanted.total_pages * pages.PAGE_TOKENS} tokens of KV cache; "
                f"the model has {self._ledger.num_pages * pages.PAGE_TOKENS}.",
                param="max_tokens",
            )
        self._running[sequence.key] = self._enqueue(sequence, self._ledger.unread_tokens(wanted))
        self._admission.reserve(sequence)

    def cancel(self, key: Key) -> None:
        running = self._running.pop(key, None)
        if running is not None:
            self._ledger.release(key)
            self._cancel_job(running)

    def step(self) -> list[StepResult]:
        with foreign_errors(self._recover):
            if self._cancel_error is not None:
                raise self._cancel_error
            self._tune()
            results = self._generator.iterate()
            return [found for result in results if (found := self._map(result)) is not None]

    # -- one step ----------------------------------------------------------------------------

    def _tune(self) -> None:
        """Set the options that the generator reads in every iteration."""
        running = self._running.values()
        self._generator.max_chunk_size = admission.chunk_tokens(self._limits.chunk_tokens, running)
        if self._loaded.uses_ngrams:
            lengths = [sequence.num_tokens for sequence in running]
            self._generator.use_ngram_draft = all(n >= load.MIN_NGRAM_CONTEXT for n in lengths)

    def _map(self, result: dict[str, Any]) -> StepResult | None:
        running = self._running.get(result["identifier"])
        if running is None:
            return None  # ended earlier in the same step
        if result["stage"] == "prefill":
            return running.read_progress(result)
        if result["stage"] != "streaming":
            return None
        if running.error is not None:
            self.cancel(running.sequence.key)
            return StepResult(running.sequence.key, error=running.error)
        step = running.read_tokens(result)
        if step.finish_reason is not None:
            self.cancel(running.sequence.key)
            self._quarantine.acquit(running.sequence)
            self._failures_in_a_row = 0
        return step

    def _cancel_job(self, running: RunningSequence) -> None:
        """Free what the generator holds for the sequence, if it has not ended the job itself."""
        try:
            self._generator.cancel(running.job)
        except Exception as exc:  # exllamav2 raises any class; the next step recovers
            _log.exception("exllamav2 failed to cancel a sequence")
            self._cancel_error = exc

    # -- admission ---------------------------------------------------------------------------

    def _enqueue(self, sequence: Sequence, unread_tokens: int) -> RunningSequence:
        """Raises LlmisError and leaves the generator unchanged then."""
        loaded, generators = self._loaded, self._loaded.generators
        constraint, filters = None, []
        if sequence.grammar is not None:
            assert sequence.compiled is not None, "`check` has compiled it"
            constraint = Constraint(sequence.compiled, sequence.produced)
            constraint.begin()
            main, filter_class = loaded.main, loaded.filters.ExLlamaV2Filter
            filters = [new_filter(filter_class, main.model, main.tokenizer, constraint)]
        stop_ids = frozenset(self._stop_ids)
        running = RunningSequence(sequence, self.vocabulary, stop_ids, constraint, unread_tokens)
        failed = "The engine could not take the request"
        with foreign_errors(lambda exc: EngineError(f"{failed}: {exc}")):
            settings = sampling.new_settings(
                generators.ExLlamaV2Sampler.Settings, sequence.sampling, loaded.padded_vocab_size
            )
            num_drafts, job_class = loaded.plan.num_draft_tokens, generators.ExLlamaV2DynamicJob
            job = new_job(job_class, running, settings, self._stop_ids, filters, num_drafts)
            running.watch(job, self.vocab_size)
            self._generator.enqueue(job)
        return running

    # -- failures ----------------------------------------------------------------------------

    def _recover(self, exc: Exception) -> EngineError:
        """Forget all sequences and make a new generator on the loaded model.

        Returns the error that the sequences end with, EngineFatal if the process has to end.
        Raises EngineFatal if the new generator cannot be made."""
        failure, num_active = classify(exc), len(self._running)
        _log.error("exllamav2 failed with %d sequences in the batch", num_active, exc_info=exc)
        is_reading = any(running.is_reading for running in self._running.values())
        poison = self._quarantine.strike(running.sequence for running in self._running.values())
        self._cancel_error = None
        self._running.clear()
        self._ledger.clear()
        reason = f"{type(exc).__name__}: {exc}".strip().splitlines()[0][:300]
        if failure is StepFailure.DEVICE_LOST:
            return EngineFatal(f"The GPU failed ({reason}); the replica restarts.", poison)
        self._failures_in_a_row += 1
        if self._failures_in_a_row >= _MAX_FAILURES_IN_A_ROW:
            return EngineFatal(f"The engine failed repeatedly, at last: {reason}", poison)
        read_tokens = self._generator.max_chunk_size if is_reading else 0
        _end_threads(self._generator)
        self._generator = None
        # The frames of the failed step hold its tensors: free them before new memory is needed.
        traceback.clear_frames(exc.__traceback__)
        gc.collect()
        message = f"The engine failed while it ran this request ({reason})."
        if failure is StepFailure.OUT_OF_MEMORY:
            self._limits.lower(num_active, read_tokens)
            message = "The GPU ran out of memory while it ran this request. Please try again."
        failed = f"The engine could not be rebuilt after {reason}"
        with foreign_errors(lambda second: EngineFatal(f"{failed}: {second}", poison)):
            limits = self._limits
            self._generator = self._loaded.new_generator(limits.max_batch, limits.chunk_tokens)
        return EngineError(message)


def _end_threads(generator: Any) -> None:
    """exllamav2 never shuts down the thread pools of a generator."""
    for pool in (generator.sampling_pool, generator.filter_pool):
        if pool is not None:
            pool.shutdown(wait=False)
