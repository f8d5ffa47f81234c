"""What each benchmark runs."""

from types import SimpleNamespace

import pytest

from bench import commands, scenarios
from bench.checkout import Checkout
from bench.commands import COMMANDS, Session
from bench.scenarios import Effort
from tests.unit.bench.results import numbers


def _session(streams: list[int] | None = None, *, quick: bool = False) -> Session:
    return Session(SimpleNamespace(streams=streams, quick=quick), Effort())  # type: ignore[arg-type]


def test_medians_are_of_five_rounds() -> None:
    assert Effort().rounds == 5


def test_growth_has_a_slot_for_every_stream() -> None:
    model, loads = commands.scenario("growth", _session())
    assert [len(load.prompts) for load in loads] == [1, 2, 4, 8, 16, 32, 64, 128, 256]
    assert model.slots == 256
    assert all(load.max_tokens < model.context_length for load in loads)


def test_requests_are_of_one_token_and_16_clients() -> None:
    model, (load,) = commands.scenario("requests", _session())
    assert (model.slots, len(load.prompts), load.max_tokens) == (16, 16, 1)
    assert not load.in_bursts


def test_a_burst_has_64_requests_of_different_prompts() -> None:
    model, (load,) = commands.scenario("burst", _session())
    prompts = [prompt for of_stream in load.prompts for prompt in of_stream]
    assert (model.slots, len(load.prompts), load.num_bursts) == (64, 64, 5)
    assert len(set(prompts)) == len(prompts), "no burst finds its prompts in a cache"


def test_another_version_takes_its_turn(tmp_path: object) -> None:
    other = Checkout("ff9b9a9", commands.HERE.root, "python")
    assert list(scenarios.sides(other)) == ["llmis", "ff9b9a9", "llama.cpp"]
    assert list(scenarios.sides()) == ["llmis", "llama.cpp"]


def test_a_result_tells_the_streams_of_each_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        scenarios,
        "side_by_side",
        lambda model, loads, *_: {
            load.label: {"llmis": [numbers()], "llama.cpp": [None]} for load in loads
        },
    )
    session = _session([1, 2], quick=True)
    text = COMMANDS["growth"](session)
    found = session.content["growth"]
    assert isinstance(found, dict)
    assert found["streams"] == {"counter, 1 streams": 1, "counter, 2 streams": 2}
    assert "counter, 2 streams, llama.cpp: 1 of 1 rounds stalled" in text
