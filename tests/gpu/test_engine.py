"""The counter model through the real engine: nothing lost, doubled or swapped."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shared.wire.events import FinishReason
from shared.wire.job import Sampling
from tests.gpu.driving import GREEDY, Outcome, run, tokens_of
from tests.gpu.models import number_token
from tests.support.counter_model import expected_text
from worker.engines import registry
from worker.engines.base import Engine, EngineSettings
from worker.sequence import Sequence

Folder = Callable[[str], Path]


def _load(folder: Path, **settings: object) -> Engine:
    known = {"context_length": 2048, "slots": 64, "threads": 1, "quant": "fp16", **settings}
    return registry.load("exllamav2", EngineSettings(path=folder, **known))  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=["counter-fp16", "counter-gptq"])
def engine(request: pytest.FixtureRequest, model_folder: Folder) -> Iterator[Engine]:
    loaded = _load(model_folder(request.param))
    yield loaded
    loaded.close()


def _sequence(
    engine: Engine, name: str, prompt: str, max_tokens: int, sampling: Sampling = GREEDY
) -> Sequence:
    return Sequence((name, 0), tokens_of(engine, prompt), max_tokens, sampling)


def test_a_stream_is_exact(engine: Engine) -> None:
    (found,) = run(engine, [_sequence(engine, "a", "995", 300)]).values()
    assert found.text == expected_text(995, 300)
    assert found.token_ids == [number_token((996 + i) % 1000) for i in range(300)]
    assert found.finish_reason is FinishReason.LENGTH


def test_64_at_once_with_prompts_of_many_lengths_are_exact(engine: Engine) -> None:
    """Among them lengths just below, at and above the ends of pages."""
    lengths = [1, 2, 254, 255, 256, 257, 511, 512, 513, *range(20, 75)]
    assert len(lengths) == 64
    sequences = []
    for i, length in enumerate(lengths):
        prompt = [number_token((7 * i + j) % 1000) for j in range(length)]
        sequences.append(Sequence((str(i), 0), prompt, 200 + i, GREEDY))
    found = run(engine, sequences)
    for i, length in enumerate(lengths):
        assert found[str(i), 0].text == expected_text((7 * i + length - 1) % 1000, 200 + i), i
    assert engine.free_slots == 64


def test_more_than_the_slots_wait_for_their_turn(engine: Engine) -> None:
    sequences = [_sequence(engine, str(i), str(i), 20 + i % 30) for i in range(150)]
    found = run(engine, sequences)
    for i in range(150):
        assert found[str(i), 0].text == expected_text(i, 20 + i % 30)


def test_a_cancelled_sequence_leaves_the_others_alone(engine: Engine) -> None:
    sequences = [_sequence(engine, str(i), str(100 * i), 400) for i in range(4)]

    def cancel_one(found: dict[tuple[str, int], Outcome]) -> None:
        if len(found["1", 0].token_ids) == 50:
            engine.cancel(("1", 0))

    found = run(engine, sequences, cancel_one)
    assert len(found["1", 0].token_ids) == 50
    assert found["1", 0].finish_reason is None
    for i in (0, 2, 3):
        assert found[str(i), 0].text == expected_text(100 * i, 400)
    assert engine.free_slots == 64
    engine.cancel(("1", 0))  # an unknown key is ignored


def test_a_prompt_that_is_cancelled_while_it_is_read_frees_its_pages(engine: Engine) -> None:
    prompt = [number_token(i % 1000) for i in range(1900)]
    for i in range(40):
        engine.submit(Sequence((f"long {i}", 0), prompt[i:], 100, GREEDY))
        engine.step()
        engine.cancel((f"long {i}", 0))
    assert not engine.has_work
    (found,) = run(engine, [_sequence(engine, "after", "3", 30)]).values()
    assert found.text == expected_text(3, 30)


@pytest.mark.parametrize("stop", [" 12", "2 13", "12 13 14", "1 1"])
def test_a_stop_string_ends_the_text_before_it(engine: Engine, stop: str) -> None:
    sequence = _sequence(engine, "a", "5", 100)
    sequence.stop = [stop]
    (found,) = run(engine, [sequence]).values()
    whole = expected_text(5, 100)
    assert found.text == whole[: whole.index(stop)]
    assert found.finish_reason is FinishReason.STOP


def test_text_that_only_began_like_a_stop_string_is_not_lost(engine: Engine) -> None:
    sequence = _sequence(engine, "a", "5", 10)
    sequence.stop = [" 15 99"]
    (found,) = run(engine, [sequence]).values()
    assert found.text == expected_text(5, 10)
    assert found.finish_reason is FinishReason.LENGTH


def test_the_end_token_ends_a_text(engine: Engine) -> None:
    (found,) = run(engine, [_sequence(engine, "a", "5<stop>", 10)]).values()
    assert (found.text, found.finish_reason) == ("", FinishReason.STOP)


@pytest.mark.parametrize(("trigger", "text"), [("<euro>", "€ 0 1"), ("<smile>", "😀 0 1")])
def test_characters_of_several_tokens_come_whole(engine: Engine, trigger: str, text: str) -> None:
    num_tokens = len(text.encode()) - 2 * len(" 0") + 2
    texts = []
    sequence = _sequence(engine, "a", trigger, num_tokens)
    (found,) = run(engine, [sequence], lambda f: texts.append(f["a", 0].text)).values()
    assert found.text == text
    assert not any("\ufffd" in seen for seen in texts)


def test_half_a_character_at_the_end_is_no_error(engine: Engine) -> None:
    (found,) = run(engine, [_sequence(engine, "a", "<smile>", 2)]).values()
    assert found.finish_reason is FinishReason.LENGTH
    assert len(found.token_ids) == 2


def test_a_repeated_prompt_is_read_from_the_cache(engine: Engine) -> None:
    # Steps of three: no other test has left such a prompt in the cache.
    prompt = [number_token(3 * i % 1000) for i in range(700)]
    (first,) = run(engine, [Sequence(("first", 0), prompt, 20, GREEDY)]).values()
    (second,) = run(engine, [Sequence(("second", 0), [*prompt, 9], 20, GREEDY)]).values()
    assert first.cached_tokens < 512
    assert 512 <= second.cached_tokens <= 700
    assert second.finish_reason is not None


def test_a_seed_at_temperature_1_counts_too(engine: Engine) -> None:
    """The best logit leads by so much; and what pads the output matrix is never drawn."""
    hot = Sampling(temperature=1.0, seed=1)
    found = run(engine, [_sequence(engine, str(i), str(i), 100, hot) for i in range(16)])
    for i in range(16):
        assert found[str(i), 0].text == expected_text(i, 100)


def test_a_full_context_is_exact(engine: Engine) -> None:
    prompt = [number_token(i % 1000) for i in range(1000)]
    room = engine.context_length - len(prompt)
    (found,) = run(engine, [Sequence(("a", 0), prompt, room, GREEDY)]).values()
    assert found.text == expected_text(999, room)


@pytest.mark.parametrize("quant", ["q8", "q6", "q4"])
def test_a_quantised_cache_counts(model_folder: Folder, quant: str) -> None:
    engine = _load(model_folder("counter-gptq"), quant=quant, slots=8)
    try:
        found = run(engine, [_sequence(engine, str(i), str(100 * i), 300) for i in range(8)])
        for i in range(8):
            assert found[str(i), 0].text == expected_text(100 * i, 300)
    finally:
        engine.close()


def test_a_batch_larger_than_the_pages_waits_and_loses_nothing(model_folder: Folder) -> None:
    """Four pages of 256 tokens; each sequence needs two."""
    engine = _load(model_folder("counter-fp16"), context_length=512, slots=8, cache_tokens=1024)
    try:
        sequences = [_sequence(engine, str(i), str(10 * i), 300) for i in range(9)]
        engine.submit(sequences[0])
        engine.submit(sequences[1])
        assert engine.free_slots == 6
        assert not engine.can_admit(sequences[2])
        for key in (sequences[0].key, sequences[1].key):
            engine.cancel(key)
        found = run(engine, sequences)
        for i in range(9):
            assert found[str(i), 0].text == expected_text(10 * i, 300)
            assert found[str(i), 0].error is None
    finally:
        engine.close()


def test_closing_gives_the_memory_back(model_folder: Folder) -> None:
    """All but what the CUDA context and the libraries keep until the process ends."""
    import torch

    folder = model_folder("counter-fp16")
    _load(folder, slots=4).close()
    before, _ = torch.cuda.mem_get_info()
    for _ in range(3):
        engine = _load(folder, slots=4)
        run(engine, [_sequence(engine, "a", "1", 50)])
        engine.close()
    after, _ = torch.cuda.mem_get_info()
    assert before - after < 64 << 20
