"""A relay whose borders and clock are scripted."""

import time

import pytest

from tests.support.relay_bench import Clock, RelayBench


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    for name in ("monotonic", "time", "sleep"):
        monkeypatch.setattr(time, name, getattr(found, name))
    return found


@pytest.fixture
def bench(clock: Clock) -> RelayBench:
    return RelayBench(clock)
