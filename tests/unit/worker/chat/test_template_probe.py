"""The forms that templates want, found by rendering probes."""

import json
from typing import Any

import pytest

from shared.wire.job import ChatMessage, Tool, ToolCall
from tests.support import chat_templates
from tests.support.chat_jobs import TIME, WEATHER, chat_job
from tests.support.scripted_engine import ByteVocabulary
from worker.chat.conversation import ArgumentsForm
from worker.chat.format import find_format
from worker.chat.prompts import ChatPrompts
from worker.chat.template import ChatTemplate
from worker.chat.template_probe import find_style, shows_text

_TALK = (
    ChatMessage("system", "sys"),
    ChatMessage("user", "question"),
    ChatMessage("assistant", "answer"),
    ChatMessage("user", "more"),
)


def _template(source: str) -> ChatTemplate:
    return ChatTemplate(source, "<s>", "</s>", strip_bos=False)


def _render(source: str, *messages: ChatMessage, **fields: Any) -> str:
    return ChatPrompts(_template(source), ByteVocabulary()).render(chat_job(*messages, **fields))


def _parts(source: str, *, with_tools: bool = False) -> set[str]:
    template = _template(source)
    return set(find_style(template, find_format(template).style, with_tools=with_tools).parts)


def test_a_template_that_walks_parts_shows_the_text_of_every_role() -> None:
    text = _render(chat_templates.PARTS, *_TALK)
    assert text == (
        "<|im_start|>System: sys<|im_end|>\nUser: question<|im_end|>\nAssistant: answer<|im_end|>\n"
        "User: more<|im_end|>\nAssistant:"
    )


def test_a_template_that_walks_parts_shows_the_text_when_there_are_tools() -> None:
    call = ToolCall("i", "get_time", "{}")
    answer = ChatMessage("tool", "noon", tool_call_id="i")
    called = ChatMessage("assistant", "let me look", tool_calls=[call])
    text = _render(chat_templates.PARTS, *_TALK, called, answer, tools=[TIME])
    assert all(word in text for word in ("sys", "question", "answer", "more", "look", "noon"))
    assert '"name": "get_time"' in text


def test_calls_and_answers_of_a_template_with_tools_may_be_parts_as_well() -> None:
    source = """{% if tools %}{{ tools | tojson }}<tool_call>{% endif %}
        {%- for m in messages %}[{{ m.role }}{% for p in m.content %}
        {%- if p.type == 'text' %}:{{ p.text }}{% endif %}{% endfor %}
        {%- for c in m.tool_calls or [] %}!{{ c.function.arguments | tojson }}{% endfor %}]
        {%- endfor %}"""
    assert _parts(source, with_tools=True) == {"system", "user", "assistant", "call", "tool"}
    call = ToolCall("i", "get_time", '{"zone": "utc"}')
    talk = [ChatMessage("user", "when"), ChatMessage("assistant", "hm", tool_calls=[call])]
    talk.append(ChatMessage("tool", "noon", tool_call_id="i"))
    assert '[user:when][assistant:hm!{"zone": "utc"}][tool:noon]' in _render(
        source, *talk, tools=[TIME]
    )


@pytest.mark.parametrize("name", ["hermes", "llama", "mistral", "deepseek", "harmony", "joined"])
def test_a_template_that_shows_strings_gets_strings(name: str) -> None:
    assert _parts(chat_templates.ALL[name]) == set()
    assert _parts(chat_templates.ALL[name], with_tools=True) == set()


def test_the_form_is_found_for_each_role() -> None:
    source = """{% for m in messages %}{% if m.role == 'user' %}
        {%- for p in m.content %}{{ p.text }}{% endfor %}{% else %}{{ m.content + '.' }}{% endif %}
        {%- endfor %}"""
    assert _parts(source) == {"user"}
    assert _render(source, *_TALK) == "sys.questionanswer.more"


def test_the_form_may_depend_on_the_tools() -> None:
    source = """{% if tools %}{{ tools | tojson }}<tool_call>{% for m in messages %}
        {{- m.content[0].text }}{% endfor %}
        {%- else %}{% for m in messages %}{{ m.content | upper }}{% endfor %}{% endif %}"""
    assert _parts(source) == set()
    assert "user" in _parts(source, with_tools=True)
    assert _render(source, ChatMessage("user", "hi")) == "HI"
    assert _render(source, ChatMessage("user", "hi"), tools=[TIME]).endswith("hi")


def test_a_template_that_takes_both_forms_gets_strings() -> None:
    source = """{% for m in messages %}{% if m.content is string %}{{ m.content }}
        {%- else %}{{ m.content[0].text }} as a part{% endif %}{% endfor %}"""
    assert _render(source, ChatMessage("user", "hi")) == "hi"


@pytest.mark.parametrize(
    "source",
    [
        "Hello.",
        "{% for m in messages %}{{ m.role }}{% endfor %}",
        "{% for m in messages %}{{ m.text }}{% endfor %}",
        "{% for m in messages if m.role == 'human' %}{{ m.content }}{% endfor %}",
    ],
)
def test_a_template_that_leaves_out_the_users_text_is_found(source: str) -> None:
    assert shows_text(_template(source), with_tools=False) is False


def test_a_template_that_leaves_out_the_text_when_there_are_tools_is_found() -> None:
    source = """{% if tools %}<tool_call>{{ tools | tojson }}
        {%- else %}{{ messages[-1].content }}{% endif %}"""
    assert shows_text(_template(source), with_tools=True) is False
    assert shows_text(_template(source), with_tools=False)


@pytest.mark.parametrize("name", chat_templates.ALL)
def test_usual_templates_show_the_users_text(name: str) -> None:
    for with_tools in (False, True):
        assert shows_text(_template(chat_templates.ALL[name]), with_tools=with_tools)


def test_a_template_that_wants_further_variables_is_loaded() -> None:
    source = "{% if not lang %}{{ raise_exception('no lang') }}{% endif %}{{ messages[0].content }}"
    assert shows_text(_template(source), with_tools=False) is None
    assert _render(source, ChatMessage("user", "hi"), template_arguments={"lang": "en"}) == "hi"


# -- arguments of calls --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hermes", ArgumentsForm.GIVEN),
        ("llama", ArgumentsForm.GIVEN),
        ("deepseek", ArgumentsForm.TEXT),
        ("qwen_xml", ArgumentsForm.OBJECT),
    ],
)
def test_the_form_of_arguments_is_found(name: str, expected: ArgumentsForm) -> None:
    template = _template(chat_templates.ALL[name])
    style = find_style(template, find_format(template).style, with_tools=True)
    assert style.arguments is expected


@pytest.mark.parametrize("is_asking", [True, False])
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("", {}),
        ("  ", {}),
        ("null", {}),
        ("{}", {}),
        ('{"city": "Rome"}', {"city": "Rome"}),
        ('{"city": "Ro', {"raw_arguments": '{"city": "Ro'}),
        ("5", {"raw_arguments": "5"}),
        ('"Rome"', {"raw_arguments": '"Rome"'}),
        ("[1, 2]", {"raw_arguments": "[1, 2]"}),
        ("city: Rome", {"raw_arguments": "city: Rome"}),
    ],
)
def test_a_template_that_walks_arguments_always_gets_an_object(
    arguments: str, expected: dict[str, str], is_asking: bool
) -> None:
    call = ToolCall("i", "get_weather", arguments)
    talk = [ChatMessage("user", "w"), ChatMessage("assistant", "", tool_calls=[call])]
    talk.append(ChatMessage("tool", "error", tool_call_id="i"))
    text = _render(chat_templates.QWEN_XML, *talk, tools=[WEATHER] if is_asking else [])
    shown = text.partition("<function=get_weather>")[2].partition("</function>")[0]
    wanted = "".join(f"\n<parameter={k}>\n{v}\n</parameter>" for k, v in expected.items())
    assert shown == wanted


def test_a_template_that_wants_answers_to_calls_is_probed_with_them() -> None:
    source = """{% if tools %}<tool_call>{% endif %}{% for m in messages %}
        {%- if m.tool_calls and loop.last %}{{ raise_exception('no answer') }}{% endif %}
        {%- for c in m.tool_calls or [] %}{{ '!' + c.function.arguments }}{% endfor %}
        {{- m.content }}{% endfor %}"""
    called = ChatMessage("assistant", "", tool_calls=[ToolCall("i", "get_time", '{"a": 1}')])
    talk = [ChatMessage("user", "when"), called, ChatMessage("tool", "noon", tool_call_id="i")]
    assert _render(source, *talk, tools=[TIME]) == '<tool_call>when!{"a": 1}noon'


@pytest.mark.parametrize("tools", [[TIME], []])
@pytest.mark.parametrize("content", ["", "Let me look."])
def test_a_template_that_shows_calls_beside_null_alone_shows_calls_and_text(
    content: str, tools: list[Tool]
) -> None:
    called = ChatMessage("assistant", content, tool_calls=[ToolCall("i", "get_time", '{"a": 1}')])
    talk = [ChatMessage("user", "when"), called, ChatMessage("tool", "noon", tool_call_id="i")]
    text = _render(chat_templates.DEEPSEEK_R1, *talk, tools=tools)
    shown = text.partition("<｜User｜>when")[2].partition("<｜tool▁outputs▁begin｜>noon")[0]
    before = f"<｜Assistant｜>{content}<|eot_id|>" if content else ""
    assert shown == before + (
        "<｜Assistant｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_time\n```json\n"
        '{"a": 1}\n```<｜tool▁call▁end｜><|eot_id|>'
    )


# -- reasoning and schemas -----------------------------------------------------------------------


def test_an_answer_of_gpt_oss_with_thoughts_content_and_a_call_can_be_sent_back() -> None:
    call = ToolCall("i", "get_time", "{}")
    called = ChatMessage("assistant", "Let me look.", tool_calls=[call], reasoning="I think.")
    talk = [ChatMessage("user", "when"), called, ChatMessage("tool", "noon", tool_call_id="i")]
    for tools in ([TIME], []):
        text = _render(chat_templates.GPT_OSS, *talk, tools=tools)
        assert "analysis<|message|>I think.\n\nLet me look.<|start|>assistant to=" in text
        assert text.count("Let me look.") == 1


def test_thoughts_without_a_call_stay_apart_from_the_content() -> None:
    text = _render(chat_templates.HERMES, ChatMessage("assistant", "yes", reasoning="hm"))
    assert "<think>\nhm\n</think>\n\nyes" in text


@pytest.mark.parametrize("name", ["harmony", "qwen_xml"])
@pytest.mark.parametrize(
    "schema",
    [{"type": "object"}, {"anyOf": [{"type": "object"}]}, {"type": "object", "required": []}],
)
def test_a_schema_without_properties_is_taken_by_templates_that_walk_them(
    name: str, schema: dict[str, Any]
) -> None:
    text = _render(chat_templates.ALL[name], tools=[Tool("bare", "", schema), WEATHER])
    assert "bare" in text and "city" in text


def test_a_schema_without_properties_reaches_other_templates_as_it_is() -> None:
    text = _render(chat_templates.HERMES, tools=[Tool("bare", "", {"type": "object"})])
    shown = text.partition("<tools>\n")[2].partition("\n")[0]
    assert json.loads(shown)["function"]["parameters"] == {"type": "object"}
