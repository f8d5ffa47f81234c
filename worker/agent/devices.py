"""The devices of a node, and which of them hold a model's memory.

GPUs are read through NVML (the package nvidia-ml-py, which GPU hosts have): it needs no CUDA
context, so the agent itself takes no GPU memory.
"""

import logging
import os
import platform
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from shared.errors import InvalidModel, SettingsError
from shared.model_spec import ModelSpec
from worker import cuda_devices
from worker.agent.host_memory import host_memory

_log = logging.getLogger(__name__)
RAM = "cpu"
GPU_ENGINES = ("exllamav2",)


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    id: str
    name: str
    total_bytes: int
    available_bytes: int
    """Free by the system or the driver."""


def devices() -> list[DeviceMemory]:
    """The RAM of this host, then its GPUs, numbered as replicas number them."""
    memory = host_memory()
    ram = DeviceMemory(RAM, platform.machine(), memory.total_bytes, memory.available_bytes)
    return [ram, *_gpus()]


def _gpus() -> list[DeviceMemory]:
    try:
        import pynvml
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []  # no driver, no GPU
    try:
        return list(_visible_gpus(pynvml))
    finally:
        pynvml.nvmlShutdown()


def _visible_gpus(nvml: Any) -> Iterator[DeviceMemory]:
    """Leave out a GPU that does not answer, such as one that fell off the bus; the others keep
    their numbers."""
    handles: dict[str, Any] = {}
    """Index → NVML's handle, and UUID → the same handle."""
    count = nvml.nvmlDeviceGetCount()
    for index in range(count):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            handles[str(index)] = handle
            handles[_text(nvml.nvmlDeviceGetUUID(handle))] = handle
        except nvml.NVMLError as exc:
            _log.warning("GPU %d does not answer: %s", index, exc)
    names = cuda_devices.visible_names(os.environ)
    for number, name in enumerate(map(str, range(count)) if names is None else names):
        try:
            match = name if name in handles else _by_prefix(handles, name)
            if match is not None:
                yield _gpu(nvml, number, handles[match])
        except nvml.NVMLError as exc:
            _log.warning("GPU %s does not answer: %s", name, exc)


def _by_prefix(handles: Iterable[str], name: str) -> str | None:
    """Find a UUID by its beginning, as CUDA does."""
    if not name.startswith("GPU-"):
        return None
    return next((uuid for uuid in handles if uuid.startswith(name)), None)


def _gpu(nvml: Any, number: int, handle: Any) -> DeviceMemory:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    name = _text(nvml.nvmlDeviceGetName(handle))
    return DeviceMemory(f"cuda:{number}", name, int(memory.total), int(memory.free))


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def devices_of(spec: ModelSpec, present: list[DeviceMemory]) -> list[DeviceMemory]:
    """The devices that hold a model's weights and cache: the ones it names, all GPUs, or the RAM.
    Raises InvalidModel when the node lacks one of them."""
    ids = [device.id for device in present]
    if spec.engine not in GPU_ENGINES:
        wanted = [RAM] if spec.device in ("auto", RAM) else [spec.device]
        ids = [RAM]
    else:
        ids.remove(RAM)
        # Without any GPU, the placeholder is never found and ends up in the error text.
        wanted = _wanted_gpus(spec.device) or ids or ["a GPU"]
    found = [device for device in present if device.id in wanted and device.id in ids]
    if len(found) < len(set(wanted)):
        raise InvalidModel(
            f"device = {spec.device!r}: {spec.engine} needs {', '.join(wanted)}; this node has "
            f"{', '.join(device.id for device in present)}.",
            param="device",
        )
    return found


def _wanted_gpus(device: str) -> list[str]:
    """The GPUs that a device setting names; empty = all. Raises InvalidModel."""
    try:
        return [f"cuda:{number}" for number in cuda_devices.parse_devices(device) or []]
    except SettingsError as exc:
        raise InvalidModel(str(exc), param="device") from exc


def share_device(left: ModelSpec, right: ModelSpec, present: list[DeviceMemory]) -> bool:
    """Whether two models share a device."""
    try:
        ids = {device.id for device in devices_of(left, present)}
        return any(device.id in ids for device in devices_of(right, present))
    except InvalidModel:
        return False
