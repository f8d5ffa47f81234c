"""Which CUDA devices a model may use, by the numbers that agent and replica share."""

import pytest

from shared.errors import SettingsError
from worker.cuda_devices import parse_devices, restrict, visible_names


def test_what_a_model_may_say() -> None:
    assert parse_devices("auto") is parse_devices("cuda") is None
    assert parse_devices("cuda:0, cuda:2") == [0, 2]
    for bad in ("cpu", "cuda:x", "cuda:1,cuda:1", "1"):
        with pytest.raises(SettingsError, match="device"):
            parse_devices(bad)


@pytest.mark.parametrize(
    ("visible", "names"),
    [(None, None), ("", []), ("2, 0,", ["2", "0"]), ("GPU-a,GPU-b", ["GPU-a", "GPU-b"]),
     ("1,-1,0", ["1"])],
)  # fmt: skip
def test_what_is_visible(visible: str | None, names: list[str] | None) -> None:
    assert visible_names({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}) == names


@pytest.mark.parametrize(
    ("visible", "wanted", "left"),
    [(None, [1, 2], "1,2"), ("GPU-a,GPU-b", [1], "GPU-b"), ("4, 5", [1, 0], "5,4"),
     ("4,5", None, "4,5")],
)  # fmt: skip
def test_a_process_sees_the_wanted_ones_of_those(
    visible: str | None, wanted: list[int] | None, left: str
) -> None:
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    restrict(environment, wanted)
    assert environment == {"CUDA_VISIBLE_DEVICES": left, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def test_a_device_that_is_not_visible() -> None:
    with pytest.raises(SettingsError, match="no cuda:2"):
        restrict({"CUDA_VISIBLE_DEVICES": "4,5"}, [2])
