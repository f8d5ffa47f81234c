"""Errors: what subclasses inherit, and what an instance carries."""

import pytest

from shared.errors import (
    InternalError,
    LlmisError,
    QueueFull,
    TooManyRequests,
    TooManyTokens,
    Unauthorized,
    Unavailable,
    all_errors,
    rebuild,
)


def test_a_class_inherits_what_it_does_not_give() -> None:
    assert (QueueFull.status, QueueFull.type, QueueFull.code) == (429, "requests", "queue_full")
    assert (TooManyTokens.type, TooManyTokens.code) == ("tokens", TooManyRequests.code)
    assert (InternalError.status, InternalError.code) == (LlmisError.status, None)


def test_the_retry_time_of_an_instance_overrides_that_of_its_class() -> None:
    assert Unavailable("m").retry_after_s == Unavailable.default_retry_after_s == 5
    assert Unavailable("m", retry_after_s=9).retry_after_s == 9
    assert InternalError("m").retry_after_s is None


def test_headers_are_those_of_the_instance() -> None:
    error = Unauthorized("m")
    error.headers["X-A"] = "1"
    assert Unauthorized("m").headers == {"WWW-Authenticate": "Bearer"}


def test_only_errors_that_never_travel_share_status_and_code() -> None:
    """`rebuild` finds a class by both."""
    ours = [error for error in all_errors() if error.__module__ == "shared.errors"]
    assert [
        error for error in ours if type(rebuild(error.status, error.code, "m", None)) is not error
    ] == [TooManyTokens]


@pytest.mark.parametrize("base", [TooManyRequests, Unavailable])
def test_every_error_comes_before_its_subclasses(base: type[LlmisError]) -> None:
    found = list(all_errors())
    assert all(found.index(base) < found.index(error) for error in all_errors(base))
