"""Runs sequences through an engine as the engine loop does, and collects what it says."""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from shared.errors import LlmisError
from shared.wire.events import FinishReason, TokenLogprobs
from shared.wire.job import Sampling
from worker.engines.base import Engine
from worker.sequence import Sequence, StepResult

GREEDY = Sampling(temperature=0.0)
_MAX_STEPS = 20_000


@dataclass
class Outcome:
    """All that an engine said of one sequence."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    cached_tokens: int = 0
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    error: LlmisError | None = None

    def add(self, result: StepResult) -> None:
        assert self.finish_reason is None, "nothing comes after the end"
        self.text += result.text
        self.token_ids += result.token_ids
        self.finish_reason = result.finish_reason
        self.cached_tokens = max(self.cached_tokens, result.cached_tokens)
        self.logprobs += result.logprobs
        self.error = result.error or self.error


def run(
    engine: Engine,
    sequences: Iterable[Sequence],
    after_step: Callable[[dict[tuple[str, int], Outcome]], None] = lambda _: None,
) -> dict[tuple[str, int], Outcome]:
    """Admit in order and step until all have ended; fails when that takes too long.

    `after_step` may look at what there is so far, and cancel.
    """
    waiting = deque(sequences)
    found = {sequence.key: Outcome() for sequence in waiting}
    for _ in range(_MAX_STEPS):
        while waiting and engine.can_admit(waiting[0]):
            engine.submit(waiting.popleft())
        if not engine.has_work:
            assert not waiting, "the engine is idle and takes nobody"
            return found
        for result in engine.step():
            found[result.key].add(result)
        after_step(found)
    raise AssertionError(f"not done after {_MAX_STEPS} steps: {found}")


def tokens_of(engine: Engine, text: str) -> list[int]:
    return engine.vocabulary.tokenize(text, add_special=True, parse_special=True)
