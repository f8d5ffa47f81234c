"""The real adapter, driven by the real engine loop, over a scripted exllamav2."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support import exl2_folder
from tests.support.loop_sink import Sink
from worker.engines.base import EngineSettings
from worker.engines.exllamav2.engine import ExLlamaV2Engine
from worker.engines.registry import load
from worker.replica.attempt import Attempt
from worker.replica.engine_loop import EngineLoop
from worker.sequence import Sequence, StepResult


def make_engine(path: Path, **options: Any) -> ExLlamaV2Engine:
    if not (path / "config.json").exists():
        exl2_folder.write(path)
    settings = {"path": path, "context_length": 2048, "slots": 4, "threads": 1} | options
    engine = load("exllamav2", EngineSettings(**settings))
    assert isinstance(engine, ExLlamaV2Engine)
    return engine


@contextmanager
def running(engine: ExLlamaV2Engine) -> Iterator[tuple[EngineLoop, Sink]]:
    """A loop that is to be started, and its sink."""
    sink = Sink()
    loop = EngineLoop(engine, sink.emit)
    try:
        yield loop, sink
    finally:
        loop.stop()


def run_all(engine: ExLlamaV2Engine, *runs: Attempt) -> Sink:
    """Run jobs that come at the same moment to their ends."""
    with running(engine) as (loop, sink):
        for run in runs:
            for sequence in run.sequences:
                if sequence.grammar is not None:
                    engine.check(sequence)
            loop.submit(run)
        loop.start()
        sink.wait_for_ends(len(runs))
    return sink


def step_until(
    engine: ExLlamaV2Engine, is_done: Callable[[list[StepResult]], bool], limit: int = 200
) -> list[StepResult]:
    """Step without a loop; returns all that came."""
    seen: list[StepResult] = []
    for _ in range(limit):
        seen += engine.step()
        if is_done(seen):
            return seen
    raise AssertionError(f"not within {limit} steps")


def admit(engine: ExLlamaV2Engine, sequence: Sequence) -> bool:
    """Submit if the engine would take it."""
    if not engine.can_admit(sequence):
        return False
    engine.submit(sequence)
    return True
