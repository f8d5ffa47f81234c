"""Orders of roles that templates refuse, and what they get instead."""

from collections.abc import Sequence
from typing import Any

import pytest

from shared.errors import InvalidRequest
from shared.wire.job import ChatMessage, ToolCall
from tests.support import chat_templates
from tests.support.chat_jobs import TIME, chat_job
from tests.support.cpu_time import is_linear
from tests.support.scripted_engine import ByteVocabulary
from worker.chat import prompts as prompts_module
from worker.chat.arrangements import arrangements
from worker.chat.prompts import ChatPrompts
from worker.chat.template import ChatTemplate

_LETTERS = {"s": "system", "u": "user", "a": "assistant"}


def _talk(roles: str) -> list[ChatMessage]:
    """One message a letter, whose text is the letter and its position."""
    return [ChatMessage(_LETTERS[role], f"{role}{i}") for i, role in enumerate(roles)]


def _render(source: str, messages: Sequence[ChatMessage], **fields: Any) -> str:
    template = ChatTemplate(source, "<s>", "</s>", strip_bos=False)
    return ChatPrompts(template, ByteVocabulary()).render(chat_job(*messages, **fields))


def _turns(source: str, roles: str) -> list[tuple[str, str]]:
    """The turns of a rendered prompt, first letter of the role and text."""
    text = _render(source, _talk(roles))
    for begin, end in (("<start_of_turn>", "<end_of_turn>"), ("<|im_start|>", "<|im_end|>")):
        if begin in text:
            turns = [turn.partition(end)[0] for turn in text.split(begin)[1:-1]]
            return [(turn[0].replace("m", "a"), turn.partition("\n")[2]) for turn in turns]
    raise AssertionError(text)


@pytest.mark.parametrize("roles", ["u", "uau", "su", "suau", "sus", "uu", "au", "uaau", "ss"])
def test_what_a_template_accepts_is_rendered_as_it_is(roles: str) -> None:
    source = "{% for m in messages %}[{{ m.role[0] }}:{{ m.content }}]{% endfor %}"
    expected = "".join(f"[{role}:{role}{i}]" for i, role in enumerate(roles))
    assert _render(source, _talk(roles)) == expected


@pytest.mark.parametrize(
    ("roles", "expected"),
    [
        ("su", [("u", "s0\n\nu1")]),
        ("s", [("u", "s0")]),
        ("ssu", [("u", "s0\n\ns1\n\nu2")]),
        ("sau", [("u", "s0"), ("a", "a1"), ("u", "u2")]),
        ("suuau", [("u", "s0\n\nu1\n\nu2"), ("a", "a3"), ("u", "u4")]),
        ("uasu", [("u", "u0"), ("a", "a1"), ("u", "s2\n\nu3")]),
        ("suasu", [("u", "s0\n\nu1"), ("a", "a2"), ("u", "s3\n\nu4")]),
        ("uaau", [("u", "u0"), ("a", "a1\n\na2"), ("u", "u3")]),
        ("au", [("u", ""), ("a", "a0"), ("u", "u1")]),
    ],
)
def test_no_order_of_roles_is_refused_by_a_template_with_two_roles(
    roles: str, expected: list[tuple[str, str]]
) -> None:
    assert _turns(chat_templates.GEMMA_2, roles) == expected
    assert _turns(chat_templates.PLAIN, roles) == expected


@pytest.mark.parametrize(
    ("roles", "expected"),
    [
        ("suasu", [("s", "s0"), ("u", "u1"), ("a", "a2"), ("u", "s3"), ("u", "u4")]),
        ("ssu", [("s", "s0\n\ns1"), ("u", "u2")]),
        ("uasu", [("u", "u0"), ("a", "a1"), ("u", "s2"), ("u", "u3")]),
        ("suus", [("s", "s0"), ("u", "u1"), ("u", "u2"), ("u", "s3")]),
    ],
)
def test_a_late_system_message_stays_in_its_place_as_the_users(
    roles: str, expected: list[tuple[str, str]]
) -> None:
    assert _turns(chat_templates.STRICT_SYSTEM, roles) == expected


def test_a_system_role_that_is_supported_is_kept_when_other_roles_are_joined() -> None:
    source = """{% for m in messages %}{% if m.role == 'system' and not loop.first or not loop.first
        and m.role == messages[loop.index0 - 1].role %}{{ raise_exception('no') }}{% endif %}
        [{{ m.role[0] }}:{{ m.content }}]{% endfor %}"""
    assert "".join(_render(source, _talk("suuasu")).split()) == "[s:s0][u:u1u2][a:a3][u:s4u5]"


_CALLS = ChatMessage("assistant", "", tool_calls=[ToolCall("callABC12", "get_time", "{}")])
_ANSWER = ChatMessage("tool", "noon", tool_call_id="callABC12")


def test_a_user_speaks_after_an_answer_although_turns_have_to_alternate() -> None:
    talk = [ChatMessage("user", "when"), _CALLS, _ANSWER, ChatMessage("user", "stop")]
    text = _render(chat_templates.TAKES_TURNS, talk, tools=[TIME])
    assert '"call_id": "callABC12"} </s>[INST] stop[/INST]' in text
    with_system = [ChatMessage("system", "sys"), *talk]
    assert "noon" in _render(chat_templates.TAKES_TURNS, with_system, tools=[TIME])


def test_a_user_speaks_although_a_call_was_not_answered() -> None:
    talk = [ChatMessage("user", "when"), _CALLS, ChatMessage("user", "stop")]
    text = _render(chat_templates.TAKES_TURNS, talk, tools=[TIME])
    assert text.endswith(" </s>[INST] stop[/INST]")


def test_a_system_message_between_a_call_and_its_answer_comes_after_the_answer() -> None:
    source = """{% for m in messages %}{% if m.role == 'system' or m.role == 'tool' and not
        messages[loop.index0 - 1].tool_calls %}{{ raise_exception('no') }}{% endif %}
        [{{ m.role }}:{{ m.content }}]{% endfor %}{# <tool_call> #}{% if tools %}{% endif %}"""
    talk = [ChatMessage("user", "when"), _CALLS, ChatMessage("system", "late"), _ANSWER]
    text = "".join(_render(source, talk, tools=[TIME]).split())
    assert text == "[user:when][assistant:][tool:noon][user:late]"


def test_joined_messages_keep_calls_and_reasoning_and_lose_a_name_that_is_not_both_ones() -> None:
    source = (
        "{% for m in messages %}{% if loop.index0 and m.role == messages[loop.index0 - 1].role %}"
        "{{ raise_exception('no') }}{% endif %}{% endfor %}{{ messages | tojson }}"
        "{# <tool_call> #}{% if tools %}{% endif %}"
    )
    call = ToolCall("i", "f", "{}")
    talk = [
        ChatMessage("user", "a", name="Ann"),
        ChatMessage("user", "b", name="Bob"),
        ChatMessage("assistant", "", tool_calls=[call], reasoning="hm"),
        ChatMessage("assistant", "c", tool_calls=[call], reasoning="so"),
    ]
    text = _render(source, talk, tools=[TIME])
    assert text.startswith('[{"role": "user", "content": "a\\n\\nb"}, {"role": "assistant", ')
    assert '"reasoning_content": "hm\\n\\nso"' in text and '"content": "c"' in text
    assert text.count('"id": "i"') == 2


@pytest.mark.parametrize("roles", [["user"], ["system"], ["user", "system"]])
def test_the_cost_of_arrangements_is_linear_in_the_number_of_messages(roles: list[str]) -> None:
    def arrange_all(num_messages: int) -> None:
        talk = [{"role": role, "content": "x" * 2000} for role in roles]
        messages = talk * (num_messages // len(roles))
        for arrange in arrangements():
            arrange(messages)

    assert is_linear(lambda: arrange_all(1024), lambda: arrange_all(4096))


def test_the_first_refusal_is_the_one_that_the_client_reads() -> None:
    source = """{% if messages[0].role == 'system' %}{{ raise_exception('first') }}{% endif %}
        {{ raise_exception('second') }}"""
    with pytest.raises(InvalidRequest, match="first"):
        _render(source, _talk("suuas"))


def test_a_slow_template_is_not_tried_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = ChatPrompts(ChatTemplate("{{ raise_exception('no') }}", "", ""), ByteVocabulary())
    rendered = []
    monkeypatch.setattr(prompts_module, "_MAX_TRIES_S", -1.0)
    rendering = prompts._rendering(chat_job())
    render = rendering.render
    monkeypatch.setattr(rendering, "render", lambda *given: (rendered.append(1), render(*given))[1])
    with pytest.raises(InvalidRequest):
        prompts.render(chat_job(*_talk("suuas")))
    assert len(rendered) == 1


_ONE_CALL = """\
{%- for tool in tools or [] %}{{ tool.function.name }};{% endfor %}
{%- for m in messages %}
{%- if m.tool_calls and m.tool_calls | length != 1 %}
{{- raise_exception("one call only") }}{% endif %}
{%- if m.role == "tool" %}[{{ m.tool_call_id }}={{ m.content }}]
{%- elif m.tool_calls %}<tool_call>{{ m.tool_calls[0].id }}{{ m.content }};
{%- else %}{{ m.role[0] }}:{{ m.content }};{% endif %}
{%- endfor %}"""
"""As Llama 3's: no message with several calls."""


@pytest.mark.parametrize("order", [("c1", "c2"), ("c2", "c1")])
def test_several_calls_of_a_message_are_one_after_the_other_with_their_answers(
    order: tuple[str, str],
) -> None:
    calls = [ToolCall("c1", "get_time", "{}"), ToolCall("c2", "get_time", "{}")]
    answers = [ChatMessage("tool", f"a{i}", tool_call_id=i) for i in order]
    talk = [ChatMessage("user", "x"), ChatMessage("assistant", "t", tool_calls=calls), *answers]
    assert _render(_ONE_CALL, talk, tools=[TIME]) == (
        "get_time;u:x;<tool_call>c1t;[c1=ac1]<tool_call>c2;[c2=ac2]"
    )


_NO_EMPTY = """\
{%- for tool in tools or [] %}{{ tool.function.name }};{% endfor %}
{%- set ns = namespace(turn=0) %}
{%- for m in messages %}
{%- if m.role == "user" or (m.role == "assistant" and not m.tool_calls) %}
{%- if (m.role == "user") != (ns.turn % 2 == 0) %}{{ raise_exception("alternate") }}{% endif %}
{%- set ns.turn = ns.turn + 1 %}{% endif %}
{%- if m.role == "assistant" and not m.content and not m.tool_calls %}
{{- raise_exception("needs text") }}{% endif %}
{{- m.role[0] }}:{{ m.content }}{{ "<tool_call>" if m.tool_calls }};{% endfor %}"""
"""As Mistral's since Ministral 3: turns alternate, and an assistant says something."""


@pytest.mark.parametrize("reply", [None, ""])
def test_a_user_speaks_after_an_answer_where_an_assistant_must_say_something(
    reply: str | None,
) -> None:
    call = ChatMessage("assistant", "", tool_calls=[ToolCall("c1", "get_time", "{}")])
    talk = [ChatMessage("user", "x"), call, ChatMessage("tool", "y", tool_call_id="c1")]
    talk += [] if reply is None else [ChatMessage("assistant", reply)]
    talk.append(ChatMessage("user", "z"))
    assert _render(_NO_EMPTY, talk, tools=[TIME]) == "get_time;u:x;a:<tool_call>;t:y;a: ;u:z;"
