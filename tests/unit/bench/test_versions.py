"""The relay of two versions."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from bench import versions
from bench.checkout import Checkout
from bench.relay import RelayNumbers

_CHECKOUTS = [Checkout("llmis", Path("/a"), "python"), Checkout("ff9b9a9", Path("/b"), "python")]


def _relay_numbers(tokens_per_cpu_s: float) -> RelayNumbers:
    fields: dict[str, Any] = dict.fromkeys(RelayNumbers.__struct_fields__, 1.0)
    return RelayNumbers(**{**fields, "tokens_per_cpu_s": tokens_per_cpu_s})


def test_the_relays_take_turns_and_their_medians_are_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rates = {"llmis": [100.0, 300.0, 200.0], "ff9b9a9": [90.0, 100.0, 110.0]}
    turns: list[str] = []

    def run(self: Checkout, script: str, *arguments: str, limit_s: float) -> bytes:
        turns.append(self.label)
        assert arguments == ("64", "10000")
        return msgspec.json.encode(_relay_numbers(rates[self.label].pop(0)))

    monkeypatch.setattr(Checkout, "run", run)
    found = versions.relay(_CHECKOUTS, [64], [10_000], 3, lambda _: None)
    assert turns == ["llmis", "ff9b9a9"] * 3
    assert found["llmis"][64][0].tokens_per_cpu_s == 200.0
    ratios = versions.relay_table(found).splitlines()[-1].split()
    assert ratios == ["llmis", "/", "ff9b9a9", *["1.00"] * 5, "2.00", "0.50"]
