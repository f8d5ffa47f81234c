"""Which attention ExLlamaV2 gets, with modules that stand for exllamav2.attn and .model."""

import importlib.util
from types import ModuleType
from typing import Any

import pytest

from shared.errors import EngineError, SettingsError
from worker.engines.exllamav2.attention import attach as attach_module
from worker.engines.exllamav2.attention.attach import attach
from worker.engines.exllamav2.attention.flash_api import FlashApi

_FLAGS = ("", "_with_paged", "_with_window", "_with_softcap")
_FUNCTIONS = ("flash_attn_with_kvcache", "flash_attn_func", "flash_attn_varlen_func")


@pytest.fixture(autouse=True)
def no_off_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EXLLAMA_NO_FLASH_ATTN", raising=False)


@pytest.fixture
def without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "triton" else find(name)
    )


def modules(*flags: bool) -> tuple[ModuleType, ModuleType]:
    """As exllamav2's import leaves them, with flash-attn's functions if it found any."""
    attn, model = ModuleType("exllamav2.attn"), ModuleType("exllamav2.model")
    for suffix, flag in zip(_FLAGS, flags or (False,) * 4, strict=True):
        setattr(attn, "has_flash_attn" + suffix, flag)
    if flags and flags[0]:
        for name in _FUNCTIONS:
            setattr(attn, name, f"flash-attn's {name}")
    vars(model)["has_flash_attn"] = vars(attn)["has_flash_attn"]
    return attn, model


def owner(attn: ModuleType) -> str:
    """Whose functions are in place."""
    functions = [vars(attn)[name] for name in _FUNCTIONS]
    if all(isinstance(function, str) for function in functions):
        return "flash-attn"
    apis: list[Any] = [function.__self__ for function in functions]
    assert all(isinstance(api, FlashApi) for api in apis)
    name: str = apis[0]._attention.name
    return name


def all_flags(attn: ModuleType, model: ModuleType) -> set[bool]:
    return {vars(attn)["has_flash_attn" + suffix] for suffix in _FLAGS} | {
        vars(model)["has_flash_attn"]
    }


def test_triton_takes_the_place_of_a_missing_flash_attn() -> None:
    attn, model = modules()
    used = attach("auto", attn, model)
    assert (used.name, owner(attn)) == ("triton", "triton")
    assert "flash-attn is not installed" in used.reason
    assert all_flags(attn, model) == {True}


def test_a_fit_flash_attn_is_left_alone() -> None:
    attn, model = modules(True, True, True, True)
    used = attach("auto", attn, model)
    assert (used.name, owner(attn)) == ("flash-attn", "flash-attn")


def test_a_flash_attn_without_soft_cap_is_replaced() -> None:
    attn, model = modules(True, True, True, False)
    used = attach("auto", attn, model)
    assert (used.name, owner(attn)) == ("triton", "triton")
    assert "has_flash_attn_with_softcap" in used.reason
    assert all_flags(attn, model) == {True}


@pytest.mark.parametrize("choice", ["triton", "sdpa"])
def test_what_is_asked_for_comes_before_flash_attn(choice: str) -> None:
    attn, model = modules(True, True, True, True)
    assert attach(choice, attn, model).name == owner(attn) == choice
    assert all_flags(attn, model) == {True}


def test_the_choice_can_be_changed_and_taken_back() -> None:
    attn, model = modules(True, True, True, True)
    for choice in ("sdpa", "triton", "flash-attn", "sdpa", "auto"):
        used = attach(choice, attn, model)
        assert owner(attn) == used.name == ("flash-attn" if choice == "auto" else choice)


@pytest.mark.usefixtures("without_triton")
def test_torch_is_the_last_resort() -> None:
    attn, model = modules()
    used = attach("auto", attn, model)
    assert (used.name, owner(attn)) == ("sdpa", "sdpa")
    assert "triton is not installed" in used.reason


@pytest.mark.usefixtures("without_triton")
def test_triton_asked_for_and_missing_is_an_error() -> None:
    with pytest.raises(SettingsError, match="triton is not installed"):
        attach("triton", *modules())


def test_flash_attn_asked_for_and_missing_is_an_error() -> None:
    with pytest.raises(SettingsError, match="not installed"):
        attach("flash-attn", *modules())


def test_an_unknown_choice_is_an_error() -> None:
    with pytest.raises(SettingsError, match="must be one of"):
        attach("xformers", *modules())


def test_exllamav2_switched_off_by_the_environment_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EXLLAMA_NO_FLASH_ATTN", "1")
    with pytest.raises(SettingsError, match="unset it"):
        attach("auto", *modules())


def test_another_exllamav2_is_an_error() -> None:
    with pytest.raises(EngineError, match="has_flash_attn"):
        attach("auto", ModuleType("exllamav2.attn"), ModuleType("exllamav2.model"))
    assert attach_module.CHOICES[0] == "auto"
