"""The llama.cpp engine for embeddings: whole inputs in, one normalised vector each out.

Each step is one decode call over the inputs that have waited longest, as many as fit into a
batch; nothing is kept from one batch to the next. A model whose tokens see what comes after them
reads an input in one piece, so its batch is as long as its context. A causal one reads a long
input in pieces, by way of the KV cache: llama.cpp computes the output matrix for all tokens of a
batch here, and long batches would take gigabytes for logits that nobody wants.

The slots are the inputs that are taken from the loop at the same time, and the most that one
batch holds.
"""

import ctypes as c
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from shared.errors import EngineError, SettingsError
from shared.messages import FinishReason
from worker.engines import llama_abi, llama_loading
from worker.engines.llama_batch import BatchBuffer, Part
from worker.engines.llama_vocabulary import Vocabulary
from worker.engines.protocol import EngineSettings, Sequence, StepResult

_BATCH_TOKENS = 512
"""More at a time is not faster on a CPU, and a cancelled job leaves between two batches."""
_META_BYTES = 256


class Pooling(IntEnum):
    """enum llama_pooling_type: how an input's vector is made of those of its tokens."""

    NONE = 0
    MEAN = 1
    CLS = 2
    LAST = 3
    RANK = 4


@dataclass(slots=True)
class _Input:
    """An input that waits for a batch, or that is read in pieces."""

    sequence: Sequence
    num_done: int = 0
    total: NDArray[np.float32] | float = 0.0
    """Of what is read: the sum of the tokens' vectors, or the one vector that counts."""

    @property
    def num_left(self) -> int:
        return len(self.sequence.prompt) - self.num_done


class LlamaEmbeddingEngine:
    """See `worker.engines.protocol.Engine` for the contract."""

    name = "llamacpp"
    device = "cpu"
    embeds = True
    chat_template = None

    def __init__(self, settings: EngineSettings) -> None:
        llama_loading.check(settings)
        self._lib = llama_abi.load()
        self._model = llama_loading.load_model(self._lib, settings)
        self.vocabulary = Vocabulary(self._lib, self._model)
        self.vocab_size = self.vocabulary.size
        # Positions beyond those it was trained on may not exist in the weights.
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
            # An encoder that does not call itself one.
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
                f"models: {settings.path.name} is a reranker: it gives scores, no embeddings"
            )
        try:
            return Pooling(declared) or Pooling.MEAN
        except ValueError:
            raise SettingsError(
                f"models: {settings.path.name} has a pooling of type {declared}, which is unknown"
            ) from None

    def _architecture_value(self, key: str) -> str:
        """A value of the file's metadata below the architecture's name; empty = not there."""
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
        params.kv_unified = True  # one long input may have all cells
        params.n_ctx = longest
        params.n_batch = params.n_ubatch = self._batch_tokens
        params.n_seq_max = self._slots
        params.n_threads = params.n_threads_batch = settings.threads
        params.type_k = params.type_v = llama_loading.KV_TYPES[settings.quant]
        if settings.quant != "f16":
            params.flash_attn_type = llama_abi.FLASH_ATTN_ENABLED  # a quantised V needs it
        what = f"{self._slots} inputs, together {longest} tokens"
        return llama_loading.new_context(self._lib, self._model, params, what)

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
        """No input keeps anything from one batch to the next that others would miss."""

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
        assert 0 < len(sequence.prompt) <= self.context_length, "a longer one fits no batch"
        self._inputs[sequence.key] = _Input(sequence)

    def cancel(self, key: tuple[str, int]) -> None:
        self._inputs.pop(key, None)

    def step(self) -> list[StepResult]:
        """Raises EngineError when the decode call fails; all inputs are lost then."""
        inputs = self._next_inputs()
        pieces = [i.sequence.prompt[i.num_done :][: self._batch_tokens] for i in inputs]
        # One that is read in pieces is alone in its batches; whatever else begins with this one.
        if self._memory and not inputs[0].num_done:
            self._lib.memory_clear(self._memory, False)
        positions = [i.num_done for i in inputs]
        # A pooled vector needs the output of every token.
        parts = map(Part, range(len(inputs)), positions, pieces, map(len, pieces))
        self._batch.fill(list(parts))
        status = self._lib.decode(self._context, self._batch.struct)
        if status != 0:
            self._inputs.clear()
            raise EngineError(f"llama_decode returned {status}")
        return [
            self._accept(read, len(piece), self._vector(seq_id))
            for seq_id, (read, piece) in enumerate(zip(inputs, pieces, strict=True))
        ]

    # -- one step ----------------------------------------------------------------------------

    def _next_inputs(self) -> list[_Input]:
        """Choose the inputs of the next batch, in the order in which they came."""
        chosen: list[_Input] = []
        num_tokens = 0
        for waiting in self._inputs.values():
            num_tokens += waiting.num_left
            # The first one is taken however long it is.
            if chosen and (num_tokens > _BATCH_TOKENS or chosen[0].num_done):
                break
            chosen.append(waiting)
        return chosen

    def _vector(self, seq_id: int) -> NDArray[np.float32]:
        """What the batch gave for a sequence, pooled over its tokens in the batch."""
        address = self._lib.get_embeddings_seq(self._context, seq_id)
        buffer = (c.c_float * self._num_values).from_address(address)
        return np.ctypeslib.as_array(buffer)

    def _accept(self, read: _Input, num_tokens: int, vector: NDArray[np.float32]) -> StepResult:
        """Add a piece to its input, and free the slot if that was the last one."""
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
    """Of length 1, as OpenAI's are; zeros stay zeros."""
    length = np.linalg.norm(vector)
    return vector if length == 0 else vector / np.float32(length)
