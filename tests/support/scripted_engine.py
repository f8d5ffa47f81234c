"""An engine that does what a test tells it: for what a real one cannot do on demand."""

import re
from collections import deque

from shared.errors import EngineError, InvalidRequest, LlmisError
from shared.wire.events import FinishReason
from worker.sequence import Sequence, StepResult


class ByteVocabulary:
    """A token a byte."""

    max_token_bytes = 1
    adds_bos = False
    bos_text = ""
    eos_text = ""
    fill_in_middle = None

    def __init__(self, control_tokens: dict[str, int] | None = None) -> None:
        self.control_tokens = control_tokens or {}

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """A control token is read as such where `parse_special` says so."""
        if not (parse_special and self.control_tokens):
            return list(text.encode())
        parts = re.split("(" + "|".join(map(re.escape, self.control_tokens)) + ")", text)
        tokens: list[int] = []
        for part in parts:
            known = self.control_tokens.get(part)
            tokens += list(part.encode()) if known is None else [known]
        return tokens

    def name(self, token: int) -> bytes:
        names = {number: text for text, number in self.control_tokens.items()}
        return names[token].encode() if token in names else self.piece(token)

    def piece(self, token: int) -> bytes:
        return bytes([token]) if token < 256 else b""


class ScriptedEngine:
    """Gives every sequence the texts of its script, one a step; an exception is raised."""

    name = "scripted"
    embeds = False
    context_length = 100
    vocab_size = 256
    chat_template: str | None = None
    tool_use_template: str | None = None
    vocabulary = ByteVocabulary()

    def __init__(self, slots: int, script: list[str | LlmisError]) -> None:
        self._slots = slots
        self._script = script
        self._running: dict[tuple[str, int], deque[str | LlmisError]] = {}
        self.submitted: list[tuple[str, int]] = []
        self.scripts: dict[str, list[str | LlmisError]] = {}
        """Job id → a script of its own."""
        self.refused: dict[str, LlmisError] = {}
        """Job id → what `submit` raises for it."""
        self.too_large: set[str] = set()
        """Job ids that there is no room for."""

    @property
    def free_slots(self) -> int:
        return self._slots - len(self._running)

    @property
    def kv_usage(self) -> None:
        return None

    @property
    def device_bytes(self) -> dict[str, int]:
        return {}

    @property
    def has_work(self) -> bool:
        return bool(self._running)

    def check(self, sequence: Sequence) -> None:
        if sequence.logprobs is not None:
            raise InvalidRequest("no logprobs here", param="logprobs")

    def can_admit(self, sequence: Sequence) -> bool:
        return self.free_slots > 0 and sequence.key[0] not in self.too_large

    def submit(self, sequence: Sequence) -> None:
        assert self.can_admit(sequence), "the loop admits what there is room for"
        if sequence.key[0] in self.refused:
            raise self.refused[sequence.key[0]]
        self.submitted.append(sequence.key)
        self._running[sequence.key] = deque(self.scripts.get(sequence.key[0], self._script))

    def step(self) -> list[StepResult]:
        results = []
        for key, script in list(self._running.items()):
            item = script.popleft()
            if isinstance(item, EngineError):
                self._running.clear()
                raise item
            if isinstance(item, InvalidRequest):
                del self._running[key]
                results.append(StepResult(key, error=item))
                continue
            reason = None if script else FinishReason.STOP
            if reason:
                del self._running[key]
            assert isinstance(item, str), "a script is texts, EngineErrors and InvalidRequests"
            results.append(StepResult(key, item, [1], reason))
        return results

    def cancel(self, key: tuple[str, int]) -> None:
        self._running.pop(key, None)

    def close(self) -> None:
        self._running.clear()
