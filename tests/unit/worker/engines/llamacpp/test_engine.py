"""llama.cpp: the batch that is kept from step to step, while sequences join, leave and end."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.wire.events import FinishReason
from shared.wire.job import Sampling
from tests.support import counter_model
from tests.support.counter_model import expected_text, number_token, trigger_token
from worker.engines.base import EngineSettings
from worker.engines.llamacpp.engine import LlamaCppEngine
from worker.engines.registry import load
from worker.sequence import Sequence, StepResult

_SLOTS = 6
_GREEDY = Sampling(temperature=0.0)
_KINDS: list[dict[str, object]] = [
    {},
    {"stop": ["never"]},
    {"logprobs": 1},
    {"min_tokens": 5},
    {"sampling": Sampling(temperature=1.0, top_k=1, repetition_penalty=1.001)},
    {"sampling": Sampling(temperature=0.0001, seed=1)},
]
"""Ways to draw the same tokens."""


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[LlamaCppEngine]:
    path = tmp_path / "counter.gguf"
    counter_model.write(path)
    made = load("llamacpp", EngineSettings(path, 256, _SLOTS, 1))
    assert isinstance(made, LlamaCppEngine)
    yield made
    made.close()


def _sequence(name: str, start: int, max_tokens: int, **more: object) -> Sequence:
    values = {"sampling": _GREEDY, **more}
    return Sequence((name, 0), [number_token(start)], max_tokens, **values)  # type: ignore[arg-type]


def _collect(engine: LlamaCppEngine, found: dict[str, list[StepResult]]) -> None:
    for result in engine.step():
        assert result.error is None
        found.setdefault(result.key[0], []).append(result)


def _text(results: list[StepResult]) -> str:
    return "".join(result.text for result in results)


def test_only_a_batch_of_the_same_streams_is_kept(engine: LlamaCppEngine) -> None:
    found: dict[str, list[StepResult]] = {}
    engine.submit(_sequence("a", 10, 20))
    _collect(engine, found)
    kept = engine._kept
    assert len(kept) == 1
    _collect(engine, found)
    assert engine._kept is kept
    engine.submit(_sequence("b", 500, 3))
    assert not engine._kept, "one has joined"
    _collect(engine, found)
    assert len(engine._kept) == 2
    engine.cancel(("a", 0))
    assert not engine._kept, "one has left"
    _collect(engine, found)
    _collect(engine, found)
    assert not engine._kept, "one has ended"
    assert _text(found["a"]) == expected_text(10, 3)
    assert _text(found["b"]) == expected_text(500, 3)


def test_a_batch_with_a_prompt_to_read_is_not_kept(engine: LlamaCppEngine) -> None:
    found: dict[str, list[StepResult]] = {}
    engine.submit(_sequence("a", 10, 50))
    _collect(engine, found)
    prompt = [number_token(n) for n in range(200)]
    engine.submit(Sequence(("long", 0), prompt, 2, _GREEDY))
    while "long" not in found or not found["long"][-1].token_ids:
        assert not engine._kept
        _collect(engine, found)
    while engine.has_work:
        _collect(engine, found)
    assert _text(found["long"]) == expected_text(199, 2)
    assert _text(found["a"]) == expected_text(10, 50)


@pytest.mark.parametrize("kind", _KINDS)
def test_every_way_to_draw_gives_the_same_tokens(
    engine: LlamaCppEngine, kind: dict[str, object]
) -> None:
    found: dict[str, list[StepResult]] = {}
    engine.submit(_sequence("a", 990, 30, **kind))
    engine.submit(_sequence("plain", 17, 30))
    while engine.has_work:
        _collect(engine, found)
    assert _text(found["a"]) == expected_text(990, 30)
    assert _text(found["plain"]) == expected_text(17, 30)
    assert [r.finish_reason for r in found["a"] if r.finish_reason] == [FinishReason.LENGTH]
    assert sum(len(result.token_ids) for result in found["a"]) == 30


def test_an_end_token_ends_a_plain_stream_alone(engine: LlamaCppEngine) -> None:
    found: dict[str, list[StepResult]] = {}
    engine.submit(_sequence("a", 17, 5))
    engine.submit(Sequence(("end", 0), [trigger_token("<stop>")], 5, _GREEDY))
    engine.submit(Sequence(("euro", 0), [trigger_token("<euro>")], 5, _GREEDY))
    while engine.has_work:
        _collect(engine, found)
    assert found["end"][-1].finish_reason is FinishReason.STOP and not _text(found["end"])
    assert _text(found["a"]) == expected_text(17, 5)
    assert _text(found["euro"]) == "€ 0 1"


def test_a_prompt_is_scored_whole_without_log_probabilities_of_the_answer(
    engine: LlamaCppEngine,
) -> None:
    prompt = [number_token(n) for n in (10, 11, 12, 13)]
    engine.submit(Sequence(("scored", 0), prompt, 3, _GREEDY, prompt_logprobs=True))
    found: dict[str, list[StepResult]] = {}
    while engine.has_work:
        _collect(engine, found)
    scored = [entry for result in found["scored"] for entry in result.prompt_logprobs]
    assert [entry.chosen.token_id for entry in scored] == prompt
    assert _text(found["scored"]) == expected_text(13, 3)


def test_no_token_is_lost_or_swapped_while_others_come_and_go(engine: LlamaCppEngine) -> None:
    draw = random.Random(7)
    found: dict[str, list[StepResult]] = {}
    wanted: dict[str, str] = {}
    cancelled: set[str] = set()
    for step in range(400):
        if engine.free_slots and draw.random() < 0.15:
            name, start, length = str(step), draw.randrange(1000), draw.randrange(1, 40)
            engine.submit(_sequence(name, start, length, **draw.choice(_KINDS)))
            wanted[name] = expected_text(start, length)
        if engine.has_work and draw.random() < 0.03:
            key = draw.choice(sorted(engine._by_key))
            engine.cancel(key)
            cancelled.add(key[0])
        if engine.has_work:
            _collect(engine, found)
    while engine.has_work:
        _collect(engine, found)
    assert len(wanted) > 30 and cancelled
    for name, text in wanted.items():
        got = _text(found.get(name, []))
        assert text.startswith(got) if name in cancelled else got == text
