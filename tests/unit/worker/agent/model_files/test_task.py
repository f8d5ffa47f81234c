"""What a model is for, by its setting and its file, and what it takes to embed with it."""

from pathlib import Path

import gguf
import pytest

from bench.estimates import Configuration, measure
from shared.errors import InvalidModel
from shared.model_spec import ModelSpec
from tests.support import counter_model
from tests.support.embedding_model import Bert, write_mean
from worker.agent.estimate.estimate import Estimate, estimate
from worker.agent.model_files.errors import ModelFileError
from worker.agent.model_files.task import task_of

_MIB = 1 << 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`counter`, `mean`, `bert`, `bare` (a BERT without a pooling) and `rank`."""
    folder = tmp_path_factory.mktemp("models")
    counter_model.write(folder / "counter")
    write_mean(folder / "mean")
    Bert().write(folder / "bert")
    Bert().write(folder / "bare", None)
    Bert().write(folder / "rank", gguf.PoolingType.RANK)
    (folder / "damaged").write_bytes(b"GGUF and nothing more")
    return folder


def _task(path: Path, task: str = "auto", engine: str = "llamacpp") -> str:
    return task_of(ModelSpec(name="m", path="m", engine=engine, task=task), path)


@pytest.mark.parametrize(
    ("file", "asked", "expected"),
    [
        ("counter", "auto", "generate"),
        ("counter", "generate", "generate"),
        ("counter", "embed", "embed"),
        ("mean", "auto", "embed"),
        ("mean", "generate", "generate"),
        ("bert", "auto", "embed"),
        ("bare", "auto", "embed"),
        ("damaged", "auto", "generate"),
    ],
)
def test_the_task_of_a_file(folder: Path, file: str, asked: str, expected: str) -> None:
    assert _task(folder / file, asked) == expected


@pytest.mark.parametrize("asked", ["auto", "embed"])
def test_a_reranker_is_refused_with_the_reason(folder: Path, asked: str) -> None:
    with pytest.raises(InvalidModel, match="reranker"):
        _task(folder / "rank", asked)


def test_an_engine_that_only_generates(folder: Path) -> None:
    assert _task(folder, "auto", "exllamav2") == "generate"
    with pytest.raises(InvalidModel) as caught:
        _task(folder, "embed", "exllamav2")
    assert caught.value.param == "task"


def _estimate(path: Path, context_length: int = 512, slots: int = 1, **more: str) -> Estimate:
    fields = {"engine": "llamacpp", "quant": "f16", "task": "embed", **more}
    spec = ModelSpec(name="m", path=path.name, context_length=context_length, slots=slots, **fields)
    return estimate(path, spec)


def test_an_encoder_has_no_cache_and_no_longer_batch_than_its_positions(folder: Path) -> None:
    found = _estimate(folder / "bert")
    assert found.kv_cache_bytes == 0
    assert _estimate(folder / "bert", 100_000) == found
    with pytest.raises(ModelFileError, match="generates no text"):
        _estimate(folder / "bert", task="generate")


def test_the_batch_of_an_encoder_grows_with_its_context(tmp_path: Path) -> None:
    bert = Bert(context=4096)
    bert.write(tmp_path / "b")
    short, long = _estimate(tmp_path / "b", 512), _estimate(tmp_path / "b", 4096)
    masks = 2 * (4096**2 - 512**2)
    logits = 4 * len(bert.tokens) * (4096 - 512)
    assert long.scratch_bytes - short.scratch_bytes > masks + logits


def test_a_unigram_vocabulary_takes_more(tmp_path: Path) -> None:
    bert = Bert(vocabulary=1000)
    bert.write(tmp_path / "wordpiece")
    bert.write(tmp_path / "unigram", tokenizer="t5")
    more = _estimate(tmp_path / "unigram").weights_bytes
    assert more > _estimate(tmp_path / "wordpiece").weights_bytes + 256 * 1000


def test_all_inputs_of_a_causal_model_share_a_cache_of_one_context(folder: Path) -> None:
    one, many = _estimate(folder / "mean", 4096), _estimate(folder / "mean", 4096, 64)
    assert one.kv_cache_bytes == many.kv_cache_bytes == 4096 * (2 * 64 * 2 + 48)
    assert many.total_bytes - one.total_bytes < 32 * _MIB


@pytest.mark.parametrize(("file", "context_length", "slots"), [("mean", 4096, 8), ("bert", 512, 8)])
def test_a_real_replica_takes_no_more_than_estimated(
    folder: Path, file: str, context_length: int, slots: int
) -> None:
    asked = Configuration("x", context_length, slots, input_tokens=4096, task="embed")
    expected = _estimate(folder / file, context_length, slots).total_bytes
    measured = measure(folder / file, asked)
    assert measured <= expected < 1.3 * measured
