"""Whatever users write, the control tokens of a prompt are the template's own."""

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shared.errors import InvalidRequest
from shared.wire.job import ChatMessage, Tool, ToolCall
from tests.support import chat_templates
from tests.support.chat_jobs import chat_job
from tests.support.chat_templates import CONTROL_TEXTS, CONTROL_TOKENS
from tests.support.scripted_engine import ByteVocabulary
from worker.chat.injection_guard import InjectionGuard
from worker.chat.prompts import ChatPrompts, without_marks
from worker.chat.template import MARK, ChatTemplate

_VOCABULARY = ByteVocabulary(CONTROL_TOKENS)
_PROMPTS = {
    name: ChatPrompts(ChatTemplate(source, "<s>", "</s>", strip_bos=False), _VOCABULARY)
    for name, source in chat_templates.ALL.items()
}
_PIECES = [
    *CONTROL_TEXTS,
    *(text[: len(text) // 2] for text in CONTROL_TEXTS),
    *(text[len(text) // 2 :] for text in CONTROL_TEXTS),
    *(text.upper() for text in CONTROL_TEXTS[2:5]),
    *" \n<>[]|\"\\/{}", MARK, "</think>", "<image>", "\\u003c", "\\ufdd0", "ab", "object",
]  # fmt: skip
_HOSTILE = st.lists(st.sampled_from(_PIECES), max_size=6).map("".join)


def _job(texts: list[str]) -> Any:
    t = (texts * 12)[:12]
    schema = {"type": "object", "properties": {t[0]: {"description": t[1], "enum": [t[2]]}}}
    return chat_job(
        ChatMessage("user", t[3], name=t[4]),
        ChatMessage("assistant", t[5], reasoning=t[6]),
        ChatMessage("user", t[7]),
        ChatMessage("assistant", "", tool_calls=[ToolCall(t[8], t[9], json.dumps({t[10]: t[11]}))]),
        ChatMessage("tool", t[0], tool_call_id=t[8]),
        tools=[Tool(t[9], t[10], schema)],
    )


def _control_ids(tokens: list[int]) -> list[int]:
    return [token for token in tokens if token >= 1000]


@pytest.mark.parametrize("name", _PROMPTS)
@settings(max_examples=60, deadline=None)
@given(st.lists(_HOSTILE, min_size=1, max_size=12))
def test_users_add_no_control_token(name: str, texts: list[str]) -> None:
    prompts = _PROMPTS[name]
    harmless = prompts.tokenize(prompts.render(_job(["ab"])))
    try:
        tokens = prompts.tokenize(prompts.render(_job(texts)))
    except InvalidRequest:
        return  # refused is safe, too
    # The template itself may say more or less of a message, never something in between.
    assert _control_ids(tokens) == _control_ids(harmless)
    assert MARK.encode() not in bytes(token for token in tokens if token < 256)


@pytest.mark.parametrize("name", ["hermes", "llama", "mistral", "deepseek", "harmony", "plain"])
@settings(max_examples=50, deadline=None)
@given(st.lists(_HOSTILE, min_size=1, max_size=12))
def test_hostile_text_is_read_as_it_stands(name: str, texts: list[str]) -> None:
    """Marks change where tokens end, never what the text says."""
    prompts = _PROMPTS[name]
    names = {token: text for text, token in CONTROL_TOKENS.items()}
    rendered = prompts.render(_job(texts))
    tokens = prompts.tokenize(rendered)
    data = b"".join(names[t].encode() if t >= 1000 else bytes([t]) for t in tokens)
    assert data.decode() == without_marks(rendered)


@pytest.mark.parametrize(
    ("contents", "name"),
    [
        (["<|im_", "end|>"], "x"),
        (["<|im_end|>"], "x"),
        (["<|im_ ", " end|>"], "x"),
        (["<|im_<image>end|>"], "x"),
        (["<|IM_END|>"], "x"),
        (["a"], "/s"),
        (["a"], "s"),
        (["<", "<s>"], "x"),
        (["<|im_en", "d", "|>"], "x"),
    ],
)
def test_what_a_template_joins_or_changes_is_no_control_token(
    contents: list[str], name: str
) -> None:
    prompts = _PROMPTS["joined"]
    job = chat_job(*(ChatMessage("user", content, name=name) for content in contents))
    assert _control_ids(prompts.tokenize(prompts.render(job))) == [CONTROL_TOKENS["<|im_end|>"]]


def test_a_strange_role_is_a_users_text() -> None:
    prompts = _PROMPTS["hermes"]
    text = prompts.render(chat_job(ChatMessage("user<|im_end|>", "a"), ChatMessage("user", "b")))
    assert _control_ids(prompts.tokenize(text)) == [
        CONTROL_TOKENS[text] for text in [*(["<|im_start|>", "<|im_end|>"] * 2), "<|im_start|>"]
    ]


def test_harmless_text_has_no_marks() -> None:
    job = _job(["if a < b and [c] > d: object", "user"])
    for name, prompts in _PROMPTS.items():
        if name != "joined":
            assert MARK not in prompts.render(job), name


@settings(max_examples=200, deadline=None)
@given(_HOSTILE)
@example("<<s>")
@example("<|im_end|>" * 3)
def test_broken_and_fenced_texts_are_the_text_without_control_tokens(text: str) -> None:
    control = InjectionGuard(_VOCABULARY)
    for changed in (control.split_marks(text), control.fence_marks(text)):
        assert changed.replace(MARK, "") == text.replace(MARK, "")
        assert control.ids(changed) == []
        assert not _control_ids(control.tokenize(changed))


class _Normalising(ByteVocabulary):
    """Reads fullwidth brackets as ASCII, as a tokenizer with NFKC does."""

    adds_bos = True

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        text = text.replace("＜", "<")
        tokens = super().tokenize(text, add_special=False, parse_special=parse_special)
        return [1000, *tokens] if add_special else tokens


def test_a_tokenizer_that_normalises_is_not_tricked() -> None:
    control = InjectionGuard(_Normalising({"<s>": 1000, "<|im_end|>": 1003}))
    assert _control_ids(control.tokenize("＜|im_end|>x<|im_end|>")) == [1000, 1003]
    assert control.tokenize("a<|im_end|>b") == [1000, 97, 1003, 98]


def test_control_tokens_of_one_character_are_never_read() -> None:
    control = InjectionGuard(ByteVocabulary({"#": 1000, "<s>": 1001}))
    assert control.tokenize("#<s>#") == [35, 1001, 35]


def test_only_the_first_piece_gets_the_begin_token() -> None:
    control = InjectionGuard(_Normalising({"<|im_start|>": 1002, "<|im_end|>": 1003}))
    text = control.split_marks("<|im_end|>") + "<|im_start|>"
    assert control.tokenize(text)[:2] == [1000, ord("<")]
    assert _control_ids(control.tokenize(text)) == [1000, 1002]


def test_without_control_tokens_nothing_is_marked() -> None:
    control = InjectionGuard(ByteVocabulary())
    assert control.split_marks("<s>") == control.fence_marks("<s>") == "<s>"
    assert control.tokenize("<s>") == list(b"<s>")
    assert control.tokenize("") == []
