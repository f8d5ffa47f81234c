"""docs/openai.md says what the code does, and has a word for everything that OpenAI has."""

import json
from typing import Any, Literal, TypedDict, get_args, get_origin, get_type_hints

import openai
import pytest
from openai.types.chat.completion_create_params import CompletionCreateParamsBase

from app.schemas.generation import ChatRequest
from app.schemas.parse import IGNORED, REFUSED, convert
from shared.errors import InvalidRequest
from tests.support import web_app
from tools import openai_table
from tools.marked_tables import filled
from tools.openai_table import DOCUMENT, UndecidedError, tables

_CHAT = {"model": "m", "messages": [{"role": "user", "content": "a"}]}


@pytest.fixture(scope="module")
def api() -> dict[str, Any]:
    return json.loads(web_app.made().extensions["llmis_openapi"])


def test_the_tables_are_those_that_make_tables_writes(api: dict[str, Any]) -> None:
    text = DOCUMENT.read_text()
    assert filled(text, tables(api)) == text, "run `make tables`"


def test_a_parameter_that_nobody_has_decided_about_is_an_error(
    api: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Newer(TypedDict):
        model: str
        mood: str

    monkeypatch.setitem(openai_table.PARAMETERS, "/v1/chat/completions", Newer)
    with pytest.raises(UndecidedError, match="mood"):
        tables(api)


def test_a_group_of_endpoints_that_nobody_has_decided_about_is_an_error(
    api: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openai.OpenAI, "dreams", vars(openai.OpenAI)["chat"], raising=False)
    with pytest.raises(UndecidedError, match="dreams"):
        tables(api)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_is_called_refused_is_refused_with_its_reason(name: str) -> None:
    with pytest.raises(InvalidRequest, match=REFUSED[name]) as caught:
        convert({**_CHAT, name: {"a": "b"}}, ChatRequest)
    assert caught.value.param == name
    convert({**_CHAT, name: None}, ChatRequest)


@pytest.mark.parametrize("name", sorted(IGNORED))
def test_what_is_called_ignored_is_taken_whatever_it_is(name: str) -> None:
    assert convert({**_CHAT, name: {"a": ["b"]}}, ChatRequest) == convert(_CHAT, ChatRequest)


def _options(hint: Any) -> set[str]:
    """The strings that a type admits by name."""
    if get_origin(hint) is Literal:
        return {value for value in get_args(hint) if isinstance(value, str)}
    return set().union(*map(_options, get_args(hint)))


_FEWER = {"modalities": {"audio"}}
"""Values of OpenAI's that are refused here, on purpose."""


def test_values_that_openai_names_are_taken() -> None:
    theirs = get_type_hints(CompletionCreateParamsBase)
    ours = get_type_hints(ChatRequest)
    for name in theirs.keys() & ours.keys():
        missing = _options(theirs[name]) - _options(ours[name]) - _FEWER.get(name, set())
        assert not missing or not _options(ours[name]), (name, missing)
