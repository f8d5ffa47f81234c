"""The embedding engine on real models: vectors against numpy, batches, pieces, cancelling."""

from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest

from bench import random_model
from shared.errors import SettingsError
from shared.wire.events import FinishReason
from shared.wire.job import Sampling
from tests.support import counter_model
from tests.support.embedding_model import Bert, Vector, mean_vector, normalized, write_mean
from worker.engines import registry
from worker.engines.base import EngineSettings
from worker.engines.llamacpp import embedding_engine
from worker.engines.llamacpp.embedding_engine import LlamaEmbeddingEngine
from worker.sequence import Sequence, StepResult

_BERT = Bert()
_LOOSE = 2e-3
"""llama.cpp computes GELU out of a table of half-precision numbers."""
_POOLINGS = {"mean": gguf.PoolingType.MEAN, "cls": gguf.PoolingType.CLS,
             "last": gguf.PoolingType.LAST}  # fmt: skip


def _load(path: Path, *, slots: int = 4, context_length: int = 4096) -> LlamaEmbeddingEngine:
    settings = EngineSettings(path, context_length, slots, 1, task="embed")
    engine = registry.load("llamacpp", settings)
    assert isinstance(engine, LlamaEmbeddingEngine)
    return engine


def _sequence(name: str, tokens: list[int]) -> Sequence:
    return Sequence((name, 0), tokens, 0, Sampling())


def _steps(engine: LlamaEmbeddingEngine, inputs: list[list[int]]) -> Iterator[list[StepResult]]:
    """The engine's steps while it is kept as full as it can be."""
    waiting = [_sequence(str(i), tokens) for i, tokens in enumerate(inputs)]
    while waiting or engine.has_work:
        while waiting and engine.can_admit(waiting[0]):
            engine.submit(waiting.pop(0))
        yield engine.step()


def _vectors(engine: LlamaEmbeddingEngine, inputs: list[list[int]]) -> list[Vector]:
    found: dict[str, Vector] = {}
    for results in _steps(engine, inputs):
        for result in results:
            if result.finish_reason is not None:
                assert result.embedding is not None
                assert result.finish_reason is FinishReason.STOP
                assert result.token_ids == []
                found[result.key[0]] = np.frombuffer(result.embedding, "<f4")
    return [found[str(i)] for i in range(len(inputs))]


def _random_inputs(*lengths: int, low: int = 280, high: int = 1200) -> list[list[int]]:
    rng = np.random.default_rng(sum(lengths))
    return [rng.integers(low, high, length).tolist() for length in lengths]


@pytest.mark.parametrize("pooling", _POOLINGS)
def test_known_vectors_of_a_causal_model(tmp_path: Path, pooling: str) -> None:
    write_mean(tmp_path / "m.gguf", _POOLINGS[pooling])
    engine = _load(tmp_path / "m.gguf")
    table = counter_model.embeddings()
    # About a batch's 512 tokens, some of them read in pieces, and a whole context.
    inputs = _random_inputs(1, 5, 511, 512, 513, 1, 300, 300, 1024, 1025, 4096, 2)
    for tokens, found in zip(inputs, _vectors(engine, inputs), strict=True):
        expected = {
            "mean": mean_vector(tokens),
            "cls": normalized(table[tokens[0]]),
            "last": normalized(table[tokens[-1]]),
        }[pooling]
        assert np.abs(found - expected).max() < 1e-6, len(tokens)
    engine.close()


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_an_encoder_against_its_reference(tmp_path: Path, pooling: str) -> None:
    _BERT.write(tmp_path / "b.gguf", _POOLINGS[pooling])
    engine = _load(tmp_path / "b.gguf")
    assert engine.context_length == 512, "positions end there, whatever was asked for"
    middles = _random_inputs(0, 1, 30, 200, 510, 300, 300, 5, 5, 5, low=5, high=19)
    inputs = [[2, *middle, 3] for middle in middles]
    for tokens, found in zip(inputs, _vectors(engine, inputs), strict=True):
        assert np.abs(found - _BERT.vector(tokens, pooling)).max() < _LOOSE, len(tokens)
        assert abs(np.linalg.norm(found) - 1) < 1e-6
    engine.close()


def test_an_encoder_that_declares_nothing_is_read_whole_and_averaged(tmp_path: Path) -> None:
    path = tmp_path / "b.gguf"
    _BERT.write(path, None)
    # As if the converter had left it out.
    path.write_bytes(path.read_bytes().replace(b"bert.attention.causal", b"bert.attention.xausal"))
    engine = _load(path)
    (tokens,) = _random_inputs(512, low=5, high=19)
    (found,) = _vectors(engine, [tokens])
    assert np.abs(found - _BERT.vector(tokens)).max() < _LOOSE
    engine.close()


def test_pieces_of_a_causal_model_are_as_good_as_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With attention that does something: a random model."""
    path = random_model.write("tiny", tmp_path)
    inputs = _random_inputs(700, 40, 1500, low=3, high=299)
    engine = _load(path, context_length=2048)
    in_pieces = _vectors(engine, inputs)
    engine.close()
    monkeypatch.setattr(embedding_engine, "_BATCH_TOKENS", 2048)
    engine = _load(path, context_length=2048)
    for piecewise, whole in zip(in_pieces, _vectors(engine, inputs), strict=True):
        assert np.abs(piecewise - whole).max() < 2e-3
    engine.close()


def test_inputs_are_packed_into_batches_in_their_order(tmp_path: Path) -> None:
    write_mean(tmp_path / "m.gguf")
    engine = _load(tmp_path / "m.gguf", slots=4)
    inputs = _random_inputs(10, 10, 10, 10, 10, 500, 13, 600, 1)
    steps = [[(r.key[0], r.prefilled_tokens) for r in step] for step in _steps(engine, inputs)]
    assert steps == [
        [("0", 10), ("1", 10), ("2", 10), ("3", 10)],  # no more slots
        [("4", 10), ("5", 500)],  # no more tokens
        [("6", 13)],  # the next one is longer than a batch
        [("7", 512)],
        [("7", 600)],
        [("8", 1)],
    ]
    engine.close()


def test_a_cancelled_input_leaves_nothing_behind(tmp_path: Path) -> None:
    write_mean(tmp_path / "m.gguf")
    engine = _load(tmp_path / "m.gguf", slots=2)
    long, short = _random_inputs(2000, 7)
    engine.submit(_sequence("long", long))
    engine.submit(_sequence("short", short))
    assert engine.free_slots == 0
    (result,) = engine.step()
    assert (result.key[0], result.prefilled_tokens, result.embedding) == ("long", 512, None)
    engine.cancel(("long", 0))
    engine.cancel(("unknown", 0))
    (result,) = engine.step()
    assert result.embedding is not None
    assert np.abs(np.frombuffer(result.embedding, "<f4") - mean_vector(short)).max() < 1e-6
    assert engine.free_slots == 2
    assert not engine.has_work
    engine.close()


def test_a_quantised_cache_embeds(tmp_path: Path) -> None:
    write_mean(tmp_path / "m.gguf")
    settings = EngineSettings(tmp_path / "m.gguf", 1024, 2, 1, quant="q8_0", task="embed")
    engine = LlamaEmbeddingEngine(settings)
    (tokens,) = _random_inputs(900)
    (found,) = _vectors(engine, [tokens])
    assert np.abs(found - mean_vector(tokens)).max() < 1e-6
    engine.close()


def test_a_reranker_is_refused(tmp_path: Path) -> None:
    _BERT.write(tmp_path / "r.gguf", gguf.PoolingType.RANK)
    with pytest.raises(SettingsError, match="reranker"):
        _load(tmp_path / "r.gguf")


def test_the_gpu_engine_does_not_embed(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="embed"):
        registry.load("exllamav2", EngineSettings(tmp_path, 512, 1, 1, task="embed"))
