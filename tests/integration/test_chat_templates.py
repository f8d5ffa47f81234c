"""Chats with models of unlike templates, through the whole service."""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.conftest import Service, models_folder
from tests.support import chat_templates, counter_model
from tests.support.admin_client import load, model, unload

_PARTS = "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}"
_TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
_TOOLS = {"default": "{{ messages[-1].content }}",
          "tool_use": "{% if tools %}{{ tools | tojson }} <tool_call>{% endif %} 500"
                      "{{ messages[-1].content }}"}  # fmt: skip


@pytest.fixture
def name(service: Service, request: pytest.FixtureRequest) -> Iterator[str]:
    """A model name of the test's own, unloaded at its end."""
    chosen = f"t-{abs(hash(request.node.name)) % 10**8}"
    yield chosen
    if model(service, chosen) is not None:
        unload(service, chosen, mode="now")
    (models_folder() / f"{chosen}.gguf").unlink(missing_ok=True)


def _chat(service: Service, name: str, *messages: Any, **fields: Any) -> Any:
    create: Any = service.openai().chat.completions.create
    talk = [{"role": "user", "content": m} if isinstance(m, str) else m for m in messages]
    return create(**{"model": name, "messages": talk, "max_tokens": 3, "temperature": 0} | fields)


def _text(service: Service, name: str, *messages: Any, **fields: Any) -> str:
    return _chat(service, name, *messages, **fields).choices[0].message.content


def test_a_template_that_walks_parts_shows_the_text(service: Service, name: str) -> None:
    assert load(service, name, chat_template=_PARTS)[0] == 200
    assert _text(service, name, " 5") == " 6 7 8"
    system = {"role": "system", "content": [{"type": "text", "text": "1"}]}
    parts = {"role": "user", "content": [{"type": "text", "text": " 4"}]}
    answer = _chat(service, name, system, parts, tools=[_TOOL])
    assert answer.choices[0].message.content == " 5 6 7"


def test_a_byte_order_mark_of_a_template_is_no_part_of_the_prompt(
    service: Service, name: str
) -> None:
    template = "\ufeff{{ messages[-1].content }}"
    assert load(service, name, chat_template=template)[0] == 200
    assert _chat(service, name, "5").usage.prompt_tokens == 2


@pytest.mark.parametrize("template", ["Hello.", "{% for m in messages %}{{ m.role }}{% endfor %}"])
def test_a_template_that_leaves_out_the_text_refuses_the_load(
    service: Service, name: str, template: str
) -> None:
    status, answer = load(service, name, chat_template=template)
    assert status == 422
    assert "leaves out the text of the user's messages" in answer["error"]["message"]


def test_no_order_of_roles_is_refused(service: Service, name: str) -> None:
    assert load(service, name, chat_template=chat_templates.GEMMA_2)[0] == 200
    roles = {"s": "system", "d": "developer", "u": "user", "a": "assistant"}
    for order in ("su", "uu", "au", "uaau", "uadu", "ssuasu", "s", "suus"):
        messages = [{"role": roles[letter], "content": "7"} for letter in order]
        assert _chat(service, name, *messages).usage.completion_tokens == 3


@pytest.mark.parametrize("arguments", ["", None, "null", "5", '{"a": "b', {"a": "b"}])
def test_a_session_goes_on_whatever_the_arguments_of_a_call_were(
    service: Service, name: str, arguments: Any
) -> None:
    assert load(service, name, chat_template=chat_templates.QWEN_XML)[0] == 200
    called = {"id": "i", "type": "function", "function": {"name": "f", "arguments": arguments}}
    talk = [{"role": "user", "content": "7"}, {"role": "assistant", "tool_calls": [called]}]
    talk.append({"role": "tool", "tool_call_id": "i", "content": "8"})
    assert _chat(service, name, *talk, tools=[_TOOL]).usage.completion_tokens == 3


def test_a_model_with_a_template_for_tools_uses_it(service: Service, name: str) -> None:
    templates = [{"name": n, "template": text} for n, text in _TOOLS.items()]
    counter_model.write(models_folder() / f"{name}.gguf", template=templates)
    assert load(service, name, path=f"{name}.gguf")[0] == 200
    without = _chat(service, name, " 17")
    assert without.choices[0].message.content == " 18 19 20"
    with_tools = _chat(service, name, " 17", tools=[_TOOL])
    assert with_tools.usage.prompt_tokens > without.usage.prompt_tokens + 50


def test_a_model_whose_template_does_not_compile_says_why(service: Service, name: str) -> None:
    go = "{{ if .System }}{{ .System }}{{ end }}{{ .Prompt }}"
    counter_model.write(models_folder() / f"{name}.gguf", template=go)
    assert load(service, name, path=f"{name}.gguf")[0] == 200
    with pytest.raises(openai.BadRequestError) as caught:
        _chat(service, name, "5")
    (replica,) = model(service, name)["replicas"]
    assert replica["chat_error"].startswith("chat_template: ")
    assert replica["chat_error"] in caught.value.message
    create: Any = service.openai().completions.create
    assert create(model=name, prompt=" 5", max_tokens=2, temperature=0).choices[0].text == " 6 7"


# -- prefix ----------------------------------------------------------------------------------------

_CONTINUED = ({"role": "user", "content": "1 2"},
              {"role": "assistant", "content": "5 6", "prefix": True})  # fmt: skip


def test_a_prefix_is_continued(service: Service) -> None:
    answer = _chat(service, "counter", *_CONTINUED)
    assert answer.choices[0].message.content == " 7 8 9"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 3)


def test_a_prefix_is_continued_in_a_stream(service: Service) -> None:
    chunks = list(
        _chat(service, "counter", *_CONTINUED, stream=True, stream_options={"include_usage": True})
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == " 7 8 9"
    assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == (3, 3)


def test_a_prefix_stands_behind_the_header_of_its_turn(service: Service, name: str) -> None:
    assert load(service, name, chat_template=chat_templates.GEMMA_2)[0] == 200
    assert _text(service, name, *_CONTINUED) == " 7 8 9"
    assert _text(service, name, *_CONTINUED, n=2) == " 7 8 9"


def test_the_tokens_of_a_prefix_are_counted(service: Service) -> None:
    body = {"model": "counter", "messages": list(_CONTINUED)}
    found = service.openai().post("/../tokenize", body=body, cast_to=object)
    assert json.loads(json.dumps(found))["count"] == 3


@pytest.mark.parametrize(
    ("messages", "fields", "param"),
    [
        ((*_CONTINUED, "3"), {}, "messages[1].prefix"),
        (({"role": "user", "content": "1", "prefix": True},), {}, "messages[0].prefix"),
        (_CONTINUED, {"tools": [_TOOL], "tool_choice": "required"}, "tool_choice"),
    ],
)
def test_a_prefix_that_cannot_be_continued_is_refused(
    service: Service, messages: Any, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        _chat(service, "counter", *messages, **fields)
    assert caught.value.param == param
