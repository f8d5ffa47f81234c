"""Reads the headers of a Hugging Face folder: config.json and *.safetensors, no tensor data.

The files are not trusted, and the engine's loader must not meet a damaged one: ExLlamaV2's
waits forever on a file that is cut short. Format: github.com/huggingface/safetensors README.md.
"""

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from worker.agent.model_file import ModelFileError, file_size

_LENGTH = struct.Struct("<Q")
_MAX_HEADER_BYTES = 16 << 20
"""A model with 3,000 tensors in one file has 400 KiB."""
_MAX_JSON_BYTES = 16 << 20
_MAX_FILES = 1024
_INDEX = "model.safetensors.index.json"
_DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64, "F8_E4M3": 8, "F8_E5M2": 8,
    "F8_E8M0": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip
T = TypeVar("T")


class _Entry(msgspec.Struct):
    """One tensor in a header."""

    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


@dataclass(frozen=True, slots=True)
class SafeTensor:
    dtype: str
    shape: tuple[int, ...]
    num_bytes: int


@dataclass(frozen=True, slots=True)
class SafetensorsFolder:
    config: bytes
    """config.json as it lies there."""
    tensors: dict[str, SafeTensor]


def read_folder(folder: Path) -> SafetensorsFolder:
    """Read and check the headers of all weights in a folder. Raises ModelFileError."""
    config = _read_small(folder / "config.json")
    tensors: dict[str, SafeTensor] = {}
    for path in _weight_files(folder):
        found = read_file(path)
        doubled = tensors.keys() & found.keys()
        if doubled:
            raise ModelFileError(f"{path.name} has the tensor {min(doubled)!r} once more")
        tensors |= found
    if not tensors:
        raise ModelFileError(f"{folder} holds no tensors")
    return SafetensorsFolder(config, tensors)


def read_file(path: Path) -> dict[str, SafeTensor]:
    """Read and check one file's header. Raises ModelFileError."""
    file_bytes = file_size(path)
    try:
        with path.open("rb") as file:
            head = file.read(_LENGTH.size)
            header_bytes = _LENGTH.unpack(head)[0] if len(head) == _LENGTH.size else 0
            if header_bytes > file_bytes - _LENGTH.size or not header_bytes:
                raise ModelFileError(f"{path.name} is cut short inside its header")
            if header_bytes > _MAX_HEADER_BYTES:
                raise ModelFileError(
                    f"{path.name} claims a header of {header_bytes:,} bytes; "
                    f"{_MAX_HEADER_BYTES:,} at most"
                )
            raw = file.read(header_bytes)
    except OSError as exc:
        raise ModelFileError(f"{path} cannot be read: {exc}") from exc
    return _tensors(raw, file_bytes - _LENGTH.size - header_bytes, path.name)


def decode_json(raw: bytes, type_: type[T], what: str) -> T:
    """Decode JSON from a file that is not trusted. Raises ModelFileError."""
    try:
        return msgspec.json.decode(raw, type=type_)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise ModelFileError(f"{what} cannot be understood: {exc}") from exc


def _weight_files(folder: Path) -> list[Path]:
    """The shards that the index names, or all *.safetensors where there is no index."""
    try:
        found = sorted(folder.glob("*.safetensors"))
        has_index = (folder / _INDEX).exists()
    except OSError as exc:
        raise ModelFileError(f"{folder} cannot be read: {exc}") from exc
    if not found:
        raise ModelFileError(f"there is no *.safetensors in {folder}")
    if len(found) > _MAX_FILES:
        raise ModelFileError(f"{folder} holds {len(found)} *.safetensors; {_MAX_FILES} at most")
    if not has_index:
        return found
    index = decode_json(_read_small(folder / _INDEX), _Index, _INDEX)
    named = set(index.weight_map.values())
    present = {path.name for path in found}
    # A conversion may copy the index of the original, whose shards it replaced.
    if not named & present:
        return found
    if named - present:
        missing = sorted(named - present)
        raise ModelFileError(
            f"{len(missing)} of {len(named)} shards are missing, the first is {missing[0]!r}"
        )
    return [path for path in found if path.name in named]


def _read_small(path: Path) -> bytes:
    num_bytes = file_size(path)
    if num_bytes > _MAX_JSON_BYTES:
        raise ModelFileError(f"{path.name} has {num_bytes:,} bytes; {_MAX_JSON_BYTES:,} at most")
    try:
        with path.open("rb") as file:
            return file.read(_MAX_JSON_BYTES)
    except OSError as exc:
        raise ModelFileError(f"{path} cannot be read: {exc}") from exc


def _tensors(raw: bytes, data_bytes: int, name: str) -> dict[str, SafeTensor]:
    """Check that the tensors fill the data without holes, and that each fits its shape."""
    decoded = decode_json(raw, dict[str, msgspec.Raw], f"the header of {name}")
    decoded.pop("__metadata__", None)
    entries = {
        key: decode_json(bytes(value), _Entry, f"{name}: {key!r}") for key, value in decoded.items()
    }
    end = 0
    for key, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        start, stop = entry.data_offsets
        if start != end or stop < start:
            raise ModelFileError(f"{name}: {key!r} is at {start:,}, expected at {end:,}")
        if _num_bytes(entry, f"{name}: {key!r}") != stop - start:
            raise ModelFileError(
                f"{name}: {key!r} has {stop - start:,} bytes, which is not {entry.shape} of "
                f"{entry.dtype}"
            )
        end = stop
    if end > data_bytes:
        raise ModelFileError(f"{name} is truncated: {end - data_bytes:,} bytes are missing")
    if end < data_bytes:
        raise ModelFileError(f"{name} is {data_bytes - end:,} bytes longer than its header says")
    return {
        key: SafeTensor(e.dtype, tuple(e.shape), e.data_offsets[1] - e.data_offsets[0])
        for key, e in entries.items()
    }


def _num_bytes(entry: _Entry, what: str) -> int:
    bits = _DTYPE_BITS.get(entry.dtype)
    if bits is None:
        raise ModelFileError(f"{what} has the unknown dtype {entry.dtype!r}")
    if len(entry.shape) > 16 or min(entry.shape, default=0) < 0:
        raise ModelFileError(f"{what} has the impossible shape {entry.shape[:16]}")
    return math.prod(entry.shape) * bits // 8
