"""llama.cpp: NaN in a model's weights ends the request that meets it, and no other."""

from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest

from shared.errors import EngineError
from shared.wire.job import Sampling
from tests.support import counter_model
from tests.support.counter_model import expected_text, number_token
from worker.engines.base import Engine, EngineSettings
from worker.engines.registry import load
from worker.replica.process import warm_up
from worker.sequence import Sequence, StepResult

_GREEDY = Sampling(temperature=0.0)
_BROKEN = 500
"""The number whose vector is NaN."""
_POISON = [number_token(_BROKEN)] * 400
_LONG = [number_token(1)] * 150
"""llama.cpp computes attention of a longer piece over masked cells, too."""

Loader = Callable[[int, str], Engine]


@pytest.fixture
def loaded(tmp_path: Path) -> Iterator[Loader]:
    made: list[Engine] = []

    def make(slots: int, task: str = "generate") -> Engine:
        path = tmp_path / f"{task}.gguf"
        pooling = gguf.PoolingType.MEAN if task == "embed" else None
        counter_model.write(path, pooling, nan_token=number_token(_BROKEN))
        made.append(load("llamacpp", EngineSettings(path, 1024, slots, 1, task=task)))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


def _sequence(name: str, prompt: list[int], max_tokens: int = 4, **more: object) -> Sequence:
    return Sequence((name, 0), prompt, max_tokens, _GREEDY, **more)  # type: ignore[arg-type]


def _run(engine: Engine, *sequences: Sequence) -> dict[str, list[StepResult]]:
    for sequence in sequences:
        engine.submit(sequence)
    found: dict[str, list[StepResult]] = {}
    while engine.has_work:
        for result in engine.step():
            found.setdefault(result.key[0], []).append(result)
    return found


def _text(results: list[StepResult]) -> str:
    assert all(result.error is None for result in results), results
    return "".join(result.text for result in results)


def _error(results: list[StepResult]) -> str:
    assert isinstance(results[-1].error, EngineError), results
    assert not any(result.token_ids for result in results)
    return results[-1].error.message


@pytest.mark.parametrize(
    "sampling",
    [
        _GREEDY,
        Sampling(temperature=1.0, seed=1),
        Sampling(temperature=0.0, repetition_penalty=1.1),
        Sampling(temperature=0.0, logit_bias={5: 1.0}),
    ],
)
@pytest.mark.parametrize("num_alternatives", [None, 2])
def test_a_prompt_that_meets_nan_is_an_error(
    loaded: Loader, sampling: Sampling, num_alternatives: int | None
) -> None:
    engine = loaded(2, "generate")
    prompt = [number_token(_BROKEN), number_token(17)]
    bad = Sequence(("bad", 0), prompt, 4, sampling, logprobs=num_alternatives)
    assert "NaN" in _error(_run(engine, bad)["bad"])


def test_nan_in_the_middle_of_an_answer_ends_it(loaded: Loader) -> None:
    engine = loaded(1, "generate")
    results = _run(engine, _sequence("s", [number_token(_BROKEN - 3)], 8))["s"]
    assert "".join(result.text for result in results) == " 498 499 500"
    assert isinstance(results[-1].error, EngineError)


def test_the_streams_beside_it_go_on_token_for_token(loaded: Loader) -> None:
    engine = loaded(3, "generate")
    streams = [_sequence(str(start), [number_token(start)], 60) for start in (17, 600)]
    engine.submit(streams[0])
    for _ in range(5):
        engine.step()
    found = _run(engine, _sequence("bad", _POISON), streams[1])
    assert "NaN" in _error(found["bad"])
    assert _text(found["17"]) == expected_text(22, 55)
    assert _text(found["600"]) == expected_text(600, 60)
    assert all(result.token_ids for result in found["17"]), "no progress in an answer"


def test_the_next_sequence_of_the_slot_is_not_spoiled(loaded: Loader) -> None:
    engine = loaded(1, "generate")
    _run(engine, _sequence("bad", [*_POISON, number_token(17)]))
    good = _run(engine, _sequence("good", [*_LONG, number_token(17)]))["good"]
    assert _text(good) == expected_text(17, 4)


def test_nor_the_next_after_one_that_was_cancelled_while_it_read(loaded: Loader) -> None:
    engine = loaded(1, "generate")
    engine.submit(_sequence("bad", [*_POISON, *_POISON]))
    while not any(result.prefilled_tokens > 300 for result in engine.step()):
        pass
    engine.cancel(("bad", 0))
    good = _run(engine, _sequence("good", [*_LONG, number_token(17)]))["good"]
    assert _text(good) == expected_text(17, 4)


def test_a_prompt_that_is_read_again_is_reported_and_scored_once(loaded: Loader) -> None:
    engine = loaded(2, "generate")
    prompt = [number_token(n) for n in range(60)]
    engine.submit(_sequence("scored", prompt, 3, logprobs=1, prompt_logprobs=True))
    found = _run(engine, _sequence("bad", [number_token(_BROKEN)]))
    assert "NaN" in _error(found["bad"])
    entries = [entry for r in found["scored"] for entry in r.prompt_logprobs]
    assert [entry.chosen.token_id for entry in entries] == prompt
    read = [r.prefilled_tokens for r in found["scored"] if r.prefilled_tokens]
    assert read == sorted(set(read)) and read[-1] == len(prompt)
    assert _text(found["scored"]) == expected_text(59, 3)


@pytest.mark.parametrize("num_steps", [0, 1, 3])
def test_a_scored_prompt_of_several_chunks_is_read_again_to_its_end(
    loaded: Loader, monkeypatch: pytest.MonkeyPatch, num_steps: int
) -> None:
    engine = loaded(1, "generate")
    prompt = [number_token(n) for n in range(60)]
    engine.submit(_sequence("scored", prompt, 3, logprobs=1, prompt_logprobs=True))
    results = [result for _ in range(num_steps) for result in engine.step()]
    with monkeypatch.context() as patch:
        patch.setattr(engine._logits, "rows", lambda num_rows: np.full((num_rows, 2), np.nan))
        results += engine.step()
    results += _run(engine)["scored"]
    entries = [entry for result in results for entry in result.prompt_logprobs]
    assert [entry.chosen.token_id for entry in entries] == prompt
    assert _text(results) == expected_text(59, 3)


def test_a_scored_prompt_with_nan_is_an_error(loaded: Loader) -> None:
    engine = loaded(1, "generate")
    prompt = [number_token(n) for n in (1, 2, _BROKEN, 4)]
    bad = _sequence("bad", prompt, 0, logprobs=1, prompt_logprobs=True)
    assert "NaN" in _error(_run(engine, bad)["bad"])


def test_an_input_to_embed_with_nan_is_an_error_of_that_input_alone(loaded: Loader) -> None:
    engine = loaded(4, "embed")
    good, bad = [number_token(n) for n in range(100)], [number_token(_BROKEN)] * 100
    alone = _run(engine, _sequence("a", good, 0))["a"][-1].embedding
    found = _run(engine, _sequence("a", good, 0), _sequence("bad", bad, 0), _sequence("b", good, 0))
    assert "NaN" in _error(found["bad"])
    assert alone is not None
    for name in "ab":
        vector = np.frombuffer(found[name][-1].embedding or b"", "<f4")
        assert np.abs(vector - np.frombuffer(alone, "<f4")).max() < 1e-6
    after = _run(engine, _sequence("a", [*good, *good], 0))["a"][-1]
    assert np.isfinite(np.frombuffer(after.embedding or b"", "<f4")).all() and after.embedding


@pytest.mark.parametrize("weight", [np.nan, np.inf])
@pytest.mark.parametrize("task", ["generate", "embed"])
def test_a_model_without_valid_numbers_does_not_pass_the_warm_up(
    tmp_path: Path, weight: float, task: str
) -> None:
    pooling = gguf.PoolingType.MEAN if task == "embed" else None
    counter_model.write(tmp_path / "bad.gguf", pooling, norm=weight)
    engine = load("llamacpp", EngineSettings(tmp_path / "bad.gguf", 256, 2, 1, task=task))
    with pytest.raises(EngineError, match="no valid numbers"):
        warm_up(engine)
    engine.close()
