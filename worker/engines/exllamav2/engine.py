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
from worker.engines.constraint import Constraint
from worker.engines.exl2 import admission, loading, pages, sampling
from worker.engines.exl2.admission import Admission
from worker.engines.exl2.checks import check_limits
from worker.engines.exl2.failures import Failure, Quarantine, classify
from worker.engines.exl2.first_steps import first_generator
from worker.engines.exl2.grammar_filter import new_filter
from worker.engines.exl2.limits import BatchLimits
from worker.engines.exl2.live import LiveSequence, new_job
from worker.engines.exl2.model_folder import read_folder
from worker.engines.exl2.pages import Key
from worker.engines.exl2.vocabulary import Vocabulary
from worker.engines.grammar import GrammarCompiler
from worker.engines.protocol import EngineFatal, EngineSettings, Sequence, StepResult

_log = logging.getLogger(__name__)
_MAX_FAILURES_IN_A_ROW = 4
"""Without any sequence that ends well between them: the process is of no use."""


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
        self._generator: Any = first_generator(self._loaded, self._limits)
        self._live: dict[Key, LiveSequence] = {}
        self._admission = Admission(plan.num_pages, plan.num_draft_tokens)
        self._ledger = self._admission.ledger
        self._quarantine = Quarantine(settings.suspects)
        self._failures_in_a_row = 0
        self._broken: Exception | None = None
        """What went wrong between two steps; the next one raises it."""

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
    def kv_usage(self) -> float:
        return 1.0 - self._ledger.free_pages / self._ledger.num_pages

    @property
    def device_bytes(self) -> dict[str, int]:
        return self._loaded.device_bytes()

    @property
    def has_work(self) -> bool:
        return bool(self._live) or self._broken is not None

    def check(self, sequence: Sequence) -> None:
        self._check_fields(sequence)
        if sequence.grammar is not None:
            sequence.compiled = self._grammars.compiled(sequence.grammar)

    def _check_fields(self, sequence: Sequence) -> None:
        self._quarantine.check(sequence)
        check_limits(sequence, self.vocab_size, self.context_length)

    def can_admit(self, sequence: Sequence) -> bool:
        if self._broken is not None:
            return False
        if not self._ledger.can_ever_fit(self._admission.demand(sequence)):
            return True
        return self.free_slots > 0 and self._admission.has_room(sequence, self._live.values())

    def submit(self, sequence: Sequence) -> None:
        assert sequence.prompt, "a sequence begins with at least one token"
        # Not the grammar again: compiling is nothing for the loop.
        self._check_fields(sequence)
        wanted = self._admission.demand(sequence)
        if not self._ledger.can_ever_fit(wanted):
            raise InvalidRequest(
                f"The request needs {wanted.total_pages * pages.PAGE_TOKENS} tokens of the KV "
                f"cache, there are {self._ledger.num_pages * pages.PAGE_TOKENS}.",
                param="max_tokens",
            )
        self._live[sequence.key] = self._enqueue(sequence, self._ledger.unread_tokens(wanted))
        self._admission.take(sequence)

    def cancel(self, key: Key) -> None:
        live = self._live.pop(key, None)
        if live is not None:
            self._ledger.release(key)
            self._take_out(live)

    def step(self) -> list[StepResult]:
        try:
            if self._broken is not None:
                raise self._broken
            self._tune()
            results = self._generator.iterate()
            return [step for result in results if (step := self._map(result)) is not None]
        except Exception as exc:
            # Whatever it is (assertions, lookups, CUDA by way of RuntimeError): pages and jobs
            # are in no known state now.
            _log.exception("exllamav2 failed with %d sequences in the batch", len(self._live))
            raise self._recover(exc) from None

    # -- one step ----------------------------------------------------------------------------

    def _tune(self) -> None:
        """Set what the generator reads anew in every iteration."""
        live = self._live.values()
        self._generator.max_chunk_size = admission.chunk_tokens(self._limits.chunk_tokens, live)
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
        if live.error is not None:
            self.cancel(live.sequence.key)
            return StepResult(live.sequence.key, error=live.error)
        taken = live.take(result)
        if taken.finish_reason is not None:
            self.cancel(live.sequence.key)
            self._quarantine.acquit(live.sequence)
            self._failures_in_a_row = 0
        return taken

    def _take_out(self, live: LiveSequence) -> None:
        """Free what the generator holds for it; nothing, if it has ended the job itself."""
        try:
            self._generator.cancel(live.job)
        except Exception as exc:
            _log.exception("exllamav2 failed to cancel")
            self._broken = exc

    # -- admission ---------------------------------------------------------------------------

    def _enqueue(self, sequence: Sequence, unread_tokens: int) -> LiveSequence:
        """Raises LlmisError; the generator is as before then."""
        loaded = self._loaded
        constraint = filters = None
        if sequence.grammar is not None:
            assert sequence.compiled is not None, "`check` has compiled it"
            constraint = Constraint(sequence.compiled, sequence.produced)
            constraint.begin()
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
            unread_tokens,
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
        except Exception as exc:
            raise EngineError(f"The engine could not take the request: {exc}") from exc
        return live

    # -- failures ----------------------------------------------------------------------------

    def _recover(self, exc: Exception) -> EngineError:
        """Forget all sequences and make a new generator on the loaded model. Returns the error
        that the sequences end with."""
        failure, num_active = classify(exc), len(self._live)
        is_reading = any(live.is_reading for live in self._live.values())
        suspects = self._quarantine.strike(live.sequence for live in self._live.values())
        self._broken = None
        self._live.clear()
        self._ledger.clear()
        reason = f"{type(exc).__name__}: {exc}".strip().splitlines()[0][:300]
        if failure is Failure.DEVICE_LOST:
            return EngineFatal(f"The GPU failed ({reason}); the replica starts again.", suspects)
        self._failures_in_a_row += 1
        if self._failures_in_a_row >= _MAX_FAILURES_IN_A_ROW:
            return EngineFatal(f"The engine failed again and again, at last {reason}", suspects)
        read_tokens = self._generator.max_chunk_size if is_reading else 0
        _end_threads(self._generator)
        self._generator = None
        # The frames of the failed step hold its tensors.
        traceback.clear_frames(exc.__traceback__)
        gc.collect()
        message = f"The engine failed while it ran this request ({reason})."
        if failure is Failure.OUT_OF_MEMORY:
            self._limits.lower(num_active, read_tokens)
            message = "The GPU ran out of memory while it ran this request. Please try again."
        try:
            self._generator = self._new_generator()
        except Exception as second:
            message = f"The engine could not be made again after {reason}: {second}"
            return EngineFatal(message, suspects)
        return EngineError(message)

    def _new_generator(self) -> Any:
        return self._loaded.new_generator(self._limits.max_batch, self._limits.chunk_tokens)


def _end_threads(generator: Any) -> None:
    """Nothing in exllamav2 ends the thread pools of a generator."""
    for pool in (generator.sampling_pool, generator.filter_pool):
        if pool is not None:
            pool.shutdown(wait=False)
