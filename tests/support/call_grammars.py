"""Calls in every format, and what llguidance itself admits of them."""

import json

from llguidance import LLMatcher, LLTokenizer
from tokenizers import AddedToken, Tokenizer

from shared.wire.job import Grammar, GrammarKind
from tests.support import exl2_folder
from tests.support.chat_templates import CONTROL_TEXTS
from worker.chat.tool_call_formats import CallSyntax
from worker.grammar.constraint import new_matcher

_SAID = {
    CallSyntax.HERMES: '<tool_call>\n{"name": "NAME", "arguments": ARGS}\n</tool_call>',
    CallSyntax.HARMONY: "<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>ARGS",
    CallSyntax.LLAMA: '{"name": "NAME", "parameters": ARGS}',
    CallSyntax.MISTRAL: '[TOOL_CALLS][{"name": "NAME", "arguments": ARGS}]',
    CallSyntax.MISTRAL_NAMED: "[TOOL_CALLS]NAME[ARGS]ARGS_",
    CallSyntax.DEEPSEEK: "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME\n"
    "```json\nARGS\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    CallSyntax.DEEPSEEK_NAMED: "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>NAME<｜tool▁sep｜>ARGS"
    "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
}
_BETWEEN = {
    CallSyntax.HERMES: ("", "\n", ""),
    CallSyntax.HARMONY: ("", "<|call|><|start|>assistant", ""),
    CallSyntax.LLAMA: ("", "; ", ""),
    CallSyntax.MISTRAL: ("[TOOL_CALLS][", ", ", "]"),
    CallSyntax.MISTRAL_NAMED: ("", "", ""),
    CallSyntax.DEEPSEEK: ("<｜tool▁calls▁begin｜>", "\n", "<｜tool▁calls▁end｜>"),
    CallSyntax.DEEPSEEK_NAMED: ("<｜tool▁calls▁begin｜>", "", "<｜tool▁calls▁end｜>"),
}


def xml_call(name: str, arguments: str) -> str:
    values = json.loads(arguments)
    parameters = "".join(
        f"<parameter={key}>\n{value if isinstance(value, str) else json.dumps(value)}\n"
        "</parameter>\n"
        for key, value in (values.items() if isinstance(values, dict) else [("bad", values)])
    )
    return f"<tool_call>\n<function={name}>\n{parameters}</function>\n</tool_call>"


def said(syntax: CallSyntax, *calls: tuple[str, str]) -> str:
    if syntax is CallSyntax.QWEN_XML:
        return "\n".join(xml_call(name, arguments) for name, arguments in calls)
    first, between, last = _BETWEEN[syntax]
    one = _SAID[syntax].replace("[ARGS]ARGS_", "[ARGS]{ARGS}").replace("ARGS_", "ARGS")
    one = one.removeprefix(first).removesuffix(last)
    texts = [
        one.replace("{ARGS}", arguments).replace("NAME", name)
        if syntax is CallSyntax.MISTRAL_NAMED
        else one.replace("ARGS", arguments).replace("NAME", name)
        for name, arguments in calls
    ]
    return first + between.join(texts) + last


class World:
    """A byte tokenizer, with or without the marks as control tokens."""

    def __init__(self, *, has_control_tokens: bool) -> None:
        texts = [*CONTROL_TEXTS, "<think>", "</think>"] if has_control_tokens else []
        self._tokenizer: Tokenizer = exl2_folder.make_tokenizer()
        self._tokenizer.add_special_tokens([AddedToken(text, special=True) for text in texts])
        self.control_tokens = {text: self._tokenizer.token_to_id(text) for text in texts}
        self._guide = LLTokenizer(self._tokenizer.to_str(), eos_token=[2])

    def error(self, grammar: Grammar) -> str:
        """Why the grammar cannot be compiled; "" if it can."""
        return str(self._matcher(grammar).get_error() or "")

    def admits(self, grammar: Grammar | None, text: str) -> bool:
        assert grammar is not None
        matcher = self._matcher(grammar)
        assert not matcher.is_error(), matcher.get_error()
        tokens = self._tokenizer.encode(text, add_special_tokens=False).ids
        for token in tokens:
            # As in an engine: what a mask is made of has limits of its own.
            matcher.compute_bitmask()
            assert not matcher.is_error(), matcher.get_error()
            if not matcher.try_consume_tokens([token]):
                return False
        return bool(matcher.is_accepting())

    def _matcher(self, grammar: Grammar) -> LLMatcher:
        source = {
            GrammarKind.LARK: LLMatcher.grammar_from_lark,
            GrammarKind.JSON_SCHEMA: lambda schema: LLMatcher.grammar_from_json_schema(schema),
            GrammarKind.REGEX: LLMatcher.grammar_from_regex,
        }[grammar.kind](grammar.source)
        return new_matcher(self._guide, source)
