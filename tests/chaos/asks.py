"""What the clients ask for, and how an answer is judged: to the letter."""

import random
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from tests.chaos.pauses import Pauses
from tests.support.counter_model import NUMBERS, expected_text

BUSY_CODES = {
    "replica_lost",
    "queue_unavailable",
    "queue_full",
    "model_unloaded",
    "model_failed",
    "no_node",
    "request_quarantined",
}
"""Codes with which a service under faults may refuse what it would serve without."""
_BUSY_STATUS = {400, 429, 503}


class Outcome(Enum):
    RIGHT = "right"
    """Whole and right to the letter."""
    REFUSED = "refused"
    """With a status and a code that says why; what came before is right."""
    CANCELLED = "cancelled"
    """By its client."""
    CUT = "cut"
    """The connection broke; what came before is right."""
    WRONG = "wrong"
    HUNG = "hung"
    """Nothing came for longer than a client waits."""


@dataclass(frozen=True)
class Ask:
    """A completion of a counter model."""

    kind: str
    model: str
    start: int
    max_tokens: int
    num_choices: int = 1
    stop: str | None = None
    priority: str = "interactive"

    @property
    def expected(self) -> str:
        text = expected_text(self.start, self.max_tokens)
        return text if self.stop is None else text.partition(self.stop)[0]

    @property
    def finish_reason(self) -> str:
        is_whole = self.expected == expected_text(self.start, self.max_tokens)
        return "length" if is_whole else "stop"

    def body(self, stream: bool) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.model,
            "prompt": str(self.start),
            "max_tokens": self.max_tokens,
            "temperature": 0,
            "n": self.num_choices,
            "stream": stream,
            "priority": self.priority,
        }
        return body | ({"stop": self.stop} if self.stop else {})


@dataclass
class Answer:
    """What has come so far, over one connection or several."""

    texts: dict[int, str] = field(default_factory=dict)
    finish_reasons: dict[int, str] = field(default_factory=dict)
    error: dict[str, Any] | None = None
    status: int = 200
    is_done: bool = False
    is_hung: bool = False
    was_cancelled: bool = False
    """Its client has asked for that, or has left."""
    is_left: bool = False
    """Its client has closed the connection."""
    last_event_id: str | None = None
    pauses: Pauses = field(default_factory=Pauses)

    def add(self, chunk: dict[str, Any]) -> None:
        if any(choice["text"] for choice in chunk["choices"]):
            self.pauses.note_text()
        for choice in chunk["choices"]:
            index = choice["index"]
            self.texts[index] = self.texts.get(index, "") + choice["text"]
            if choice["finish_reason"] is not None:
                self.finish_reasons[index] = choice["finish_reason"]


def judge(ask: Ask, answer: Answer) -> tuple[Outcome, str]:
    """The outcome, and what is wrong."""
    for index, text in answer.texts.items():
        if not ask.expected.startswith(text):
            return Outcome.WRONG, f"choice {index}: {_difference(ask.expected, text)}"
    if answer.is_done:
        missing = [i for i in range(ask.num_choices) if answer.texts.get(i, "") != ask.expected]
        if missing:
            return Outcome.WRONG, f"done, but choices {missing} are not whole"
        reasons = set(answer.finish_reasons.values())
        if reasons != {ask.finish_reason}:
            return Outcome.WRONG, f"finish reasons {reasons}, not {ask.finish_reason}"
        return Outcome.RIGHT, ""
    if answer.error is not None:
        return _judge_error(answer)
    if answer.is_left:
        return Outcome.CANCELLED, ""
    if answer.is_hung:
        return Outcome.HUNG, "nothing came for longer than a client waits"
    return Outcome.CUT, ""


def _judge_error(answer: Answer) -> tuple[Outcome, str]:
    assert answer.error is not None
    code = answer.error.get("code")
    if code == "going_away":
        # A web process that stops: the answer is resumed in another one, as after a cut.
        return Outcome.CUT, ""
    if code == "request_cancelled" and answer.was_cancelled:
        return Outcome.CANCELLED, ""
    is_busy = code in BUSY_CODES or (code is None and answer.error["type"] == "service_unavailable")
    if is_busy and answer.status in _BUSY_STATUS | {200} and answer.error["message"]:
        return Outcome.REFUSED, code or answer.error["message"]
    return Outcome.WRONG, f"status {answer.status}, error {answer.error}"


def _difference(expected: str, text: str) -> str:
    at = next(
        (i for i, (a, b) in enumerate(zip(expected, text, strict=False)) if a != b), len(expected)
    )
    return (
        f"differs at character {at} of {len(expected)}: {text[max(0, at - 20) : at + 30]!r} "
        f"in place of {expected[max(0, at - 20) : at + 30]!r}"
    )


def draw(kind: str, rng: random.Random) -> Ask:
    """Most ask the model with two replicas; a few others keep the rest of the service busy."""
    model = rng.choices(("pair", "counter", "counter-small"), (6, 3, 1))[0]
    if kind == "long streams":
        # So long that faults hit each of them.
        return Ask(kind, "pair", rng.randrange(NUMBERS), rng.randrange(6000, 12_000))
    max_tokens = rng.randrange(20, 400 if model == "counter-small" else 1800)
    start, num_choices, stop = rng.randrange(NUMBERS), 1, None
    if kind == "leaves batch jobs":
        priority = rng.choice(("background", "batch"))
        return Ask(kind, "pair", start, max_tokens, priority=priority)
    if rng.random() < 0.2:
        num_choices, max_tokens = rng.randint(2, 3), max_tokens // 3 + 1
    if rng.random() < 0.2:
        stop = f" {(start + rng.randint(1, max_tokens)) % NUMBERS}"
    return Ask(kind, model, start, max_tokens, num_choices, stop)
