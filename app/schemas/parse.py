"""Decode and check request bodies, and explain what is wrong with them."""

import re
from typing import Any, TypeVar

import msgspec

from shared.errors import InvalidRequest

T = TypeVar("T", bound=msgspec.Struct)
_SHOWN_CHARS = 100


def shortened(text: str) -> str:
    """Quote a client's text in an error, cut to a bounded length."""
    return repr(text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}…")


def parse(body: bytes, shape: type[T]) -> T:
    """Decode a request body. Raises InvalidRequest with the name of the bad parameter."""
    try:
        raw = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as exc:
        raise InvalidRequest(f"The body is not valid JSON: {exc}") from exc
    return convert(raw, shape)


def convert(raw: Any, shape: type[T]) -> T:
    """Check a decoded body against a schema. Raises InvalidRequest.

    Of OpenAI's fields that are not implemented, those in `IGNORED` are dropped. Those in `REFUSED`
    would change the answer and are refused, as unknown fields are.
    """
    if not isinstance(raw, dict):
        raise InvalidRequest("The body must be a JSON object.")
    # Of the class: `msgspec.structs.fields` would evaluate all annotations once more.
    for name in raw.keys() - shape.__struct_encode_fields__:
        _check_unknown(name, raw[name])
    try:
        # JSON object keys are strings: str_keys reads the token ids of logit_bias from them.
        return msgspec.convert(raw, shape, str_keys=True)
    except msgspec.ValidationError as exc:
        raise _explain(str(exc)) from exc
    except RecursionError as exc:
        raise InvalidRequest("The body is nested too deeply.") from exc


def _check_unknown(name: str, value: Any) -> None:
    if name in IGNORED:
        return
    if name not in REFUSED:
        raise unknown_name(name)
    if value is not None and value is not False and value != []:
        raise InvalidRequest(f"{name} is not supported: {REFUSED[name]}", param=name)


def unknown_name(path: str) -> InvalidRequest:
    return InvalidRequest(
        f"Unrecognized request argument supplied: {shortened(path)}.", param=path[:_SHOWN_CHARS]
    )


def _explain(message: str) -> InvalidRequest:
    """Turn msgspec's "Expected `int`, got `str` - at `$.n`" into an error that names `n`.

    The path can also be "- at `key` in `$.logit_bias`".
    """
    # A client's name in the reason may hold anything, the path behind it cannot.
    reason, _, where = message.rpartition(" - at ")
    reason = reason or where
    path = re.search(r"`\$\.?([^`]*)`", where)
    param = re.sub(r"\[\.\.\.\]", "", path[1]) if path else ""
    unknown = re.search(r"unknown field `(.*)`$", reason, re.DOTALL)
    if unknown:
        return unknown_name(f"{param}.{unknown[1]}".lstrip("."))
    missing = re.search(r"missing required field `(\w+)`", reason)
    if missing:
        param = f"{param}.{missing[1]}".lstrip(".")
        return InvalidRequest(f"Missing required parameter: {param}.", param=param)
    return InvalidRequest(
        f"Invalid value for {param or 'the body'}: {reason}.", param=param or None
    )


IGNORED = {
    "safety_identifier": "the end user's identity is not used",
    "prompt_cache_key": "every replica finds shared prefixes on its own",
    "prompt_cache_options": "every replica finds shared prefixes on its own",
    "prompt_cache_retention": "every replica keeps prefixes while its cache has room",
    "prediction": "a hint for speed; the answer is the same without it",
    "verbosity": "the models served here are not trained to follow it",
    "moderation": "the operator may have a filter",
}
"""Accepted without effect, because OpenAI's clients send them."""
REFUSED = {
    "audio": "the models served here write text.",
    "functions": "it was replaced by tools.",
    "function_call": "it was replaced by tool_choice.",
    "web_search_options": "this service has no web search.",
}
"""Refused with 400, because they would change the answer. Null, false and an empty list are
accepted."""
