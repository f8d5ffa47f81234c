"""The GGUF reader: what it reads of good files, and that bad ones give ModelFileError alone."""

import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import counter_model
from worker.agent.model_files.errors import ModelFileError
from worker.agent.model_files.ggml_types import GGML_TYPES
from worker.agent.model_files.gguf import Skipped, read_header

_UNBOUNDED = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A file with every kind of value and two tensors."""
    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_float32("llama.some_float", 0.5)
    writer.add_bool("llama.some_flag", True)
    writer.add_string("general.name", "small ü")
    writer.add_array("llama.attention.head_count_kv", [4, 0])
    writer.add_array("tokenizer.ggml.tokens", ["a", "bb", "ccc"])
    writer.add_string("tokenizer.chat_template", "x" * 10_000)
    writer.add_tensor("token_embd.weight", np.zeros((10, 32), np.float16))
    quantised = gguf.quantize(np.zeros((4, 64), np.float32), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("output.weight", quantised, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def _refusal(tmp_path: Path, content: bytes) -> str:
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelFileError) as caught:
        read_header(path)
    assert caught.value.reason == str(caught.value)
    return caught.value.reason


def _text(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def _file(*, keys: bytes = b"", num_keys: int = 0, tensors: bytes = b"", num: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, num, num_keys) + keys + tensors


def _tensor(shape: tuple[int, ...], type_number: int, offset: int = 0) -> bytes:
    sizes = struct.pack(f"<I{len(shape)}q", len(shape), *shape)
    return _text(b"t.weight") + sizes + struct.pack("<IQ", type_number, offset)


def test_what_a_good_file_says(tmp_path: Path, small: bytes) -> None:
    path = tmp_path / "small.gguf"
    path.write_bytes(small)
    header = read_header(path)
    assert (header.version, header.alignment, header.file_bytes) == (3, 32, len(small))
    assert header.metadata["general.architecture"] == "llama"
    assert header.metadata["general.name"] == "small ü"
    assert header.metadata["llama.some_float"] == 0.5
    assert header.metadata["llama.some_flag"] is True
    assert header.metadata["llama.attention.head_count_kv"] == (4, 0)
    assert header.metadata["tokenizer.ggml.tokens"] == Skipped(3)
    assert header.metadata["tokenizer.chat_template"] == Skipped(10_000)
    assert header.integer("llama.block_count") == 2
    assert header.integer("llama.missing") is None
    embedding, output = header.tensors
    assert (embedding.shape, embedding.type.name, embedding.num_bytes) == ((32, 10), "F16", 640)
    assert (output.shape, output.type.name, output.num_bytes) == ((64, 4), "Q8_0", 272)
    reader = gguf.GGUFReader(path)
    assert header.data_offset == reader.data_offset
    assert [t.data_offset - reader.data_offset for t in reader.tensors] == [
        embedding.offset,
        output.offset,
    ]


def test_the_type_table_is_that_of_the_package_gguf() -> None:
    known = {int(number): (number.name, *sizes) for number, sizes in gguf.GGML_QUANT_SIZES.items()}
    assert {number: tuple(found) for number, found in GGML_TYPES.items()} == known


def test_a_large_vocabulary_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_token_list([b"token %d" % n for n in range(262_144)])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert read_header(path).metadata["tokenizer.ggml.tokens"] == Skipped(262_144)


@pytest.mark.parametrize("version", [0, 1, 4, 0x03000000])
def test_an_unsupported_version(tmp_path: Path, small: bytes, version: int) -> None:
    reason = _refusal(tmp_path, small[:4] + struct.pack("<I", version) + small[8:])
    assert f"version {version}" in reason


def test_version_2_is_read(tmp_path: Path, small: bytes) -> None:
    path = tmp_path / "two.gguf"
    path.write_bytes(small[:4] + struct.pack("<I", 2) + small[8:])
    assert read_header(path).version == 2


@pytest.mark.parametrize("content", [b"", b"GG", b"PK\3\4" + bytes(100), b"ggml" + bytes(9)])
def test_another_kind_of_file(tmp_path: Path, content: bytes) -> None:
    assert "not a GGUF file" in _refusal(tmp_path, content)


@pytest.mark.parametrize("name", ["missing.gguf", "a\0b", "x" * 5000])
def test_no_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelFileError):
        read_header(tmp_path / name)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="there is no file"):
        read_header(tmp_path)


def test_a_file_cut_at_any_byte_is_refused(tmp_path: Path, small: bytes) -> None:
    whole = tmp_path / "whole.gguf"
    whole.write_bytes(small)
    header = read_header(whole)
    end = header.data_offset + header.tensors[-1].offset + header.tensors[-1].num_bytes
    for size in range(end):
        reason = _refusal(tmp_path, small[:size])
        if size >= header.data_offset:
            assert f"truncated: {end - size:,} bytes" in reason


def test_a_split_file_is_unsupported(tmp_path: Path) -> None:
    keys = _text(b"split.count") + struct.pack("<IH", 2, 3)
    assert "one of 3 parts" in _refusal(tmp_path, _file(keys=keys, num_keys=1))


_ABSURD = {
    "tensors": _file(num=1 << 40),
    "keys": _file(num_keys=1 << 40),
    "key length": _file(num_keys=1, keys=struct.pack("<Q", 1 << 62)),
    "string": _file(num_keys=1, keys=_text(b"k") + struct.pack("<IQ", 8, 1 << 62)),
    "strings": _file(num_keys=1, keys=_text(b"k") + struct.pack("<IIQ", 9, 8, 1 << 62)),
    "some strings": _file(num_keys=1, keys=_text(b"k") + struct.pack("<IIQ", 9, 8, 1 << 20)),
    "string in array": _file(
        num_keys=1, keys=_text(b"k") + struct.pack("<IIQQQ", 9, 8, 2, (1 << 64) - 1, 0)
    ),
    "values": _file(num_keys=1, keys=_text(b"k") + struct.pack("<IIQ", 9, 4, 1 << 62)),
    "nested array": _file(num_keys=1, keys=_text(b"k") + struct.pack("<IIQ", 9, 9, 1)),
    "value type": _file(num_keys=1, keys=_text(b"k") + struct.pack("<I", 13)),
    "key twice": _file(num_keys=2, keys=2 * (_text(b"k") + struct.pack("<IB", 0, 1))),
    "key not text": _file(num_keys=1, keys=_text(b"\xff\xfe") + struct.pack("<IB", 0, 1)),
    "alignment": _file(num_keys=1, keys=_text(b"general.alignment") + struct.pack("<II", 4, 24)),
    "alignment 0": _file(num_keys=1, keys=_text(b"general.alignment") + struct.pack("<II", 4, 0)),
    "split of text": _file(num_keys=1, keys=_text(b"split.count") + struct.pack("<If", 6, 2.0)),
    "tensor type": _file(num=1, tensors=_tensor((32,), 4)),
    "dimensions": _file(num=1, tensors=_tensor((1, 1, 1, 1, 1), 0)),
    "shape": _file(num=1, tensors=_tensor((-1,), 0)),
    "huge shape": _file(num=1, tensors=_tensor((1 << 62, 1 << 62), 0)),
    "row": _file(num=1, tensors=_tensor((33,), 8)),
    "offset": _file(num=1, tensors=_tensor((32,), 0, offset=64)) + bytes(1000),
    "tensor twice": _file(num=2, tensors=2 * _tensor((32,), 0)) + bytes(1000),
}


@pytest.mark.parametrize("content", _ABSURD.values(), ids=_ABSURD.keys())
def test_absurd_claims_cost_nothing(tmp_path: Path, content: bytes) -> None:
    tracemalloc.start()
    try:
        _refusal(tmp_path, content)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_a_huge_sparse_file_of_empty_strings_does_not_hang(tmp_path: Path) -> None:
    path = tmp_path / "sparse.gguf"
    path.write_bytes(_file(num_keys=1, keys=_text(b"k") + struct.pack("<IIQ", 9, 8, 1 << 32)))
    with path.open("r+b") as file:
        file.truncate(1 << 36)
    with pytest.raises(ModelFileError, match="strings"):
        read_header(path)


def _only_model_file_errors(path: Path, read: Callable[[Path], object]) -> None:
    try:
        read(path)
    except ModelFileError as exc:
        assert exc.reason


@_UNBOUNDED
@given(st.data())
def test_flipped_bytes_raise_nothing_else(
    tmp_path: Path, small: bytes, data: st.DataObject
) -> None:
    changed = bytearray(small)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, 1200))] = data.draw(st.integers(0, 255))
    path = tmp_path / "flipped.gguf"
    path.write_bytes(changed)
    _only_model_file_errors(path, read_header)


@_UNBOUNDED
@given(st.binary(max_size=300))
def test_noise_raises_nothing_else(tmp_path: Path, noise: bytes) -> None:
    path = tmp_path / "noise.gguf"
    path.write_bytes(b"GGUF\3\0\0\0" + noise)
    _only_model_file_errors(path, read_header)


def test_every_byte_of_a_real_header_flipped(tmp_path: Path) -> None:
    path = tmp_path / "counter.gguf"
    counter_model.write(path)
    content = bytearray(path.read_bytes())
    for position in range(0, read_header(path).data_offset, 97):
        content[position] ^= 0xFF
        path.write_bytes(content)
        _only_model_file_errors(path, read_header)
        content[position] ^= 0xFF
