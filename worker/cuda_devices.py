"""CUDA devices as agent and replicas number them: in PCI order, those that are visible.

NVML, which the agent uses, counts in PCI order and sees all. CUDA by itself counts the fastest
first, and from 0 those that CUDA_VISIBLE_DEVICES names. This module imports neither.
"""

from collections.abc import MutableMapping
from itertools import takewhile

from shared.errors import SettingsError

_VISIBLE = "CUDA_VISIBLE_DEVICES"


def parse_devices(device: str) -> list[int] | None:
    """`auto`, `cuda`, `cuda:1`, or several: `cuda:0,cuda:2`. None = all. Raises SettingsError."""
    if device in ("auto", "cuda"):
        return None
    found = []
    for name in device.split(","):
        kind, _, number = name.strip().partition(":")
        if kind != "cuda" or not number.isdecimal():
            raise SettingsError(
                f"device = {device!r}: exllamav2 takes auto, cuda:0, or a list such as "
                "cuda:0,cuda:1"
            )
        found.append(int(number))
    if len(set(found)) < len(found):
        raise SettingsError(f"device = {device!r}: a device is named twice")
    return found


def visible_names(environment: MutableMapping[str, str]) -> list[str] | None:
    """The numbers or UUIDs in CUDA_VISIBLE_DEVICES; None = it is not set, all are visible. CUDA
    ignores the first invalid entry and all that follow; -1 is the usual one."""
    visible = environment.get(_VISIBLE)
    if visible is None:
        return None
    names = [name.strip() for name in visible.split(",") if name.strip()]
    return list(takewhile(lambda name: not name.startswith("-"), names))


def restrict(environment: MutableMapping[str, str], wanted: list[int] | None) -> None:
    """Before CUDA starts in this process, restrict it to the wanted ones of the visible devices:
    no context is made on the others, and the wanted are numbered from 0. Raises SettingsError."""
    environment["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    if wanted is None:
        return
    names = visible_names(environment)
    if names is None:
        names = [str(number) for number in range(max(wanted) + 1)]
    if max(wanted) >= len(names):
        raise SettingsError(
            f"device: there is no cuda:{max(wanted)}, {_VISIBLE} is {environment[_VISIBLE]!r}"
        )
    environment[_VISIBLE] = ",".join(names[number] for number in wanted)
