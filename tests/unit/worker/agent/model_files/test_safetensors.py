"""The reader of Hugging Face folders: good ones, and that bad ones give ModelFileError alone."""

import json
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from worker.agent.model_files.errors import ModelFileError
from worker.agent.model_files.safetensors import SafeTensor, read_file, read_headers

_UNBOUNDED = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
_HEADER = {
    "__metadata__": {"format": "pt"},
    "b": {"dtype": "F32", "shape": [], "data_offsets": [12, 16]},
    "a": {"dtype": "F16", "shape": [2, 3], "data_offsets": [0, 12]},
}


def _content(header: object, data_bytes: int) -> bytes:
    raw = json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + bytes(data_bytes)


def _refusal(tmp_path: Path, content: bytes) -> str:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelFileError) as caught:
        read_file(path)
    return caught.value.reason


def _folder(tmp_path: Path, names: list[str]) -> Path:
    (tmp_path / "config.json").write_text('{"hidden_size": 8}')
    for i, name in enumerate(names):
        header = {f"t{i}": {"dtype": "I8", "shape": [4], "data_offsets": [0, 4]}}
        (tmp_path / name).write_bytes(_content(header, 4))
    return tmp_path


def _index(folder: Path, names: list[str]) -> None:
    index = {"metadata": {}, "weight_map": {f"t{i}": name for i, name in enumerate(names)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_what_a_good_file_says(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(_content(_HEADER, 16))
    assert read_file(path) == {"a": SafeTensor("F16", (2, 3), 12), "b": SafeTensor("F32", (), 4)}


def test_a_file_cut_at_any_byte_is_refused(tmp_path: Path) -> None:
    content = _content(_HEADER, 16)
    for size in range(len(content)):
        reason = _refusal(tmp_path, content[:size])
        assert "bad.safetensors is damaged or incomplete: " in reason
        if size >= len(content) - 16:
            assert "file not fully covered" in reason
    assert "file not fully covered" in _refusal(tmp_path, content + b"\0")


def _one(**changes: object) -> bytes:
    entry = {"dtype": "F16", "shape": [2], "data_offsets": [0, 4]} | changes
    return _content({"a": entry}, 4)


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<Q", (1 << 64) - 1) + b"{}",
        struct.pack("<Q", 0),
        struct.pack("<Q", 3) + b"{} extra",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 100_000) + b"[" * 100_000,
        struct.pack("<Q", 2) + b"\xff\xfe",
        _one(dtype="F17"),
        _one(shape=[3]),
        _one(shape=[-2]),
        _one(shape=[1 << 62, 1 << 62]),
        _one(shape=[1] * 40 + [2]),
        _one(shape=["2"]),
        _one(data_offsets=[0]),
        _one(data_offsets=[4, 0]),
        _one(data_offsets=[1, 5]),
        _one(data_offsets=[-4, 0]),
        _one(data_offsets=[0, 1 << 70]),
        _content({"a": 1}, 4),
    ],
)
def test_bad_headers(tmp_path: Path, content: bytes) -> None:
    assert _refusal(tmp_path, content)


@pytest.mark.parametrize("header_bytes", [1 << 34, 1 << 40])
def test_a_huge_header_is_not_read(tmp_path: Path, header_bytes: int) -> None:
    path = tmp_path / "huge.safetensors"
    path.write_bytes(struct.pack("<Q", header_bytes))
    with path.open("r+b") as file:
        file.truncate(2 * header_bytes)
    with pytest.raises(ModelFileError, match="header too large"):
        read_file(path)


def test_all_files_without_an_index(tmp_path: Path) -> None:
    folder = read_headers(_folder(tmp_path, ["b.safetensors", "a.safetensors"]))
    assert set(folder.tensors) == {"t0", "t1"}
    assert folder.config == b'{"hidden_size": 8}'


def test_the_index_chooses_the_shards(tmp_path: Path) -> None:
    names = ["model-1.safetensors", "model-2.safetensors", "consolidated.safetensors"]
    _index(_folder(tmp_path, names), names[:2])
    assert set(read_headers(tmp_path).tensors) == {"t0", "t1"}


def test_a_missing_shard(tmp_path: Path) -> None:
    names = ["model-1.safetensors", "model-2.safetensors"]
    _index(_folder(tmp_path, names[:1]), names)
    with pytest.raises(ModelFileError, match=r"1 of 2 shards are missing.*model-2"):
        read_headers(tmp_path)


def test_the_index_of_what_was_converted_is_passed_over(tmp_path: Path) -> None:
    _index(_folder(tmp_path, ["output.safetensors"]), ["model-1.safetensors", "../x.safetensors"])
    assert set(read_headers(tmp_path).tensors) == {"t0"}


def test_a_tensor_twice(tmp_path: Path) -> None:
    _folder(tmp_path, ["a.safetensors"])
    (tmp_path / "b.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes())
    with pytest.raises(ModelFileError, match="repeats the tensor 't0'"):
        read_headers(tmp_path)


@pytest.mark.parametrize("missing", ["config.json", "a.safetensors"])
def test_what_a_folder_needs(tmp_path: Path, missing: str) -> None:
    (_folder(tmp_path, ["a.safetensors"]) / missing).unlink()
    with pytest.raises(ModelFileError):
        read_headers(tmp_path)
    with pytest.raises(ModelFileError):
        read_headers(tmp_path / "nowhere")


def test_a_broken_index(tmp_path: Path) -> None:
    _folder(tmp_path, ["a.safetensors"])
    (tmp_path / "model.safetensors.index.json").write_text("{")
    with pytest.raises(ModelFileError, match="index"):
        read_headers(tmp_path)


@pytest.mark.parametrize(
    ("dtype", "num_bytes"), [("BOOL", 4), ("BF16", 8), ("F8_E4M3", 4), ("F6_E2M3", 3), ("F4", 2)]
)
def test_the_bytes_of_four_values(tmp_path: Path, dtype: str, num_bytes: int) -> None:
    path = tmp_path / "model.safetensors"
    header = {"a": {"dtype": dtype, "shape": [4], "data_offsets": [0, num_bytes]}}
    path.write_bytes(_content(header, num_bytes))
    assert read_file(path)["a"].num_bytes == num_bytes


@_UNBOUNDED
@given(st.data())
def test_flipped_bytes_raise_nothing_else(tmp_path: Path, data: st.DataObject) -> None:
    changed = bytearray(_content(_HEADER, 16))
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "flipped.safetensors"
    path.write_bytes(changed)
    try:
        read_file(path)
    except ModelFileError as exc:
        assert exc.reason
