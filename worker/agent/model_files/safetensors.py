"""Reads the headers of a Hugging Face folder: config.json and *.safetensors, no tensor data.

The `safetensors` library checks each header: the tensors fill the file without a hole, and each
has the size of its shape. The files are not trusted, and the engine must not get a damaged one:
ExLlamaV2's loader waits forever on a file that is cut short. Only what the library cannot see,
the set of shards and names that occur twice, is checked here.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from safetensors import SafetensorError, safe_open

from worker.agent.model_files.errors import ModelFileError, file_size

_MAX_JSON_BYTES = 16 << 20
_MAX_FILES = 1024
_MAX_DIMENSIONS = 16
_INDEX = "model.safetensors.index.json"
_DTYPE_BITS = re.compile(r"\d+")
T = TypeVar("T")


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
    """The bytes of config.json."""
    tensors: dict[str, SafeTensor]


def read_headers(folder: Path) -> SafetensorsFolder:
    """Read and check the headers of all weights in a folder. Raises ModelFileError."""
    config = _read_small(folder / "config.json")
    tensors: dict[str, SafeTensor] = {}
    for path in _weight_files(folder):
        found = read_file(path)
        doubled = tensors.keys() & found.keys()
        if doubled:
            raise ModelFileError(
                f"{path.name} repeats the tensor {min(doubled)!r} of another shard"
            )
        tensors |= found
    if not tensors:
        raise ModelFileError(f"{folder} holds no tensors")
    return SafetensorsFolder(config, tensors)


def read_file(path: Path) -> dict[str, SafeTensor]:
    """Read and check one file's header. Raises ModelFileError."""
    try:
        # The library wants a framework even where no tensor is read: numpy is the lightest.
        with safe_open(path, framework="np") as file:
            return {name: _tensor(name, file.get_slice(name)) for name in file.offset_keys()}
    except SafetensorError as exc:
        reason = str(exc).removeprefix("Error while deserializing header: ")
        raise ModelFileError(f"{path.name} is damaged or incomplete: {reason}") from exc
    except OSError as exc:
        raise ModelFileError(f"{path} cannot be read: {exc}") from exc


def decode_json(raw: bytes, type_: type[T], what: str) -> T:
    """Decode JSON from a file that is not trusted. Raises ModelFileError."""
    try:
        return msgspec.json.decode(raw, type=type_)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise ModelFileError(f"{what} cannot be decoded: {exc}") from exc


def _weight_files(folder: Path) -> list[Path]:
    """The shards that the index names, or all *.safetensors without an index."""
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
    # A conversion may keep the original's index although it replaced the shards: ignore it.
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


def _tensor(name: str, part: Any) -> SafeTensor:
    dtype, shape = part.get_dtype(), tuple(part.get_shape())
    if len(shape) > _MAX_DIMENSIONS:
        raise ModelFileError(f"{name!r} has {len(shape)} dimensions; {_MAX_DIMENSIONS} at most")
    # A dtype's first number is its width in bits (BF16, F8_E4M3); BOOL, without one, is a byte.
    bits = _DTYPE_BITS.search(dtype)
    return SafeTensor(dtype, shape, math.prod(shape) * (int(bits[0]) if bits else 8) // 8)
