"""From messages and tools to prompts, in the manner of each family."""

import json
from typing import Any

import pytest

from shared.errors import InvalidRequest
from shared.wire.events import FinishReason
from shared.wire.job import ChatMessage, Grammar, GrammarKind, ToolCall, ToolChoice
from tests.support import chat_templates
from tests.support.chat_jobs import TIME, WEATHER, chat_job
from tests.support.scripted_engine import ByteVocabulary, ScriptedEngine
from worker.chat.format import find_format
from worker.chat.prompts import ChatPrompts
from worker.chat.template import ChatTemplate
from worker.chat.tool_call_formats import CallSyntax
from worker.replica.attempt import Attempt, parsers_of
from worker.replica.event_builder import events_of
from worker.replica.prompt import PromptBuilder
from worker.sequence import StepResult

_CALL = ToolCall("call_0123456789", "get_weather", '{"city": "Rome"}')
_TALK = (
    ChatMessage("user", "Weather?"),
    ChatMessage("assistant", "", tool_calls=[_CALL]),
    ChatMessage("tool", '{"sky": "blue"}', tool_call_id=_CALL.id),
)


def _template(name: str) -> ChatTemplate:
    return ChatTemplate(chat_templates.ALL[name], "<s>", "</s>", strip_bos=False)


def _render(name: str, *messages: ChatMessage, **fields: Any) -> str:
    return ChatPrompts(_template(name), ByteVocabulary()).render(chat_job(*messages, **fields))


@pytest.mark.parametrize(
    ("name", "calls", "thinks", "is_generic"),
    [
        ("hermes", CallSyntax.HERMES, True, False),
        ("llama", CallSyntax.LLAMA, False, False),
        ("mistral", CallSyntax.MISTRAL, False, False),
        ("deepseek", CallSyntax.DEEPSEEK, False, False),
        ("harmony", CallSyntax.HARMONY, False, False),
        ("plain", CallSyntax.HERMES, False, True),
    ],
)
def test_the_format_is_found(name: str, calls: CallSyntax, thinks: bool, is_generic: bool) -> None:
    form = find_format(_template(name))
    assert (form.calls, form.reasoning is not None) == (calls, thinks)
    assert form.style.is_generic is is_generic


@pytest.mark.parametrize(
    ("source", "calls", "is_generic"),
    [
        ("{{ tools }}[TOOL_CALLS]name[ARGS]", CallSyntax.MISTRAL_NAMED, False),
        ("{{ tools }}<｜tool▁sep｜>", CallSyntax.DEEPSEEK_NAMED, False),
        ("{{ tools }}<tool_call><function=x>", CallSyntax.QWEN_XML, False),
        ("{{ tools }}<tool_call><arg_key>", CallSyntax.HERMES, True),
        ("{{ tools }}in a way of its own", CallSyntax.HERMES, True),
        ("knows no tools [TOOL_CALLS]", CallSyntax.HERMES, True),
    ],
)
def test_close_relatives_are_told_apart(source: str, calls: CallSyntax, is_generic: bool) -> None:
    form = find_format(ChatTemplate(source, "", ""))
    assert (form.calls, form.style.is_generic) == (calls, is_generic)


def test_mistrals_reasoning_is_found() -> None:
    form = find_format(ChatTemplate("[THINK]{{ messages }}[/THINK]", "", ""))
    assert form.reasoning is not None and form.reasoning.end == "[/THINK]"


def test_tools_and_calls_reach_the_template() -> None:
    text = _render("hermes", *_TALK, tools=[WEATHER])
    shown = text.partition("<tools>\n")[2].partition("\n")[0]
    function = json.loads(shown)["function"]
    assert (function["name"], function["parameters"]) == (WEATHER.name, WEATHER.parameters)
    assert '{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>' in text
    assert '<tool_response>\n{"sky": "blue"}\n</tool_response>' in text
    assert "reasoning" not in text


def test_reasoning_of_earlier_turns_reaches_the_template() -> None:
    text = _render("hermes", ChatMessage("assistant", "yes", reasoning="hm"))
    assert "<think>\nhm\n</think>\n\nyes" in text


def test_reasoning_before_a_call_reaches_gpt_oss_by_its_name() -> None:
    message = ChatMessage("assistant", "", tool_calls=[_CALL], reasoning="hm")
    assert "analysis<|message|>hm<|start|>assistant to=functions.get_weather" in _render(
        "harmony", message
    )


@pytest.mark.parametrize(
    "fields", [{"tools": []}, {"tools": [TIME], "tool_choice": ToolChoice.NONE}]
)
@pytest.mark.parametrize("name", ["hermes", "mistral", "plain"])
def test_without_tools_the_template_hears_of_none(name: str, fields: dict[str, Any]) -> None:
    assert _render(name, **fields) == _render(name)


def test_arguments_that_are_no_object_stay_text() -> None:
    call = ToolCall("i", "f", "[1")
    text = _render("hermes", ChatMessage("assistant", "", tool_calls=[call]))
    assert '"arguments": "[1"' in text


def test_a_template_that_joins_arguments_to_text_gets_text() -> None:
    text = _render("deepseek", *_TALK)
    assert 'get_weather\n```json\n{"city": "Rome"}\n```' in text


def test_mistrals_templates_get_short_ids_that_belong_together() -> None:
    text = _render("mistral", *_TALK)
    short = text.partition('"id": "')[2][:9]
    assert short.isalnum()
    assert f'"call_id": "{short}"' in text
    kept = ToolCall("abcDEF123", "f", "{}")
    assert '"id": "abcDEF123"' in _render(
        "mistral", ChatMessage("assistant", "", tool_calls=[kept])
    )


def test_several_calls_are_rendered_one_by_one_where_a_template_takes_one() -> None:
    text = _render("llama", ChatMessage("assistant", "", tool_calls=[_CALL, _CALL]))
    assert text.count('{"city": "Rome"}') == 2


def test_what_a_template_refuses_is_the_clients_error() -> None:
    source = """\
{%- for m in messages %}{{ m.content }}
{%- if m.content == 'Rome' %}{{ raise_exception('not this one') }}{% endif %}{% endfor %}"""
    prompts = ChatPrompts(ChatTemplate(source, "<s>", "</s>", strip_bos=False), ByteVocabulary())
    with pytest.raises(InvalidRequest, match="not this one"):
        prompts.render(chat_job(ChatMessage("user", "Rome")))


def test_a_template_without_tools_gets_plain_messages() -> None:
    text = _render("plain", *_TALK, tools=[WEATHER])
    assert text.startswith("<start_of_turn>user\nYou can call functions.")
    assert '"name": "get_weather"' in text and "Weather?<end_of_turn>" in text
    assert '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}' in text
    assert '<start_of_turn>user\n<tool_response>\n{"sky": "blue"}\n</tool_response>' in text


def test_instructions_join_the_system_message() -> None:
    template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}"
    prompts = ChatPrompts(ChatTemplate(template, "", ""), ByteVocabulary())
    job = chat_job(ChatMessage("system", "Be brief."), ChatMessage("user", "hi"), tools=[TIME])
    text = prompts.render(job)
    assert text.startswith("[system] Be brief.\n\nYou can call functions.")
    assert text.endswith("[user] hi")


def test_answers_to_several_calls_are_one_message() -> None:
    calls = [ToolCall("1", "f", "{}"), ToolCall("2", "f", "{}")]
    text = _render(
        "plain",
        ChatMessage("user", "x"),
        ChatMessage("assistant", "", tool_calls=calls),
        ChatMessage("tool", "one", tool_call_id="1"),
        ChatMessage("tool", "two", tool_call_id="2"),
        ChatMessage("user", "and?"),
    )
    assert "one\n</tool_response>\n<tool_response>\ntwo\n</tool_response>\nand?" in text


def test_template_arguments_reach_the_template_and_replace_nothing() -> None:
    text = _render("hermes", template_arguments={"enable_thinking": False})
    assert text.endswith("<think>\n\n</think>\n\n")
    for name in ("messages", "tools", "add_generation_prompt", "bos_token", "raise_exception"):
        with pytest.raises(InvalidRequest, match=name):
            _render("hermes", template_arguments={name: "x"})


def test_deep_nesting_is_the_clients_error() -> None:
    deep: dict[str, Any] = {}
    for _ in range(5000):
        deep = {"a": deep}
    with pytest.raises(InvalidRequest, match="nested"):
        _render("hermes", template_arguments={"deep": deep})


_CONTINUED = (ChatMessage("user", "Capital?"), ChatMessage("assistant", "The capital is "))


@pytest.mark.parametrize("name", [n for n in chat_templates.ALL if n != "joined"])
@pytest.mark.parametrize("tools", [[], [TIME]])
def test_a_prefix_ends_the_prompt_without_an_end_of_turn(name: str, tools: list[Any]) -> None:
    text = _render(name, *_CONTINUED, tools=tools, continues=True)
    assert text.endswith("The capital is ")
    assert text.count("The capital is") == 1 and "Capital?" in text
    ended = _render(name, *_CONTINUED, tools=tools)
    assert ended.startswith(text.rstrip())


def test_a_prefix_stands_behind_the_header_of_the_turn() -> None:
    assert _render("plain", *_CONTINUED, continues=True).endswith(
        "<start_of_turn>assistant\nThe capital is "
    )
    empty = (ChatMessage("user", "Capital?"), ChatMessage("assistant", ""))
    assert _render("plain", *empty, continues=True).endswith("<start_of_turn>assistant\n")


def test_the_reasoning_before_a_prefix_is_kept() -> None:
    message = ChatMessage("assistant", "The", reasoning="hm")
    text = _render("hermes", ChatMessage("user", "?"), message, continues=True)
    assert text.endswith("<think>\nhm\n</think>\n\nThe")


def test_a_prefix_after_another_answer_continues_both() -> None:
    talk = [ChatMessage("user", "?"), ChatMessage("assistant", "One."), _CONTINUED[1]]
    assert _render("plain", *talk, continues=True).endswith("One.\n\nThe capital is ")


def test_a_template_that_leaves_out_the_answer_cannot_continue_it() -> None:
    source = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    prompts = ChatPrompts(ChatTemplate(source, "", ""), ByteVocabulary())
    with pytest.raises(InvalidRequest, match="leaves out the message to continue"):
        prompts.render(chat_job(*_CONTINUED, continues=True))


def test_a_byte_order_mark_of_a_template_is_read_over() -> None:
    prompts = ChatPrompts(ChatTemplate("\ufeff{{ messages[0].content }}", "", ""), ByteVocabulary())
    assert prompts.render(chat_job(ChatMessage("user", "hi"))) == "hi"


# -- through the prompt builder and the publisher ------------------------------------------------


class _Engine(ScriptedEngine):
    context_length = 10_000
    vocab_size = 2000

    def __init__(self, *control_texts: str) -> None:
        super().__init__(1, [])
        self.vocabulary = ByteVocabulary({text: 1000 + i for i, text in enumerate(control_texts)})


def _builder(name: str, *control_texts: str) -> PromptBuilder:
    return PromptBuilder(_Engine(*control_texts), _template(name), [])


def test_sequences_carry_what_the_job_asks_for() -> None:
    grammar = Grammar(GrammarKind.REGEX, "a")
    job = chat_job(min_tokens=3, ignore_eos=True, grammar=grammar)
    (sequence,) = _builder("llama", "<|python_tag|>", "<|eot_id|>").sequences(job)
    assert (sequence.min_tokens, sequence.ignore_eos, sequence.grammar) == (3, True, grammar)
    assert sequence.shown_tokens == {1000}
    assert sequence.prompt.count(1001) == 2


def test_a_prompt_that_ends_in_reasoning_starts_there() -> None:
    builder = _builder("deepseek", "<think>", "</think>")
    job = chat_job(grammar=Grammar(GrammarKind.JSON_SCHEMA, "{}"))
    source = chat_templates.DEEPSEEK + "{# </think> #}"
    builder = PromptBuilder(_Engine("<think>"), ChatTemplate(source, "", ""), [])
    (sequence,) = builder.sequences(job)
    assert sequence.grammar is not None and sequence.grammar.source.startswith("start: thought")
    parts = parsers_of([sequence])[0].push("hm</think>yes")
    assert (parts.reasoning, parts.content) == ("hm", "yes")


def test_plain_chats_and_completions_need_no_parser() -> None:
    builder = _builder("llama")
    job = chat_job()
    assert parsers_of(builder.sequences(job)) == {}


_FINAL = ".<|end|><|start|>assistant<|channel|>final<|message|>More."


@pytest.mark.parametrize(("continues", "expected"), [(True, ".\nMore."), (False, "More.")])
def test_what_continues_a_message_of_gpt_oss_is_its_content(continues: bool, expected: str) -> None:
    job = chat_job(*_CONTINUED, continues=continues, grammar=Grammar(GrammarKind.REGEX, "a"))
    builder = _builder("harmony")
    sequences = builder.sequences(job)
    parser = parsers_of(sequences)[0]
    answer = _FINAL if continues else _FINAL.partition("<|end|>")[2]
    assert (parser.push(answer) + parser.finish()).content == expected
    assert (sequences[0].grammar == job.grammar) is continues


def _run(**fields: Any) -> Attempt:
    job = chat_job(tools=[TIME], num_choices=2, **fields)
    builder = _builder("hermes")
    run = Attempt(job, 0, builder.sequences(job))
    run.parsers = parsers_of(run.sequences)
    return run


def test_deltas_are_sorted_and_no_token_is_lost() -> None:
    run = _run()
    call = '<tool_call>{"name": "get_time", "arguments": {}}</tool_call>'
    steps = [
        StepResult(("j", 0), "<think>hm</th", [1]),
        StepResult(("j", 1), call[:20], [2]),
        StepResult(("j", 0), "ink>yes", [3], FinishReason.STOP),
        StepResult(("j", 1), call[20:], [4], FinishReason.STOP),
    ]
    deltas: list[Any] = [event for step in steps for _, event in events_of([(run, step)])]
    assert [(d.seq, d.index, d.token_ids) for d in deltas] == [
        (0, 0, [1]),
        (1, 1, [2]),
        (2, 0, [3]),
        (3, 1, [4]),
    ]
    assert [(d.text, d.reasoning) for d in deltas] == [("", "hm"), ("", ""), ("yes", ""), ("", "")]
    assert [d.finish_reason for d in deltas[2:]] == [FinishReason.STOP, FinishReason.TOOL_CALLS]
    (made,) = deltas[3].tool_calls
    assert (made.name, made.arguments) == ("get_time", "{}")


def test_a_call_that_is_cut_off_ends_by_its_length() -> None:
    run = _run()
    text = '<tool_call>{"name": "get_time", "arguments": {"a'
    ((_, delta),) = events_of([(run, StepResult(("j", 0), text, [1], FinishReason.LENGTH))])
    assert delta.finish_reason is FinishReason.LENGTH  # type: ignore[union-attr]
    assert delta.tool_calls[0].arguments == '{"a'  # type: ignore[union-attr]
