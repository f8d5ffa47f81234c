"""From bytes to a checked request body, and how a bad one is explained."""

import re
from typing import Any, TypeVar

import msgspec

from app.parameters import IGNORED, REFUSED
from shared.errors import InvalidRequest

T = TypeVar("T")
_SHOWN_CHARS = 100


def shortened(text: str) -> str:
    """A text of the client's as it is quoted in an error."""
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

    Fields that OpenAI's clients send and this service has no use for are left out; those that
    would change the answer and are not implemented are refused, and so is what nobody knows.
    """
    if not isinstance(raw, dict):
        raise InvalidRequest("The body must be a JSON object.")
    known = {field.encode_name for field in msgspec.structs.fields(shape)}  # type: ignore[arg-type]
    for name in raw.keys() - known:
        _check_unknown(name, raw[name])
    try:
        # Keys of JSON objects are text: the numbers in logit_bias's are read as such.
        return msgspec.convert(raw, shape, str_keys=True)
    except msgspec.ValidationError as exc:
        raise _explain(str(exc)) from exc
    except RecursionError as exc:
        raise InvalidRequest("The body is nested too deeply.") from exc


def _check_unknown(name: str, value: Any) -> None:
    if name in IGNORED:
        return
    if name not in REFUSED:
        raise InvalidRequest(
            f"Unrecognized request argument supplied: {shortened(name)}.", param=name[:_SHOWN_CHARS]
        )
    if value is not None and value is not False and value != []:
        raise InvalidRequest(f"{name} is not supported: {REFUSED[name]}", param=name)


def _explain(message: str) -> InvalidRequest:
    """Turn msgspec's "Expected `int`, got `str` - at `$.n`" into an error that names `n`.

    The place can also read "- at `key` in `$.logit_bias`".
    """
    reason, _, place = message.partition(" - at ")
    path = re.search(r"`\$\.?([^`]*)`", place)
    param = re.sub(r"\[\.\.\.\]", "", path[1]) if path else ""
    missing = re.search(r"missing required field `(\w+)`", reason)
    if missing:
        param = f"{param}.{missing[1]}".lstrip(".")
        return InvalidRequest(f"Missing required parameter: {param}.", param=param)
    return InvalidRequest(
        f"Invalid value for {param or 'the body'}: {reason}.", param=param or None
    )
