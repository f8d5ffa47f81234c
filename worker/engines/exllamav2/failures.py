"""Classifies exceptions of a step, and quarantines requests that repeatedly fail the engine. Runs
in the engine loop; `Quarantine.check` in task threads too."""

import hashlib
import re
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from enum import Enum, auto

import msgspec

from shared.errors import Quarantined
from worker.sequence import Sequence

_MAX_COUNTED = 512
"""Requests whose failures are counted."""
_FORGIVEN_AFTER_S = 600.0
_MAX_STRIKES = 2
_OUT_OF_MEMORY = re.compile("out of memory|CUBLAS_STATUS_ALLOC_FAILED|OutOfMemoryError")
_DEVICE_LOST = re.compile(
    r"CUDA error|device-side assert|CUBLAS_STATUS|CUDNN_STATUS|illegal memory access|cudaError"
    r"|Triton Error \[CUDA\]|NCCL error|HIP error|unspecified launch failure"
)


class StepFailure(Enum):
    OUT_OF_MEMORY = auto()
    """The device works, but its memory is full."""
    DEVICE_LOST = auto()
    """The CUDA context is unusable: every further call in this process fails."""
    OTHER = auto()


def classify(error: BaseException) -> StepFailure:
    """By class where torch has one, else by message, because the kernels raise RuntimeError."""
    causes = [error]
    while (cause := causes[-1].__cause__) is not None and cause not in causes:
        causes.append(cause)
    text = "\n".join(f"{type(cause).__name__}: {cause}" for cause in causes)
    # First: "CUBLAS_STATUS_ALLOC_FAILED" matches both.
    if _OUT_OF_MEMORY.search(text):
        return StepFailure.OUT_OF_MEMORY
    is_lost = any(type(cause).__name__ == "AcceleratorError" for cause in causes)
    if is_lost or _DEVICE_LOST.search(text):
        return StepFailure.DEVICE_LOST
    return StepFailure.OTHER


class Quarantine:
    """Counts the engine failures that each request was part of. Requests are identified by their
    content, because a client's retry has a new id. A success clears the count."""

    def __init__(self, poison: Mapping[str, int]) -> None:
        """`poison`: fingerprint → failures in earlier processes."""
        self._strikes = OrderedDict((f, (n, time.monotonic())) for f, n in poison.items())
        """Fingerprint → failures, monotonic time of the last one. Entries are replaced as a whole,
        so that task threads can read without a lock."""

    def strike(self, sequences: Iterable[Sequence]) -> dict[str, int]:
        """Count one failure for each request in the batch, once for all its choices. Returns the
        failures of each so far."""
        counts = {f: self._count(f) + 1 for f in {_fingerprint(s) for s in sequences}}
        for fingerprint, count in counts.items():
            self._strikes[fingerprint] = (count, time.monotonic())
            self._strikes.move_to_end(fingerprint)
        while len(self._strikes) > _MAX_COUNTED:
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
                f"It is rejected for {_FORGIVEN_AFTER_S / 60:.0f} minutes."
            )

    def _count(self, fingerprint: str) -> int:
        strikes, at = self._strikes.get(fingerprint, (0, 0.0))
        return strikes if time.monotonic() - at < _FORGIVEN_AFTER_S else 0


def _fingerprint(sequence: Sequence) -> str:
    """Of all but the seed, so that all choices of a request have the same one."""
    biases = dict(sorted(sequence.sampling.logit_bias.items()))
    sampling = msgspec.structs.replace(sequence.sampling, seed=None, logit_bias=biases)
    ends = (sequence.max_tokens, sequence.stop, sequence.min_tokens, sequence.ignore_eos)
    text = f"{sequence.prompt}{ends}{sampling}{sequence.grammar}{sequence.logprobs}"
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=16).hexdigest()
