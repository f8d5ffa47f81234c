"""An engine that does what a test tells it: for what a real one cannot do on demand."""

from collections import deque

from shared.errors import EngineError
from shared.messages import FinishReason
from worker.engines.protocol import Sequence, StepResult


class ScriptedEngine:
    """Gives every sequence the texts of its script, one a step; an exception is raised."""

    name = "scripted"
    context_length = 100
    vocab_size = 256
    chat_template = None
    max_token_bytes = 1
    adds_bos = False
    bos_text = ""
    eos_text = ""

    def __init__(self, slots: int, script: list[str | EngineError]) -> None:
        self._slots = slots
        self._script = script
        self._running: dict[tuple[str, int], deque[str | EngineError]] = {}
        self.submitted: list[tuple[str, int]] = []

    @property
    def free_slots(self) -> int:
        return self._slots - len(self._running)

    @property
    def has_work(self) -> bool:
        return bool(self._running)

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        return list(text.encode())

    def submit(self, sequence: Sequence) -> None:
        assert self.free_slots, "the loop admits into free slots only"
        self.submitted.append(sequence.key)
        self._running[sequence.key] = deque(self._script)

    def step(self) -> list[StepResult]:
        results = []
        for key, script in list(self._running.items()):
            item = script.popleft()
            if isinstance(item, EngineError):
                self._running.clear()
                raise item
            reason = None if script else FinishReason.STOP
            if reason:
                del self._running[key]
            results.append(StepResult(key, item, [1], reason))
        return results

    def cancel(self, key: tuple[str, int]) -> None:
        self._running.pop(key, None)

    def close(self) -> None:
        self._running.clear()
