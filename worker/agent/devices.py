"""The devices of a node, and which of them a model takes room on.

Read through NVML (the package nvidia-ml-py, which GPU hosts have): it needs no CUDA context, so
an agent holds no GPU memory of its own.
"""

import platform
from dataclasses import dataclass

from shared.errors import InvalidModel
from shared.lifecycle import ModelSpec
from worker.agent.memory import host_memory

RAM = "cpu"
GPU_ENGINES = ("exllamav2",)


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    id: str
    name: str
    total_bytes: int
    available_bytes: int
    """What the system or the driver says is free."""


def devices() -> list[DeviceMemory]:
    """The RAM of this host first, then its GPUs in the driver's order."""
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
        return [_gpu(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount())]
    finally:
        pynvml.nvmlShutdown()


def _gpu(pynvml: object, index: int) -> DeviceMemory:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)  # type: ignore[attr-defined]
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)  # type: ignore[attr-defined]
    name = pynvml.nvmlDeviceGetName(handle)  # type: ignore[attr-defined]
    text = name.decode() if isinstance(name, bytes) else str(name)
    return DeviceMemory(f"cuda:{index}", text, int(memory.total), int(memory.free))


def devices_of(spec: ModelSpec, there: list[DeviceMemory]) -> list[DeviceMemory]:
    """The devices whose memory a model's weights and cache take together: those it names, or
    all GPUs, or the RAM. Raises InvalidModel when the node has not got them."""
    ids = [device.id for device in there]
    if spec.engine not in GPU_ENGINES:
        wanted = [RAM] if spec.device in ("auto", RAM) else [spec.device]
        ids = [RAM]
    else:
        ids.remove(RAM)
        wanted = spec.device.split(",") if spec.device != "auto" else ids or ["a GPU"]
    found = [device for device in there if device.id in wanted and device.id in ids]
    if len(found) < len(set(wanted)):
        raise InvalidModel(
            f"device = {spec.device!r}: {spec.engine} needs {', '.join(wanted)}; this node has "
            f"{', '.join(device.id for device in there)}.",
            param="device",
        )
    return found


def overlap(left: ModelSpec, right: ModelSpec, there: list[DeviceMemory]) -> bool:
    """Whether two models take room on the same device."""
    try:
        ids = {device.id for device in devices_of(left, there)}
        return any(device.id in ids for device in devices_of(right, there))
    except InvalidModel:
        return False
