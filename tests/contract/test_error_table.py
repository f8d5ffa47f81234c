"""The errors that clients see: status, type and code of each class, and the shape of the body."""

import inspect
from typing import Any

from shared import errors
from shared.errors import ContentFiltered, InternalError, LlmisError, error_body, rebuild
from tests.contract.frozen_file import assert_frozen
from tools import error_table
from tools.marked_tables import filled

_CLASSES = {
    name: error
    for name, error in inspect.getmembers(errors, inspect.isclass)
    if issubclass(error, LlmisError)
}


def test_status_type_and_code_of_each_class() -> None:
    assert_frozen("errors/table.json", {name: _row(error) for name, error in _CLASSES.items()})


def _row(error: type[LlmisError]) -> dict[str, Any]:
    made = error("m")
    return {
        "parent": error.__bases__[0].__name__,
        "status": error.status,
        "type": error.type,
        "code": error.code,
        "retry_after_s": made.retry_after_s,
        "headers": made.headers,
    }


def test_the_body_of_each_class() -> None:
    bodies = {name: error("m", param="p").body() for name, error in _CLASSES.items()}
    assert_frozen("errors/bodies.json", bodies)


def test_the_body_without_param_and_code() -> None:
    body = {"error": {"message": "m", "type": "t", "param": None, "code": None}}
    assert error_body("m", "t", None, None) == body


def test_the_table_in_the_document_is_the_one_that_make_tables_writes() -> None:
    text = error_table.DOCUMENT.read_text()
    assert filled(text, error_table.tables()) == text, "run `make tables`"


def test_every_class_says_what_it_means() -> None:
    assert [name for name, error in _CLASSES.items() if not error.__dict__.get("__doc__")] == []


def test_the_message_about_a_rule_of_the_denylist() -> None:
    error = ContentFiltered.by("no-moon", "prompt")
    assert error.body() == {
        "error": {
            "message": "The filter refuses this text (rule 'no-moon').",
            "type": "invalid_request_error",
            "param": "prompt",
            "code": "content_filter",
        }
    }


def test_an_error_that_has_travelled() -> None:
    """Status, code, message and param travel. TooManyTokens becomes TooManyRequests, which has the
    same status and code: the web process that raises it also answers the request."""
    found = {}
    for name, error in _CLASSES.items():
        again = rebuild(error.status, error.code, "m", "p")
        assert (again.status, again.code) == (error.status, error.code)
        assert (again.message, again.param) == ("m", "p")
        found[name] = type(again).__name__
    assert_frozen("errors/rebuilt.json", found)


def test_an_unknown_error_becomes_an_internal_one() -> None:
    assert type(rebuild(418, "teapot", "m", None)) is InternalError
