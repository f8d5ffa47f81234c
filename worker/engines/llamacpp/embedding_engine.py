"""The llama.cpp engine for embeddings: one normalised vector per input.

Each step is one decode call over the oldest inputs, as many as fit into a batch; nothing is kept
between batches. A bidirectional model needs an input in one piece, so its batch is as long as its
context. A causal model reads a long input in chunks through the KV cache: llama.cpp computes the
output matrix for all tokens of a batch here, and long batches would take gigabytes for unused
logits.

The number of slots limits the inputs in the engine, and so the inputs per batch.
"""

import ctypes as c
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from shared.errors import EngineError, SettingsError
from shared.wire.events import FinishReason
from worker.engines.base import EngineSettings
from worker.engines.llamacpp import bindings, load
from worker.engines.llamacpp.batch import BatchBuffer, Part
from worker.engines.llamacpp.vocabulary import GgufVocabulary
from worker.sequence import INVALID_LOGITS, Sequence, StepResult

_BATCH_TOKENS = 512
"""Larger batches are not faster on a CPU, and a job can be cancelled only between two."""
_META_BYTES = 256


class Pooling(IntEnum):
    """enum llama_pooling_type: how the vectors of the tokens give that of the input."""

    NONE = 0
    MEAN = 1
    CLS = 2
    LAST = 3
    RANK = 4


@dataclass(slots=True)
class _Input:
    """An input that waits for a batch, or is read in chunks."""

    sequence: Sequence
    num_done: int = 0
    total: NDArray[np.float32] | float = 0.0
    """Of the tokens read: the sum of their vectors, or the one vector that counts."""
    is_suspect: bool = False
    """The model gave no valid vector beside others: it is read again in a batch of its own."""

    @property
    def is_apart(self) -> bool:
        """Its batches hold nothing else."""
        return self.is_suspect or self.num_done > 0

    @property
    def num_left(self) -> int:
        return len(self.sequence.prompt) - self.num_done


class LlamaEmbeddingEngine:
    """See `worker.engines.base.Engine` for the contract."""

    name = "llamacpp"
    device = "cpu"
    embeds = True
    chat_template = tool_use_template = None

    def __init__(self, settings: EngineSettings) -> None:
        load.check(settings)
        self._lib = bindings.load()
        self._model = load.load_model(self._lib, settings)
        self.vocabulary = GgufVocabulary(self._lib, self._model)
        self.vocab_size = self.vocabulary.size
        # The weights may have no positions beyond the trained ones.
        trained = self._lib.model_n_ctx_train(self._model)
        self.context_length = min(settings.context_length, trained)
        self._pooling = self._declared_pooling(settings)
        self._slots = settings.slots
        longest = max(_BATCH_TOKENS, self.context_length)
        is_causal = self._architecture_value("attention.causal") != "false"
        self._batch_tokens = _BATCH_TOKENS if is_causal else longest
        self._context = self._new_context(settings, longest)
        self._memory: int | None = self._lib.get_memory(self._context)
        if not self._memory and self._batch_tokens < longest:
            # No KV cache: an encoder not declared as one. It needs whole inputs.
            self._lib.free(self._context)
            self._batch_tokens = longest
            self._context = self._new_context(settings, longest)
        self._num_values: int = self._lib.model_n_embd_out(self._model)
        self._batch = BatchBuffer(self._batch_tokens)
        self._inputs: dict[tuple[str, int], _Input] = {}

    # -- loading -----------------------------------------------------------------------------

    def _declared_pooling(self, settings: EngineSettings) -> Pooling:
        """The model's own pooling, or the mean. Raises SettingsError."""
        declared = int(self._architecture_value("pooling_type") or Pooling.NONE)
        if declared == Pooling.RANK:
            raise SettingsError(
                f"models: {settings.path.name} is a reranker: it gives scores, not embeddings"
            )
        try:
            return Pooling(declared) or Pooling.MEAN
        except ValueError:
            raise SettingsError(
                f"models: {settings.path.name} has the unknown pooling type {declared}"
            ) from None

    def _architecture_value(self, key: str) -> str:
        """A metadata value of the file under the architecture's name; empty = absent."""
        architecture = self._metadata(b"general.architecture")
        return self._metadata(f"{architecture}.{key}".encode())

    def _metadata(self, key: bytes) -> str:
        buffer = c.create_string_buffer(_META_BYTES)
        self._lib.model_meta_val_str(self._model, key, buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace")

    def _new_context(self, settings: EngineSettings, longest: int) -> int:
        params = self._lib.context_default_params()
        params.embeddings = True
        params.pooling_type = self._pooling
        params.kv_unified = True  # lets one long input use all cells
        params.n_ctx = longest
        params.n_batch = params.n_ubatch = self._batch_tokens
        params.n_seq_max = self._slots
        what = f"{self._slots} inputs, together {longest} tokens"
        return load.new_context(self._lib, self._model, settings, params, what)

    def close(self) -> None:
        self._inputs.clear()
        self._lib.free(self._context)
        self._lib.model_free(self._model)

    # -- the protocol ------------------------------------------------------------------------

    @property
    def free_slots(self) -> int:
        return self._slots - len(self._inputs)

    @property
    def kv_usage(self) -> None:
        """None: inputs do not compete for the KV cache."""

    @property
    def device_bytes(self) -> dict[str, int]:
        return {}

    @property
    def has_work(self) -> bool:
        return bool(self._inputs)

    def check(self, sequence: Sequence) -> None:
        pass

    def can_admit(self, sequence: Sequence) -> bool:
        return self.free_slots > 0

    def submit(self, sequence: Sequence) -> None:
        num_tokens = len(sequence.prompt)
        assert 0 < num_tokens <= self.context_length, "a longer one does not fit the context"
        self._inputs[sequence.key] = _Input(sequence)

    def cancel(self, key: tuple[str, int]) -> None:
        self._inputs.pop(key, None)

    def step(self) -> list[StepResult]:
        """Raises EngineError when the decode call fails; all inputs are lost then."""
        inputs = self._next_inputs()
        pieces = [i.sequence.prompt[i.num_done :][: self._batch_tokens] for i in inputs]
        # An input read in chunks is alone in its batches; any other batch starts with new inputs.
        if self._memory and not inputs[0].num_done:
            self._lib.memory_clear(self._memory, False)
        positions = [i.num_done for i in inputs]
        # Pooling needs the output of every token.
        parts = map(Part, range(len(inputs)), positions, pieces, map(len, pieces))
        self._batch.fill(list(parts))
        status = self._lib.decode(self._context, self._batch.struct)
        if status != 0:
            self._inputs.clear()
            raise EngineError(f"llama_decode returned {status}")
        vectors = [self._vector(seq_id) for seq_id in range(len(inputs))]
        if not all(np.isfinite(vector).all() for vector in vectors):
            return self._refuse(inputs)
        return list(map(self._accept, inputs, map(len, pieces), vectors))

    # -- one step ----------------------------------------------------------------------------

    def _next_inputs(self) -> list[_Input]:
        """Choose the inputs of the next batch, oldest first."""
        chosen: list[_Input] = []
        num_tokens = 0
        for waiting in self._inputs.values():
            num_tokens += waiting.num_left
            # The first one is taken at any length. One that is apart is the only one.
            if chosen and (num_tokens > _BATCH_TOKENS or waiting.is_apart or chosen[0].is_apart):
                break
            chosen.append(waiting)
        return chosen

    def _vector(self, seq_id: int) -> NDArray[np.float32]:
        """The vector of a sequence, pooled over its tokens in the batch; a view until the next."""
        address = self._lib.get_embeddings_seq(self._context, seq_id)
        buffer = (c.c_float * self._num_values).from_address(address)
        return np.ctypeslib.as_array(buffer)

    def _refuse(self, inputs: list[_Input]) -> list[StepResult]:
        """The vectors of a batch are not valid. A NaN of one input spoils its neighbours, and
        those that come after it in the same cells: each is read again alone, once."""
        if self._memory:
            self._lib.memory_clear(self._memory, True)
        failed = [read.sequence.key for read in inputs if read.is_suspect]
        for key in failed:
            del self._inputs[key]
        for read in inputs:
            read.num_done, read.total, read.is_suspect = 0, 0.0, True
        return [StepResult(key, error=EngineError(INVALID_LOGITS)) for key in failed]

    def _accept(self, read: _Input, num_tokens: int, vector: NDArray[np.float32]) -> StepResult:
        """Add a chunk to its input, and free the slot after the last one."""
        if self._pooling is Pooling.MEAN:
            read.total = read.total + num_tokens * vector
        elif self._pooling is Pooling.LAST or not read.num_done:
            read.total = vector.copy()
        read.num_done += num_tokens
        result = StepResult(read.sequence.key, prefilled_tokens=read.num_done)
        if not read.num_left:
            del self._inputs[read.sequence.key]
            result.embedding = _normalized(np.asarray(read.total)).astype("<f4").tobytes()
            result.finish_reason = FinishReason.STOP
        return result


def _normalized(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale to length 1, as OpenAI does; zeros stay zeros."""
    length = np.linalg.norm(vector)
    return vector if length == 0 else vector / np.float32(length)
