"""What an exception in a step means, and which requests are under suspicion.

Runs in the engine loop; `Quarantine.check` in task threads too.
"""

import hashlib
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from enum import Enum, auto

from shared.errors import Quarantined
from worker.engines.protocol import Sequence

_MAX_SUSPECTS = 512
_FORGIVEN_AFTER_S = 600.0
_MAX_STRIKES = 2
_OUT_OF_MEMORY = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "OutOfMemoryError")
_DEVICE_IS_LOST = (
    "CUDA error", "device-side assert", "CUBLAS_STATUS", "CUDNN_STATUS", "illegal memory access",
    "cudaError", "Triton Error [CUDA]", "NCCL error", "HIP error", "unspecified launch failure",
)  # fmt: skip


class Failure(Enum):
    OUT_OF_MEMORY = auto()
    """The device is fine, there was no memory left on it."""
    DEVICE_LOST = auto()
    """The CUDA context is poisoned: every further call in this process fails."""
    OTHER = auto()


def classify(error: BaseException) -> Failure:
    """By class where torch has one, else by the message: the kernels raise RuntimeError."""
    causes = [error]
    while (cause := causes[-1].__cause__) is not None and cause not in causes:
        causes.append(cause)
    texts = [f"{type(cause).__name__}: {cause}" for cause in causes]
    if any(word in text for text in texts for word in _OUT_OF_MEMORY):
        return Failure.OUT_OF_MEMORY
    is_lost = any(word in text for text in texts for word in _DEVICE_IS_LOST)
    if is_lost or any(type(cause).__name__ == "AcceleratorError" for cause in causes):
        return Failure.DEVICE_LOST
    return Failure.OTHER


class Quarantine:
    """Counts the failures that a request was part of, by what it asks for and not by its id:
    it is the client's next try that brings a bad request back. A success acquits."""

    def __init__(self, suspects: Mapping[str, int]) -> None:
        """`suspects`: fingerprint → failures in processes before this one."""
        self._strikes = OrderedDict((f, (n, time.monotonic())) for f, n in suspects.items())
        """Fingerprint → failures, monotonic time of the last one. Replaced, never changed."""

    def strike(self, sequences: Iterable[Sequence]) -> dict[str, int]:
        """Count one failure against each request that was part of it, however many of its
        choices were. Returns the failures of each so far."""
        counts = {f: self._count(f) + 1 for f in {_fingerprint(s) for s in sequences}}
        for fingerprint, count in counts.items():
            self._strikes[fingerprint] = (count, time.monotonic())
            self._strikes.move_to_end(fingerprint)
        while len(self._strikes) > _MAX_SUSPECTS:
            self._strikes.popitem(last=False)
        return counts

    def acquit(self, sequence: Sequence) -> None:
        if self._strikes:
            self._strikes.pop(_fingerprint(sequence), None)

    def check(self, sequence: Sequence) -> None:
        """Raises Quarantined."""
        if self._strikes and self._count(_fingerprint(sequence)) >= _MAX_STRIKES:
            raise Quarantined(
                f"The engine failed {_MAX_STRIKES} times while it ran this request. "
                f"It is refused for {_FORGIVEN_AFTER_S / 60:.0f} minutes."
            )

    def _count(self, fingerprint: str) -> int:
        strikes, at = self._strikes.get(fingerprint, (0, 0.0))
        return strikes if time.monotonic() - at < _FORGIVEN_AFTER_S else 0


def _fingerprint(sequence: Sequence) -> str:
    """Of everything but the seed: another choice of the same request is the same request."""
    s = sequence.sampling
    settings = (
        sequence.max_tokens, sequence.stop, sequence.grammar, sequence.logprobs,
        sequence.min_tokens, sequence.ignore_eos, s.temperature, s.top_p, s.top_k, s.min_p,
        s.presence_penalty, s.frequency_penalty, s.repetition_penalty,
        sorted(s.logit_bias.items()),
    )  # fmt: skip
    text = f"{sequence.prompt}{settings}"
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=16).hexdigest()
