"""What a request can ask of a generation, through the official client, with the counter model."""

import json
import math
from typing import Any

import openai
import pydantic
import pytest

from tests.support.counter_model import embeddings, expected_text, number_token, trigger_token

_PROMPT = [{"role": "user", "content": "17"}]


def _complete(client: openai.OpenAI, **fields: Any) -> Any:
    request = {"model": "counter", "prompt": "17", "max_tokens": 3, "temperature": 0, **fields}
    return client.completions.create(**request)


def _chat(client: openai.OpenAI, **fields: Any) -> Any:
    request = {"model": "counter", "messages": _PROMPT, "max_tokens": 3, "temperature": 0}
    return client.chat.completions.create(**{**request, **fields})


def test_chat_logprobs(client: openai.OpenAI) -> None:
    choice = _chat(client, logprobs=True, top_logprobs=3).choices[0]
    tokens = choice.logprobs.content
    # The test model drops the first space, as its settings say; the token has it.
    assert "".join(token.token for token in tokens) == " " + choice.message.content
    for token in tokens:
        assert bytes(token.bytes).decode() == token.token
        assert len(token.top_logprobs) == 3
        assert token.top_logprobs[0].token == token.token
        assert token.logprob == token.top_logprobs[0].logprob > math.log(0.9)
        values = [top.logprob for top in token.top_logprobs]
        assert values == sorted(values, reverse=True)


def test_streamed_logprobs_are_those_of_the_whole_answer(client: openai.OpenAI) -> None:
    whole = _chat(client, max_tokens=8, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    chunks = _chat(client, max_tokens=8, logprobs=True, top_logprobs=2, stream=True)
    streamed = [
        token
        for chunk in chunks
        if chunk.choices and chunk.choices[0].logprobs
        for token in chunk.choices[0].logprobs.content
    ]
    assert streamed == whole


def test_half_characters_have_their_bytes(client: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": "<euro>"}]
    choice = _chat(client, messages=messages, logprobs=True).choices[0]
    tokens = choice.logprobs.content
    assert b"".join(bytes(token.bytes) for token in tokens).decode() == "€"
    legacy = _complete(client, prompt="<euro>", logprobs=1).choices[0].logprobs
    assert legacy.tokens[0] == "bytes:\\xe2"


def test_logprobs_are_of_the_model_whatever_the_sampling(client: openai.OpenAI) -> None:
    plain = _complete(client, logprobs=0).choices[0].logprobs.token_logprobs
    pushed = _complete(client, logprobs=0, frequency_penalty=1)
    assert pushed.choices[0].logprobs.token_logprobs == pytest.approx(plain, abs=1e-4)


@pytest.mark.parametrize(
    ("penalty", "expected"),
    [
        ({}, " 900 900 900"),
        ({"presence_penalty": 2}, " 900 901"),
        ({"frequency_penalty": 0.6}, " 900 900 901"),
        ({"extra_body": {"repetition_penalty": 1.1}}, " 900 901"),
    ],
)
def test_penalties_are_of_what_was_drawn(
    client: openai.OpenAI, penalty: dict[str, Any], expected: str
) -> None:
    """A bias puts " 900" one ahead of " 901", whose logit after " 900" is the model's width."""
    vectors, before, token = embeddings(), number_token(899), number_token(900)
    bias = 1 + vectors.shape[1] - float(vectors[before] @ vectors[token])
    answer = _complete(client, prompt="900", logit_bias={str(token): bias}, **penalty)
    assert answer.choices[0].text.startswith(expected)


def test_penalties_reach_a_large_vocabulary(client: openai.OpenAI) -> None:
    request = {"model": "gemma-3-270m", "prompt": "I'm a cat. " * 3, "max_tokens": 30}
    plain = _complete(client, **request).choices[0].text
    assert plain.count("I'm a cat.") > 2
    assert _complete(client, **request, frequency_penalty=2).choices[0].text != plain


def test_legacy_logprobs_and_offsets(client: openai.OpenAI) -> None:
    choice = _complete(client, logprobs=2).choices[0]
    assert choice.logprobs.tokens == [" 18", " 19", " 20"]
    assert choice.logprobs.text_offset == [0, 3, 6]
    assert [len(top) for top in choice.logprobs.top_logprobs] == [2, 2, 2]


def test_echo_puts_the_prompt_first(client: openai.OpenAI) -> None:
    choice = _complete(client, echo=True, n=2).choices[1]
    assert choice.text == "17" + expected_text(17, 3)
    streamed = "".join(c.choices[0].text for c in _complete(client, echo=True, stream=True))
    assert streamed == "17" + expected_text(17, 3)


def test_echo_of_token_ids_is_their_text(client: openai.OpenAI) -> None:
    prompt = [number_token(5), number_token(6)]
    assert _complete(client, prompt=prompt, echo=True).choices[0].text == " 5 6 7 8 9"


def test_a_prompt_is_scored_without_a_completion(client: openai.OpenAI) -> None:
    """What evaluation harnesses ask for."""
    numbers = " ".join(str(n) for n in range(100, 140))
    answer = _complete(client, prompt=numbers, echo=True, logprobs=1, max_tokens=0)
    choice = answer.choices[0]
    logprobs = choice.logprobs
    assert choice.text == numbers
    assert choice.finish_reason == "length"
    assert answer.usage.completion_tokens == 0
    assert answer.usage.prompt_tokens == len(logprobs.tokens)
    assert logprobs.token_logprobs[0] is None and logprobs.top_logprobs[0] is None
    # Each number foretells the next one.
    assert all(value > math.log(0.9) for value in logprobs.token_logprobs[2:])
    assert logprobs.tokens[-2:] == [" 138", " 139"]


def test_a_scored_prompt_may_also_be_continued(client: openai.OpenAI) -> None:
    choice = _complete(client, echo=True, logprobs=0).choices[0]
    assert choice.text == "17 18 19 20"
    assert choice.logprobs.tokens[-3:] == [" 18", " 19", " 20"]
    assert all(value > math.log(0.9) for value in choice.logprobs.token_logprobs[-3:])


def test_an_evaluation_harness_finds_one_token_behind_its_context(client: openai.OpenAI) -> None:
    """lm-evaluation-harness cuts off the last of all tokens: also an end is one."""
    request = {"echo": True, "logprobs": 1, "max_tokens": 1}
    for prompt, generated in (("7 <stop>", "</s>"), ("7", " 8")):
        choice = _complete(client, prompt=prompt, **request).choices[0]
        alone = _complete(client, prompt=prompt, **{**request, "max_tokens": 0}).choices[0]
        assert choice.logprobs.tokens == [*alone.logprobs.tokens, generated]
        assert choice.logprobs.token_logprobs[-1] > math.log(0.9)
        assert choice.logprobs.top_logprobs[-1].keys() == {generated}
    assert choice.logprobs.tokens[0] == "<s>"


def test_a_message_has_no_logprobs_of_its_end(client: openai.OpenAI) -> None:
    fields = {"messages": [{"role": "user", "content": "<stop>"}], "logprobs": True}
    choice = _chat(client, **fields).choices[0]
    assert choice.finish_reason == "stop"
    assert choice.logprobs.content == []
    chunks = [c.choices[0] for c in _chat(client, **fields, stream=True) if c.choices]
    assert not any(choice.logprobs for choice in chunks)


def test_offsets_are_those_of_the_echoed_text(client: openai.OpenAI) -> None:
    """The vocabulary puts a space in front of a text, which its echo does not have."""
    for prompt in ("17 18", [number_token(17), number_token(18)]):
        choice = _complete(client, prompt=prompt, echo=True, logprobs=0).choices[0]
        logprobs = choice.logprobs
        for token, offset in list(zip(logprobs.tokens, logprobs.text_offset, strict=True))[-4:]:
            assert choice.text.startswith(token, offset)
    assert _complete(client, echo=True, logprobs=0).choices[0].logprobs.text_offset[:2] == [0, 0]


def test_the_chosen_token_is_among_the_alternatives(client: openai.OpenAI) -> None:
    bias = {str(number_token(500)): 100}
    for num_alternatives in (0, 1):
        request = {"logprobs": num_alternatives, "logit_bias": bias}
        logprobs = _complete(client, **request).choices[0].logprobs
        assert logprobs.tokens == [" 500"] * 3
        for value, top in zip(logprobs.token_logprobs, logprobs.top_logprobs, strict=True):
            assert top[" 500"] == value
        assert len(logprobs.top_logprobs[0]) == num_alternatives + 1


def test_a_scored_prompt_is_that_of_all_choices_streamed_or_whole(client: openai.OpenAI) -> None:
    prompt = " ".join(str(n) for n in range(100, 160))
    request = {"prompt": [prompt, "7"], "n": 3, "echo": True, "logprobs": 1, "max_tokens": 4}
    whole = _complete(client, **request).choices
    assert len(whole) == 6
    streamed: list[dict[str, Any]] = [{"text": ""} for _ in whole]
    for chunk in _complete(client, **request, stream=True):
        (choice,) = chunk.choices
        streamed[choice.index]["text"] += choice.text
        for name, values in (choice.logprobs.model_dump() if choice.logprobs else {}).items():
            streamed[choice.index].setdefault(name, []).extend(values)
    for found, choice in zip(streamed, whole, strict=True):
        assert found["text"] == choice.text
        assert found["tokens"] == choice.logprobs.tokens
        assert found["text_offset"] == choice.logprobs.text_offset
        assert found["token_logprobs"] == pytest.approx(choice.logprobs.token_logprobs, abs=1e-4)
    assert whole[2].text == prompt + expected_text(159, 4)
    assert whole[5].text == "7" + expected_text(7, 4)


def test_too_many_logprobs_of_prompts_are_refused(client: openai.OpenAI) -> None:
    prompt = [number_token(n % 1000) for n in range(2000)]
    request = {"prompt": prompt, "n": 64, "echo": True, "max_tokens": 1}
    with pytest.raises(openai.BadRequestError, match="at most 200000") as caught:
        _complete(client, **request, logprobs=1)
    assert caught.value.param == "logprobs"
    assert len(_complete(client, **request).choices) == 64


def test_best_of_gives_the_surest(client: openai.OpenAI) -> None:
    """A bias makes the end as probable as " 18": the model itself is sure that it is not."""
    vectors = embeddings()
    before_end, number = trigger_token("<stop>"), number_token(17)
    bias = vectors.shape[1] - float(vectors[before_end] @ vectors[number])
    request = {"temperature": 1, "seed": 1, "logit_bias": {"2": bias}}
    made = _complete(client, n=32, logprobs=0, **request).choices
    sure = [sum(c.logprobs.token_logprobs) / len(c.logprobs.tokens) for c in made]
    assert "" in [choice.text for choice in made], "some end at once"
    answer = _complete(client, best_of=32, n=2, **request)
    assert [choice.index for choice in answer.choices] == [0, 1]
    best = sorted(range(32), key=lambda i: -sure[i])[:2]
    assert [choice.text for choice in answer.choices] == [made[i].text for i in best]
    assert answer.choices[0].text == expected_text(17, 3)
    assert answer.choices[0].logprobs is None


def test_best_of_an_echoed_prompt_scores_no_prompt(client: openai.OpenAI) -> None:
    answer = _complete(client, best_of=4, n=1, echo=True)
    assert [choice.text for choice in answer.choices] == ["17 18 19 20"]
    assert answer.choices[0].logprobs is None
    assert answer.usage.completion_tokens == 12


def test_the_minimum_and_the_end(client: openai.OpenAI) -> None:
    def answer(**extra: Any) -> Any:
        return _complete(client, prompt="<stop>", max_tokens=6, extra_body=extra)

    assert answer().usage.completion_tokens == 1
    assert answer(min_tokens=4).usage.completion_tokens >= 4
    ignoring = answer(ignore_eos=True)
    assert ignoring.usage.completion_tokens == 6
    assert ignoring.choices[0].finish_reason == "length"


def test_a_regular_expression(client: openai.OpenAI) -> None:
    choice = _complete(client, max_tokens=50, extra_body={"guided_regex": "[a-c]{4}-7"}).choices[0]
    assert len(choice.text) == 6 and choice.text.endswith("-7")
    assert choice.finish_reason == "stop"


def test_a_choice(client: openai.OpenAI) -> None:
    extra = {"guided_choice": ["yes", "no"]}
    assert _complete(client, max_tokens=20, extra_body=extra).choices[0].text in ("yes", "no")


def test_a_grammar(client: openai.OpenAI) -> None:
    extra = {"guided_grammar": 'start: "a" tail\ntail: "b" | "c" tail'}
    text = _complete(client, max_tokens=50, temperature=1, seed=3, extra_body=extra).choices[0].text
    assert text[0] == "a" and set(text[1:-1]) <= {"c"}


def test_a_grammar_in_gbnf(client: openai.OpenAI) -> None:
    extra = {"guided_grammar": 'root ::= "x" digit digit\ndigit ::= [4-6]'}
    text = _complete(client, max_tokens=20, extra_body=extra).choices[0].text
    assert text[0] == "x" and set(text[1:]) <= set("456") and len(text) == 3


def test_a_grammar_in_lark_may_mark_its_rules(client: openai.OpenAI) -> None:
    extra = {"guided_grammar": "?start: e\n!e: /[4-6]{2}/"}
    text = _complete(client, max_tokens=20, extra_body=extra).choices[0].text
    assert len(text) == 2 and set(text) <= set("456")


@pytest.mark.parametrize("kind", ["json_object", "json_schema"])
def test_the_schema_of_an_answer_needs_no_name(client: openai.OpenAI, kind: str) -> None:
    schema = {"properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"]}
    schema |= {"type": "object"} if kind == "json_schema" else {}
    form = {"response_format": {"type": kind, "schema": schema}}
    answer = _chat(client, n=4, max_tokens=100, temperature=1, seed=3, extra_body=form)
    for choice in answer.choices:
        assert choice.finish_reason == "stop"
        assert json.loads(choice.message.content) in ({"a": "x"}, {"a": "y"})


class _Answer(pydantic.BaseModel):
    number: int
    is_even: bool


def test_a_schema_is_kept_and_parsed(client: openai.OpenAI) -> None:
    parsed = client.chat.completions.parse(
        model="counter", messages=_PROMPT, response_format=_Answer, max_tokens=200,  # type: ignore[arg-type]
        logit_bias={str(number_token(n)): -100 for n in range(1000)},
    )  # fmt: skip
    answer = parsed.choices[0]
    if answer.finish_reason == "stop":
        assert isinstance(answer.message.parsed, _Answer)


def test_an_enumeration_is_kept_with_many_choices(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "green"]}, "done": {"type": "boolean"}},
        "required": ["colour", "done"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "c", "schema": schema, "strict": True}}
    answer = _chat(client, n=4, max_tokens=100, temperature=1, response_format=form)
    for choice in answer.choices:
        assert choice.finish_reason == "stop"
        made = json.loads(choice.message.content)
        assert made["colour"] in ("red", "green") and isinstance(made["done"], bool)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"extra_body": {"guided_regex": "("}}, "guided_regex"),
        ({"extra_body": {"guided_grammar": "start: nothing"}}, "guided_grammar"),
        ({"extra_body": {"guided_grammar": "root ::= ("}}, "guided_grammar"),
        ({"extra_body": {"guided_json": {"type": "nonsense"}}}, "guided_json"),
        (
            {"extra_body": {"response_format": {"type": "text", "schema": {}}}},
            "response_format.schema",
        ),
        ({"extra_body": {"guided_regex": "a", "guided_choice": ["a"]}}, "guided_regex"),
        ({"extra_body": {"guided_regex": "a", "ignore_eos": True}}, "ignore_eos"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 1, "n": 2}, "best_of"),
        ({"best_of": 3, "stream": True}, "best_of"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"extra_body": {"no_such": 1}}, "no_such"),
    ],
)
def test_what_cannot_be_is_refused(
    client: openai.OpenAI, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        _complete(client, **fields)
    assert caught.value.param == param


def test_a_request_can_have_a_deadline_of_its_own(client: openai.OpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        _complete(client, max_tokens=1_000_000, extra_body={"timeout_s": 0.05, "n": 64})
    assert caught.value.status_code == 504


def test_what_openai_echoes_is_echoed(client: openai.OpenAI) -> None:
    answer = _chat(client, metadata={"a": "b"}, service_tier="auto", store=False)
    assert answer.service_tier == "default"
    assert answer.metadata == {"a": "b"}
    assert answer.system_fingerprint


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ({"guided_choice": [" lead"]}, " lead"),
        ({"guided_regex": " 1[89]"}, " 18"),
        ({"guided_grammar": 'root ::= " a"'}, " a"),
        ({}, "18 19 20"),
    ],
)
def test_a_form_keeps_the_space_that_chats_of_this_model_leave_out(
    client: openai.OpenAI, form: dict[str, Any], expected: str
) -> None:
    answer = _chat(client, extra_body=form, max_tokens=9 if form else 3)
    assert answer.choices[0].message.content == expected
