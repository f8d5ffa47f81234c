"""The models for ExLlamaV2 are what they should be, as far as no GPU is needed to see it."""

import json
from pathlib import Path

import numpy as np
import pytest

from shared.model_spec import ModelSpec
from tests.gpu import hf_tokenizer, models
from tests.gpu.hf_tokenizer import EOS
from tests.support.counter_model import expected_text
from worker.agent.estimate.estimate import estimate
from worker.agent.model_files import safetensors

_SMALL = ("counter-fp16", "counter-gptq", "tiny")
_NUMPY = {"F16": np.float16, "I32": np.int32}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: models.write(kind, tmp_path_factory.mktemp(kind)) for kind in _SMALL}


def _tensors(folder: Path) -> dict[str, np.ndarray]:
    """All tensors, read by this test's own reading of the format."""
    raw = (folder / "model.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    header.pop("__metadata__")
    found = {}
    for name, entry in header.items():
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        values = np.frombuffer(raw[begin:end], _NUMPY[entry["dtype"]])
        found[name] = values.reshape(entry["shape"])
    return found


def _unpack_gptq(tensors: dict[str, np.ndarray], key: str) -> np.ndarray:
    """(inputs, outputs) float32: weight = scale · (q - (zero + 1))."""
    q = _nibbles(tensors[f"{key}.qweight"].T).T
    zeros = _nibbles(tensors[f"{key}.qzeros"]) + 1
    group = np.arange(len(q)) // (len(q) // len(zeros))
    return tensors[f"{key}.scales"].astype(np.float32)[group] * (q - zeros[group])


def _nibbles(packed: np.ndarray) -> np.ndarray:
    """(rows, n) of int32 → (rows, 8·n), lowest four bits first."""
    shifted = packed.view(np.uint32)[..., None] >> np.arange(0, 32, 4, dtype=np.uint32)
    return (shifted & 15).astype(np.int32).reshape(packed.shape[0], -1)


@pytest.mark.parametrize("kind", _SMALL)
def test_the_agent_reads_the_folder(folders: dict[str, Path], kind: str) -> None:
    """Its reader checks that the tensors fill the file and fit their shapes."""
    found = safetensors.read_headers(folders[kind]).tensors
    assert {tensor.dtype for tensor in found.values()} <= {"F16", "I32"}
    assert (folders[kind] / "model.safetensors").stat().st_size % 2 == 0
    for quant in ("fp16", "q8", "q6", "q4"):
        spec = ModelSpec(name="m", path=kind, engine="exllamav2", task="generate", quant=quant)
        estimate(folders[kind], spec)


def test_gptq_shapes_fit_the_kernels(folders: dict[str, Path]) -> None:
    """exllamav2_ext/ext_qmatrix.cpp: (inputs / 8, outputs), scales (groups, outputs)."""
    found = safetensors.read_headers(folders["counter-gptq"]).tensors
    config = json.loads((folders["counter-gptq"] / "config.json").read_text())
    down = "model.layers.1.mlp.down_proj"
    inputs, outputs = config["intermediate_size"], config["hidden_size"]
    assert found[f"{down}.qweight"].shape == (inputs // 8, outputs)
    assert found[f"{down}.qzeros"].shape == (inputs // models.GROUP, outputs // 8)
    assert found[f"{down}.scales"].shape == (inputs // models.GROUP, outputs)
    assert found["lm_head.weight"].dtype == "F16"
    assert config["quantization_config"]["quant_method"] == "gptq"


@pytest.mark.parametrize("kind", ["counter-fp16", "counter-gptq"])
def test_the_counter_counts(folders: dict[str, Path], kind: str) -> None:
    """Attention and MLP add exactly nothing, so embedding, norm and output matrix are it all."""
    tensors = _tensors(folders[kind])
    matrices = {n.rpartition(".")[0] for n in tensors if "_proj." in n}
    assert len(matrices) == 14
    for key in matrices:
        is_gptq = kind == "counter-gptq"
        matrix = _unpack_gptq(tensors, key) if is_gptq else tensors[f"{key}.weight"]
        assert not matrix.any(), key
    words = models.vocabulary("counter")
    hidden = tensors["model.embed_tokens.weight"].astype(np.float32)
    hidden /= np.sqrt((hidden**2).mean(axis=1, keepdims=True) + 1e-6)
    logits = hidden @ tensors["lm_head.weight"].astype(np.float32).T
    follow = models.successors(words)
    assert {token: int(logits[token].argmax()) for token in follow} == follow
    ordered = np.sort(logits[list(follow)], axis=1)
    # So far ahead that temperature 1 finds it too, and that fp16 cannot confuse them.
    assert (ordered[:, -1] - ordered[:, -2]).min() >= 12

    def said(token: int, num_tokens: int) -> bytes:
        text = b""
        for _ in range(num_tokens):
            token = int(logits[token].argmax())
            text += words.text(token)
        return text

    assert said(models.number_token(990), 20).decode() == expected_text(990, 20)
    assert said(words.added_token("<euro>"), 5).decode() == "€ 0 1"
    assert said(words.added_token("<smile>"), 5).decode() == "😀 0"
    assert follow[words.added_token("<stop>")] == EOS


def test_the_kernels_arithmetic_gives_exact_zeros() -> None:
    """They compute (1024 + q)·s + round(-(1024 + z)·s) in fp16, and the same with 64 + q / 16.

    Source: exllamav2_ext/cuda/quant/qdq_4.cuh, dequant_4bit_8_gptq.
    """
    scale = np.float16(models._GPTQ_SCALE)
    for offset in (1024, 64):
        zero = np.float16(-(offset + 8)) * scale
        assert float(offset + 8) * float(scale) + float(zero) == 0.0


def test_byte_letters_are_those_of_gpt_2() -> None:
    letters = hf_tokenizer.byte_letters()
    assert len(set(letters)) == 256
    assert (letters[0x20], letters[0x0A], letters[ord("A")], letters[0xAD]) == ("Ġ", "Ċ", "A", "Ń")


@pytest.mark.parametrize("name", ["counter", "tiny", "1b"])
def test_every_words_beginnings_are_words_before_it(name: str) -> None:
    """Or the merges could not lead to it."""
    seen = {""}
    for word in models.vocabulary(name).words:
        assert word[:-1] in seen
        seen.add(word)
    assert models.vocabulary("1b").size == 32_000


def test_the_tokenizer_says_what_the_vocabulary_says(folders: dict[str, Path]) -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="the tokenizers package is not there")
    tokenizer = tokenizers.Tokenizer.from_file(str(folders["counter-fp16"] / "tokenizer.json"))
    words = models.vocabulary("counter")
    assert tokenizer.get_vocab_size() == words.size

    def ids(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    assert ids("17") == ids(" 17") == [models.number_token(17)]
    text = expected_text(995, 10)
    assert ids(text) == [models.number_token(n % 1000) for n in range(996, 1006)]
    assert tokenizer.decode(ids(text)) == text
    assert ids("5<stop>") == [models.number_token(5), words.added_token("<stop>")]
    assert tokenizer.encode("5").ids == [hf_tokenizer.BOS, models.number_token(5)]
    assert ids("\n")[-1] == words.byte(10)
    for text in ("né 😀\n\tx", " 05 1234", "1 <euro>"):
        assert b"".join(map(words.text, ids(text))).decode().removeprefix(" ") == text.lstrip(" ")
        assert tokenizer.decode(ids(text)).lstrip(" ") == text.lstrip(" ")


def test_the_random_models_words_are_one_token_each(folders: dict[str, Path]) -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="the tokenizers package is not there")
    tokenizer = tokenizers.Tokenizer.from_file(str(folders["tiny"] / "tokenizer.json"))
    words = models.vocabulary("tiny")
    some = [words.first_word + i for i in range(0, len(words.words), 7)]
    text = b"".join(map(words.text, some)).decode()
    assert tokenizer.encode(text, add_special_tokens=False).ids == some
    assert tokenizer.decode(some) == text
