"""The ExLlamaV2 engine: continuous batching over a paged KV cache on one or several GPUs.

The generator belongs to the engine loop thread. A sequence is one of its jobs; a step is one
`iterate`: a piece of each prompt that is still read, one after the other, then one token for
all the others (several with speculation). Decisions: docs/decisions/0007-exllamav2-engine.md.
"""

import gc
import logging
import traceback
from typing import Any

from shared.errors import EngineError, InvalidRequest
from worker.engines.exl2 import loading, pages, sampling
from worker.engines.exl2.checks import check_limits
from worker.engines.exl2.constraints import Constraint, new_filter
from worker.engines.exl2.failures import Failure, Quarantine, classify
from worker.engines.exl2.limits import BatchLimits
from worker.engines.exl2.live import LiveSequence, new_job
from worker.engines.exl2.model_folder import read_folder
from worker.engines.exl2.pages import Demand, Key, PageLedger
from worker.engines.exl2.vocabulary import Vocabulary
from worker.engines.grammar import GrammarCompiler
from worker.engines.protocol import EngineFatal, EngineSettings, Sequence, StepResult

_log = logging.getLogger(__name__)
_MAX_READING = 2
"""Prompts that are read at the same time: each is a pass of its own through the weights, in
every step, while the streams wait."""
_BUSY_CHUNK_TOKENS = 512
"""Prompt tokens a step while others stream."""
_MAX_FAILURES_IN_A_ROW = 4
"""Without any sequence that ends well between them: the process is of no use."""
_ENQUEUE_ERRORS = (AssertionError, ValueError, TypeError, IndexError, KeyError, RuntimeError)


class ExLlamaV2Engine:
    """See `worker.engines.protocol.Engine` for the contract."""

    name = "exllamav2"
    embeds = False

    def __init__(self, settings: EngineSettings) -> None:
        folder = read_folder(settings.path)
        self.vocabulary = Vocabulary(folder)
        self._stop_ids = self.vocabulary.stop_ids
        if not self._stop_ids:
            _log.warning("%s declares no end token: texts end by length alone", settings.path.name)
        self.chat_template = folder.chat_template
        self._grammars = GrammarCompiler(self.vocabulary.new_llguidance_tokenizer, self._stop_ids)
        self._loaded = loading.load(settings, folder)
        plan = self._loaded.plan
        self.device = self._loaded.device
        self.context_length = plan.context_length
        self.vocab_size = min(self._loaded.vocab_size, self.vocabulary.size)
        self._limits = BatchLimits(settings.slots, plan.max_input_tokens)
        self._generator = self._first_generator()
        self._live: dict[Key, LiveSequence] = {}
        self._ledger = PageLedger(plan.num_pages)
        self._asked: tuple[Sequence, Demand] | None = None
        """What was worked out for the sequence at the head of the queue: it is asked for in
        every step while it waits."""
        self._quarantine = Quarantine()
        self._failures_in_a_row = 0

    def _first_generator(self) -> Any:
        """Warmed up: the kernels try out their variants in their first calls; and what fails at
        all, fails now. Raises EngineError."""
        try:
            generator = self._new_generator()
            generator.warmup()
        except _ENQUEUE_ERRORS as exc:
            raise EngineError(f"exllamav2 loaded the model and failed to run it: {exc}") from exc
        return generator

    def close(self) -> None:
        for key in list(self._live):
            self.cancel(key)
        if self._generator is not None:
            _end_threads(self._generator)
        self._generator = None
        self._loaded.unload()

    # -- the protocol ------------------------------------------------------------------------

    @property
    def free_slots(self) -> int:
        return max(0, self._limits.max_batch - len(self._live))

    @property
    def has_work(self) -> bool:
        return bool(self._live)

    def check(self, sequence: Sequence) -> None:
        self._quarantine.check(sequence)
        check_limits(sequence, self.vocab_size, self.context_length)
        if sequence.grammar is not None:
            self._grammars.check(sequence.grammar)

    def can_admit(self, sequence: Sequence) -> bool:
        wanted = self._demand(sequence)
        if not self._ledger.can_ever_fit(wanted):
            return True
        return self.free_slots > 0 and self._ledger.fits(wanted) and self._can_read(wanted)

    def submit(self, sequence: Sequence) -> None:
        assert sequence.prompt, "a sequence begins with at least one token"
        self.check(sequence)
        wanted = self._demand(sequence)
        if not self._ledger.can_ever_fit(wanted):
            raise InvalidRequest(
                f"The request needs {wanted.total_pages * pages.PAGE_TOKENS} tokens of the KV "
                f"cache, there are {self._ledger.num_pages * pages.PAGE_TOKENS}.",
                param="max_tokens",
            )
        live = self._enqueue(sequence, wanted)
        self._live[sequence.key] = live
        self._ledger.take(sequence.key, wanted)
        self._asked = None

    def cancel(self, key: Key) -> None:
        live = self._live.pop(key, None)
        if live is not None:
            self._ledger.release(key)
            self._generator.cancel(live.job)

    def step(self) -> list[StepResult]:
        self._tune()
        try:
            results = self._generator.iterate()
        except Exception as exc:
            # Whatever it is (assertions, lookups, CUDA by way of RuntimeError): pages and jobs
            # are in no known state now.
            _log.exception("exllamav2 failed with %d sequences in the batch", len(self._live))
            raise self._recover(exc) from None
        steps = [step for result in results if (step := self._map(result)) is not None]
        return steps + self._constraint_errors()

    # -- one step ----------------------------------------------------------------------------

    def _tune(self) -> None:
        """Set what the generator reads anew in every iteration."""
        live = self._live.values()
        is_streaming = any(not one.is_reading for one in live)
        chunk_tokens = self._limits.chunk_tokens
        self._generator.max_chunk_size = (
            min(_BUSY_CHUNK_TOKENS, chunk_tokens) if is_streaming else chunk_tokens
        )
        if self._loaded.uses_ngrams:
            is_long_enough = all(one.num_tokens >= loading.MIN_NGRAM_CONTEXT for one in live)
            self._generator.use_ngram_draft = is_long_enough

    def _map(self, result: dict[str, Any]) -> StepResult | None:
        live = self._live.get(result["identifier"])
        if live is None:
            return None  # ended earlier in the same step
        if result["stage"] == "prefill":
            return live.read(result)
        if result["stage"] != "streaming":
            return None
        taken = live.take(result)
        is_gone = bool(result["eos"])
        if taken is not None and taken.finish_reason is not None:
            self._finish(live, is_gone=is_gone)
        return taken

    def _finish(self, live: LiveSequence, *, is_gone: bool) -> None:
        """`is_gone`: the generator has ended it; else it was our stop string, or our count."""
        del self._live[live.sequence.key]
        self._ledger.release(live.sequence.key)
        if not is_gone:
            self._generator.cancel(live.job)
        self._quarantine.acquit(live.sequence)
        self._failures_in_a_row = 0

    def _constraint_errors(self) -> list[StepResult]:
        failed = [
            (key, live.constraint.error)
            for key, live in self._live.items()
            if live.constraint is not None and live.constraint.error is not None
        ]
        for key, _ in failed:
            self.cancel(key)
        return [StepResult(key, error=error) for key, error in failed]

    # -- admission ---------------------------------------------------------------------------

    def _demand(self, sequence: Sequence) -> Demand:
        if self._asked is None or self._asked[0] is not sequence:
            num_draft_tokens = self._loaded.plan.num_draft_tokens
            wanted = pages.demand(sequence.prompt, sequence.max_tokens, num_draft_tokens)
            self._asked = (sequence, wanted)
        return self._asked[1]

    def _can_read(self, wanted: Demand) -> bool:
        """Whether one more prompt may be read now: few at a time, and of long ones just one."""
        reading = [live.unread_tokens for live in self._live.values() if live.is_reading]
        unread = self._ledger.unread_tokens(wanted)
        if not reading or unread <= 0:
            return True
        return len(reading) < _MAX_READING and sum(reading) + unread <= _BUSY_CHUNK_TOKENS

    def _enqueue(self, sequence: Sequence, wanted: Demand) -> LiveSequence:
        """Raises LlmisError; the generator is as before then."""
        loaded = self._loaded
        constraint = filters = None
        if sequence.grammar is not None:
            constraint = Constraint(
                self._grammars.matcher(sequence.grammar), self._grammars.vocab_size
            )
            filters = [
                new_filter(
                    loaded.filters.ExLlamaV2Filter,
                    loaded.main.model,
                    loaded.main.tokenizer,
                    constraint,
                )
            ]
        live = LiveSequence(
            sequence,
            self.vocabulary,
            frozenset(self._stop_ids),
            constraint,
            self._ledger.unread_tokens(wanted),
        )
        try:
            settings = sampling.new_settings(
                loaded.generators.ExLlamaV2Sampler.Settings,
                sequence.sampling,
                loaded.padded_vocab_size,
            )
            job = new_job(
                loaded.generators.ExLlamaV2DynamicJob,
                live,
                settings,
                self._stop_ids,
                filters or [],
                loaded.plan.num_draft_tokens,
            )
            live.watch(job, self.vocab_size)
            self._generator.enqueue(job)
        except _ENQUEUE_ERRORS as exc:
            raise EngineError(f"The engine could not take the request: {exc}") from exc
        return live

    # -- failures ----------------------------------------------------------------------------

    def _recover(self, exc: Exception) -> EngineError:
        """Forget all sequences and make a new generator on the loaded model. Returns the error
        that the sequences end with."""
        failure, num_active = classify(exc), len(self._live)
        for live in self._live.values():
            self._quarantine.strike(live.sequence)
        self._live.clear()
        self._ledger.clear()
        reason = f"{type(exc).__name__}: {exc}".strip().splitlines()[0][:300]
        if failure is Failure.DEVICE_LOST:
            return EngineFatal(f"The GPU failed ({reason}); the replica starts again.")
        self._failures_in_a_row += 1
        if self._failures_in_a_row >= _MAX_FAILURES_IN_A_ROW:
            return EngineFatal(f"The engine failed again and again, at last with {reason}")
        _end_threads(self._generator)
        self._generator = None
        # The frames of the failed step hold its tensors.
        traceback.clear_frames(exc.__traceback__)
        gc.collect()
        message = f"The engine failed while it ran this request ({reason})."
        if failure is Failure.OUT_OF_MEMORY:
            self._limits.lower(num_active)
            message = "The GPU ran out of memory while it ran this request. Please try again."
        try:
            self._generator = self._new_generator()
        except _ENQUEUE_ERRORS as second:
            return EngineFatal(f"The engine could not be made again after {reason}: {second}")
        return EngineError(message)

    def _new_generator(self) -> Any:
        return self._loaded.new_generator(self._limits.max_batch, self._limits.chunk_tokens)


def _end_threads(generator: Any) -> None:
    """Nothing in exllamav2 ends the thread pools of a generator."""
    for pool in (generator.sampling_pool, generator.filter_pool):
        if pool is not None:
            pool.shutdown(wait=False)
