"""Reads the header of a GGUF file: metadata and tensor infos, never tensor data.

The file is not trusted: every count and length is bounded, so that a damaged or hostile file
costs at most a second and some ten MiB. Format: ggml-org/ggml docs/gguf.md. A file that llama.cpp
refuses (ggml/src/gguf.cpp) is refused here, with a reason.
"""

import math
import struct
from dataclasses import dataclass
from pathlib import Path

from worker.agent.model_files.errors import ModelFileError, file_size
from worker.agent.model_files.ggml_types import GGML_TYPES, GgmlType
from worker.agent.model_files.header_reader import HeaderReader

_U32, _U64, _I64 = struct.Struct("<I"), struct.Struct("<Q"), struct.Struct("<q")
_STRING, _ARRAY = 8, 9
_SCALARS = {
    number: struct.Struct(f"<{code}")
    for number, code in enumerate("BbHhIif?  Qqd")
    if number not in (_STRING, _ARRAY)
}
"""The fixed-size value types by number, as codes of `struct`; 8 and 9 are not among them."""

# The largest models of 2026 have 100 keys, 3,000 tensors, vocabularies of 300,000 tokens and
# templates of 100 KiB. A file far beyond these is damaged.
_MAX_KEYS = 1024
_MAX_TENSORS = 32_768
_MAX_NAME_BYTES = 256
_MAX_STRING_BYTES = 4 << 20
_MAX_STRINGS = 4 << 20
"""In all arrays of the file together: each string costs an iteration."""
_MAX_KEPT_STRING_BYTES = 4096
_MAX_KEPT_VALUES = 1024
_MAX_ALIGNMENT = 1 << 20
_MAX_DIMENSIONS = 4

Scalar = int | float | bool | str


@dataclass(frozen=True, slots=True)
class Skipped:
    """A value that was not kept: an array of strings, or a long value."""

    length: int
    """Elements of an array; bytes of a string."""


Value = Scalar | tuple[int | float | bool, ...] | Skipped


@dataclass(frozen=True, slots=True)
class TensorInfo:
    name: str
    shape: tuple[int, ...]
    """ggml's order: values per row first, then rows, then experts."""
    type: GgmlType
    offset: int
    """Bytes from the header's `data_offset`."""

    @property
    def num_bytes(self) -> int:
        return self.type.row_bytes(math.prod(self.shape))


@dataclass(frozen=True, slots=True)
class GgufHeader:
    version: int
    metadata: dict[str, Value]
    tensors: tuple[TensorInfo, ...]
    alignment: int
    data_offset: int
    file_bytes: int

    def integer(self, key: str) -> int | None:
        """The count under a key, or None. Raises ModelFileError for another type of value."""
        value = self.metadata.get(key)
        if value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ModelFileError(f"{key} is {value!r}, which is not a count")
        return value


def read_header(path: Path) -> GgufHeader:
    """Read and check a GGUF file's header. Raises ModelFileError."""
    file_bytes = file_size(path)
    try:
        with path.open("rb") as file:
            header = _read(HeaderReader(file, file_bytes), file_bytes)
    except OSError as exc:
        raise ModelFileError(f"{path} cannot be read: {exc}") from exc
    num_files = header.integer("split.count") or 1
    if num_files > 1:
        raise ModelFileError(
            f"{path.name} is one of {num_files} parts of a split model, which is unsupported. "
            "Join them with llama-gguf-split --merge"
        )
    _check_data(header)
    return header


def _read(reader: HeaderReader, file_bytes: int) -> GgufHeader:
    version = _preamble(reader)
    num_tensors = _count(reader, _MAX_TENSORS, "tensors")
    num_keys = _count(reader, _MAX_KEYS, "metadata keys")
    metadata = _metadata(reader, num_keys)
    tensors: dict[str, TensorInfo] = {}
    for _ in range(num_tensors):
        tensor = _tensor(reader)
        if tensor.name in tensors:
            raise ModelFileError(f"the tensor {tensor.name!r} occurs twice")
        tensors[tensor.name] = tensor
    alignment = metadata.get("general.alignment", 32)
    if not (
        isinstance(alignment, int)
        and 8 <= alignment <= _MAX_ALIGNMENT
        and alignment.bit_count() == 1
    ):
        raise ModelFileError(
            f"general.alignment is {alignment!r}, not a power of two from 8 to 2^20"
        )
    data_offset = _padded(reader.position, alignment)
    return GgufHeader(
        version, metadata, tuple(tensors.values()), alignment, data_offset, file_bytes
    )


def _preamble(reader: HeaderReader) -> int:
    """Check the magic and return the version."""
    magic = reader.take(min(4, reader.remaining_bytes))
    if magic != b"GGUF":
        raise ModelFileError(f"this is not a GGUF file: it begins with {magic!r}")
    version = int(reader.unpack(_U32))
    if version not in (2, 3):
        raise ModelFileError(
            f"version {version} of GGUF is unsupported; use 2 or 3, in little endian"
        )
    return version


def _metadata(reader: HeaderReader, num_keys: int) -> dict[str, Value]:
    metadata: dict[str, Value] = {}
    strings_left = _MAX_STRINGS
    for _ in range(num_keys):
        key = _name(reader, "metadata key")
        if key in metadata:
            raise ModelFileError(f"the metadata key {key!r} occurs twice")
        type_number = int(reader.unpack(_U32))
        if type_number == _ARRAY:
            element_type = int(reader.unpack(_U32))
            value = _array(reader, key, element_type, strings_left)
            if element_type == _STRING and isinstance(value, Skipped):
                strings_left -= value.length
        else:
            value = _scalar(reader, key, type_number)
        metadata[key] = value
    return metadata


def _scalar(reader: HeaderReader, key: str, type_number: int) -> Value:
    if type_number != _STRING:
        return reader.unpack(_layout(key, type_number))
    length = _count(reader, _MAX_STRING_BYTES, f"bytes in {key!r}")
    if length > _MAX_KEPT_STRING_BYTES:
        reader.skip(length)
        return Skipped(length)
    # Texts are only shown and compared: invalid UTF-8 need not stop a load.
    return reader.take(length).decode("utf-8", "replace")


def _array(reader: HeaderReader, key: str, element_type: int, max_strings: int) -> Value:
    if element_type == _STRING:
        length = _count(reader, max_strings, f"strings in {key!r}")
        reader.skip_strings(length)
        return Skipped(length)
    layout = _layout(key, element_type)
    length = _count(reader, reader.remaining_bytes // layout.size, f"values in {key!r}")
    if length > _MAX_KEPT_VALUES:
        reader.skip(length * layout.size)
        return Skipped(length)
    raw = reader.take(length * layout.size)
    return tuple(value for (value,) in layout.iter_unpack(raw))


def _layout(key: str, type_number: int) -> struct.Struct:
    layout = _SCALARS.get(type_number)
    if layout is None:
        raise ModelFileError(f"{key!r} has the unknown type {type_number}")
    return layout


def _tensor(reader: HeaderReader) -> TensorInfo:
    name = _name(reader, "tensor name")
    num_dimensions = int(reader.unpack(_U32))
    if num_dimensions > _MAX_DIMENSIONS:
        raise ModelFileError(f"the tensor {name!r} has {num_dimensions} dimensions")
    shape = tuple(int(reader.unpack(_I64)) for _ in range(num_dimensions))
    if min(shape, default=1) < 1 or math.prod(shape) >= 1 << 60:
        raise ModelFileError(f"the tensor {name!r} has the impossible shape {shape}")
    type_number = int(reader.unpack(_U32))
    ggml_type = GGML_TYPES.get(type_number)
    if ggml_type is None:
        raise ModelFileError(f"the tensor {name!r} has the unknown type {type_number}")
    if (shape[0] if shape else 1) % ggml_type.block_size:
        raise ModelFileError(
            f"the tensor {name!r} has rows of {shape[0] if shape else 1} values, not a whole "
            f"number of {ggml_type.name} blocks"
        )
    return TensorInfo(name, shape, ggml_type, int(reader.unpack(_U64)))


def _name(reader: HeaderReader, what: str) -> str:
    raw = reader.take(_count(reader, _MAX_NAME_BYTES, f"bytes in a {what}"))
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise ModelFileError(f"a {what} is not UTF-8: {raw[:40]!r}") from exc


def _count(reader: HeaderReader, limit: int, what: str) -> int:
    count = int(reader.unpack(_U64))
    if count > limit:
        raise ModelFileError(f"the header claims {count:,} {what}; at most {limit:,} can be true")
    return count


def _check_data(header: GgufHeader) -> None:
    """Check that the tensors follow each other without gaps and that the file holds them all."""
    end = 0
    for tensor in header.tensors:
        if tensor.offset != _padded(end, header.alignment):
            raise ModelFileError(
                f"the tensor {tensor.name!r} has the offset {tensor.offset:,}, but the one "
                f"before it ends at {end:,}"
            )
        end = tensor.offset + tensor.num_bytes
    missing_bytes = header.data_offset + end - header.file_bytes if header.tensors else 0
    if missing_bytes > 0:
        raise ModelFileError(
            f"the file is truncated: {missing_bytes:,} bytes of {header.data_offset + end:,} "
            "are missing at its end"
        )


def _padded(offset: int, alignment: int) -> int:
    return (offset + alignment - 1) // alignment * alignment
