"""Which devices there are, and where a model takes room. NVML is a stand-in."""

import sys
from types import SimpleNamespace

import pytest

from shared.errors import InvalidModel
from shared.model_spec import ModelSpec
from worker.agent.devices import DeviceMemory, devices, devices_of, share_device

_THERE = [
    DeviceMemory("cpu", "x", 100, 50),
    DeviceMemory("cuda:0", "a GPU", 80, 70),
    DeviceMemory("cuda:1", "a GPU", 80, 60),
]


class _NVMLError(Exception):
    pass


def _nvml(count: int, *, has_driver: bool = True, lost: int | None = None) -> SimpleNamespace:
    def init() -> None:
        if not has_driver:
            raise _NVMLError

    def handle(index: int) -> int:
        if index == lost:
            raise _NVMLError("GPU is lost")
        return index

    return SimpleNamespace(
        NVMLError=_NVMLError,
        nvmlInit=init,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetCount=lambda: count,
        nvmlDeviceGetHandleByIndex=handle,
        nvmlDeviceGetUUID=lambda index: f"GPU-{index}{index}",
        nvmlDeviceGetMemoryInfo=lambda index: SimpleNamespace(total=80, free=70 - index),
        nvmlDeviceGetName=lambda index: b"a GPU" if index else "a GPU",
    )


@pytest.fixture(autouse=True)
def _all_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def _spec(**fields: str) -> ModelSpec:
    return ModelSpec(name="m", path="m", **fields)


def test_the_gpus_are_listed_after_the_ram(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", _nvml(2))
    ram, *gpus = devices()
    assert ram.id == "cpu"
    assert [(g.id, g.name, g.total_bytes, g.available_bytes) for g in gpus] == [
        ("cuda:0", "a GPU", 80, 70),
        ("cuda:1", "a GPU", 80, 69),
    ]


@pytest.mark.parametrize(
    ("visible", "free"),
    [("", []), ("2", [68]), ("2, 0", [68, 70]), ("GPU-1,GPU-2", [69, 68]), ("7,1", [69])],
)
def test_gpus_are_numbered_as_a_replica_sees_them(
    monkeypatch: pytest.MonkeyPatch, visible: str, free: list[int]
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", _nvml(3))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    _, *gpus = devices()
    assert [gpu.available_bytes for gpu in gpus] == free
    assert visible == "7,1" or [gpu.id for gpu in gpus] == [f"cuda:{i}" for i in range(len(free))]


def test_a_gpu_that_does_not_answer_is_left_out_and_the_others_keep_their_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", _nvml(3, lost=1))
    assert [device.id for device in devices()] == ["cpu", "cuda:0", "cuda:2"]


@pytest.mark.parametrize("module", [None, _nvml(1, has_driver=False)])
def test_without_the_library_or_a_driver_there_are_none(
    monkeypatch: pytest.MonkeyPatch, module: object
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", module)
    assert [device.id for device in devices()] == ["cpu"]


@pytest.mark.parametrize(
    ("engine", "device", "expected"),
    [
        ("llamacpp", "auto", ["cpu"]),
        ("llamacpp", "cpu", ["cpu"]),
        ("exllamav2", "auto", ["cuda:0", "cuda:1"]),
        ("exllamav2", "cuda:1", ["cuda:1"]),
        ("exllamav2", "cuda:0,cuda:1", ["cuda:0", "cuda:1"]),
        ("exllamav2", "cuda:0, cuda:1", ["cuda:0", "cuda:1"]),
        ("exllamav2", "cuda", ["cuda:0", "cuda:1"]),
    ],
)
def test_a_model_takes_room_where_it_says(engine: str, device: str, expected: list[str]) -> None:
    found = devices_of(_spec(engine=engine, device=device), _THERE)
    assert [d.id for d in found] == expected


@pytest.mark.parametrize(
    ("engine", "device"),
    [("llamacpp", "cuda:0"), ("exllamav2", "cpu"), ("exllamav2", "cuda:7"), ("exllamav2", "x")],
)
def test_a_device_that_is_not_there_is_refused(engine: str, device: str) -> None:
    with pytest.raises(InvalidModel) as caught:
        devices_of(_spec(engine=engine, device=device), _THERE)
    assert caught.value.param == "device"


def test_a_node_without_a_gpu_refuses_the_gpu_engine() -> None:
    with pytest.raises(InvalidModel, match="needs a GPU"):
        devices_of(_spec(engine="exllamav2"), _THERE[:1])


def test_models_on_different_devices_leave_each_other_alone() -> None:
    on_first = _spec(engine="exllamav2", device="cuda:0")
    assert share_device(on_first, _spec(engine="exllamav2"), _THERE)
    assert not share_device(on_first, _spec(engine="exllamav2", device="cuda:1"), _THERE)
    assert not share_device(on_first, _spec(), _THERE)
