"""The requests whose answers are frozen: bodies by name, for the counter model."""

from typing import Any, NamedTuple

from tests.support.counter_model import number_token, trigger_token

_STEER = {str(number_token(500)): 40}
"""`logit_bias` that puts " 500" behind the end token, and before all others but the successor."""
_BYTE_0 = trigger_token("<0x00>")
NO_SPACE = {
    **{str(_BYTE_0 + byte): -100 for byte in b" \t\r\n"},
    str(trigger_token("\u2581")): -100,
}
"""`logit_bias` that keeps JSON compact: the model prefers space to all else that may follow."""
_EMPTY: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
_ONE_CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}


def _tool(name: str, parameters: dict[str, Any]) -> dict[str, Any]:
    function = {"name": name, "description": "A tool.", "parameters": parameters, "strict": True}
    return {"type": "function", "function": function}


_TOOL = _tool("weather", _ONE_CITY)
_NAMED = {"type": "function", "function": {"name": "weather"}}
_FORM = {
    "type": "json_schema",
    "json_schema": {"name": "place", "schema": _ONE_CITY, "strict": True},
}


class Body(NamedTuple):
    path: str
    fields: dict[str, Any]
    is_streamable: bool = True
    is_joined: bool = True
    """False where a stream has one chunk for each event whatever the timing."""


def _completion(prompt: Any = "17", is_streamable: bool = True, **fields: Any) -> Body:
    base = {"model": "counter", "prompt": prompt, "max_tokens": 4, "temperature": 0}
    return Body("/v1/completions", {**base, **fields}, is_streamable)


def _chat(content: Any = "17", **fields: Any) -> Body:
    messages = [{"role": "user", "content": content}]
    base = {"model": "counter", "messages": messages, "max_tokens": 4, "temperature": 0}
    return Body("/v1/chat/completions", {**base, **fields})


_USAGE = {"include_usage": True}
GENERATIONS: dict[str, Body] = {
    "completion": _completion(),
    "completion-defaults": Body("/v1/completions", {"model": "counter", "prompt": "17"}),
    "completion-n": _completion(n=3),
    "completion-one-token": _completion(max_tokens=1)._replace(is_joined=False),
    "completion-usage": _completion(n=2, stream_options=_USAGE),
    "completion-stop": _completion(stop="20"),
    "completion-stop-several": _completion(stop=["999", " 19 2"]),
    "completion-end-token": _completion("<stop>"),
    "completion-end-token-logprobs": _completion("<stop>", logprobs=1),
    "completion-logprobs-0": _completion(logprobs=0),
    "completion-logprobs-2": _completion(logprobs=2),
    "completion-half-characters": _completion("<smile>", logprobs=0, max_tokens=5),
    "completion-echo": _completion(echo=True),
    "completion-echo-n": _completion(echo=True, n=2),
    "completion-echo-logprobs": _completion("17 18", echo=True, logprobs=1),
    "completion-echo-several-logprobs": _completion(["17", "3 4"], echo=True, logprobs=0, n=2),
    "completion-echo-0-tokens": _completion("17 18 19", echo=True, logprobs=1, max_tokens=0),
    "completion-echo-token-ids": _completion([number_token(5), number_token(6)], echo=True),
    "completion-prompts": _completion(["17", "100"], n=2, stream_options=_USAGE),
    "completion-token-ids": _completion([number_token(5), number_token(6)]),
    "completion-token-id-lists": _completion([[number_token(5)], [number_token(600)]]),
    "completion-seed": _completion(temperature=1, seed=7),
    "completion-logit-bias": _completion(logit_bias={str(number_token(500)): 100}),
    "completion-best-of": _completion(best_of=3, n=2, is_streamable=False),
    "completion-min-tokens": _completion("<stop>", min_tokens=2, logit_bias=_STEER),
    "completion-ignore-eos": _completion("<stop>", ignore_eos=True, logit_bias=_STEER),
    "completion-regex": _completion(guided_regex="ab-7", max_tokens=20),
    "completion-grammar": _completion(guided_grammar='root ::= "x" "4"', max_tokens=20),
    "completion-choice": _completion(guided_choice=["yes"], max_tokens=20),
    "completion-extensions": _completion(
        top_k=5, min_p=0.1, repetition_penalty=1.0, timeout_s=60, priority="interactive"
    ),
    "chat": _chat(),
    "chat-n": _chat(n=3),
    "chat-one-token": _chat(max_tokens=1)._replace(is_joined=False),
    "chat-usage": _chat(n=2, stream_options=_USAGE),
    "chat-max-completion-tokens": _chat(max_completion_tokens=2, max_tokens=9),
    "chat-stop": _chat(stop=["21", "20"]),
    "chat-end-token": _chat("<stop>", stream_options=_USAGE),
    "chat-end-token-logprobs": _chat("<stop>", logprobs=True),
    "chat-logprobs": _chat(logprobs=True),
    "chat-top-logprobs": _chat(logprobs=True, top_logprobs=3),
    "chat-half-characters": _chat("<euro>", logprobs=True),
    "chat-seed": _chat(temperature=1, seed=7, top_p=0.9),
    "chat-logit-bias": _chat(logit_bias={str(number_token(500)): 100}),
    "chat-text-format": _chat(response_format={"type": "text"}),
    "chat-json-schema": _chat(response_format=_FORM, max_tokens=60, logit_bias=NO_SPACE),
    "chat-guided-json": _chat(guided_json=_EMPTY, max_tokens=60, logit_bias=NO_SPACE),
    "chat-named-tool": _chat(
        tools=[_TOOL], tool_choice=_NAMED, max_tokens=200, logit_bias=NO_SPACE
    ),
    "chat-required-tool": _chat(
        tools=[_TOOL],
        tool_choice="required",
        parallel_tool_calls=False,
        n=2,
        max_tokens=200,
        stream_options=_USAGE,
        logit_bias=NO_SPACE,
    ),
    "chat-tools-not-called": _chat(tools=[_TOOL], tool_choice="auto"),
    "chat-cut-off-call": _chat(
        tools=[_TOOL], tool_choice=_NAMED, max_tokens=50, logit_bias=NO_SPACE
    ),
    "chat-echoed-fields": _chat(
        metadata={"a": "b"}, service_tier="auto", store=False, user="u", stream_options=_USAGE
    ),
    "chat-content-parts": _chat([{"type": "text", "text": "17"}]),
    "chat-ignored-fields": _chat(prompt_cache_key="k", verbosity="low", function_call=None),
}
"""Answered whole, without `stream_options`, and as a stream."""

OTHERS: dict[str, Body] = {
    "tokenize": Body("/tokenize", {"model": "counter", "prompt": "17 999"}),
    "tokenize-texts": Body(
        "/tokenize",
        {
            "model": "counter",
            "prompt": "17",
            "return_token_strs": True,
            "add_special_tokens": False,
        },
    ),
    "tokenize-chat": Body(
        "/tokenize", {"model": "counter", "messages": [{"role": "user", "content": "17"}]}
    ),
    "detokenize": Body(
        "/detokenize", {"model": "counter", "tokens": [number_token(17), number_token(18)]}
    ),
}
"""Answered whole."""

_TOO_LONG = [number_token(1)] * 3000
REFUSED: dict[str, Body] = {
    "completion-unknown-field": _completion(no_such=1),
    "completion-0-tokens": _completion(max_tokens=0),
    "completion-suffix": _completion(suffix="x"),
    "completion-suffix-echo": _completion(suffix="x", echo=True),
    "completion-best-of-below-n": _completion(best_of=1, n=2),
    "completion-best-of-streamed": _completion(best_of=3, stream=True),
    "completion-temperature": _completion(temperature=3),
    "completion-stop-empty": _completion(stop=[""]),
    "completion-no-prompt": Body("/v1/completions", {"model": "counter"}),
    "completion-odd-prompt": _completion([1, "a"]),
    "completion-too-long": _completion(_TOO_LONG),
    "completion-too-long-streamed": _completion(_TOO_LONG, stream=True),
    "completion-too-many-choices": _completion(n=100000),
    "completion-bad-regex": _completion(guided_regex="("),
    "completion-bad-grammar": _completion(guided_grammar="root ::= ("),
    "completion-two-grammars": _completion(guided_regex="a", guided_choice=["a"]),
    "completion-unknown-model": _completion(model="none"),
    "chat-unknown-model": _chat(model="none"),
    "chat-no-model": Body("/v1/chat/completions", {"messages": [{"role": "user", "content": "1"}]}),
    "chat-no-messages": Body("/v1/chat/completions", {"model": "counter", "messages": []}),
    "chat-unknown-role": Body(
        "/v1/chat/completions", {"model": "counter", "messages": [{"role": "x", "content": "1"}]}
    ),
    "chat-0-tokens": _chat(max_tokens=0),
    "chat-top-logprobs-alone": _chat(top_logprobs=2),
    "chat-functions": _chat(functions=[{"name": "f"}]),
    "chat-unknown-tool": _chat(
        tools=[_TOOL], tool_choice={"type": "function", "function": {"name": "none"}}
    ),
    "chat-no-tools": _chat(tools=[], tool_choice="required"),
    "chat-options-of-no-stream": _chat(stream_options=_USAGE),
    "chat-bad-schema": _chat(guided_json={"type": "nonsense"}),
    "chat-no-object": Body("/v1/chat/completions", {}),
    "embeddings": Body("/v1/embeddings", {"model": "counter", "input": "17"}),
    "embeddings-unknown-model": Body("/v1/embeddings", {"model": "none", "input": "17"}),
    "tokenize-no-prompt": Body("/tokenize", {"model": "counter"}),
    "tokenize-unknown-model": Body("/tokenize", {"model": "none", "prompt": "17"}),
    "detokenize-unknown-token": Body("/detokenize", {"model": "counter", "tokens": [10_000_000]}),
    "load-unknown-model": Body("/admin/models/load", {"model": "none"}),
    "unload-unknown-model": Body("/admin/models/unload", {"model": "none"}),
}
"""Answered with an error."""
