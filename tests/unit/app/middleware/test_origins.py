"""Which names in the header `Host` the service answers to."""

import pytest

from app.middleware.origins import is_allowed_host
from shared.settings.fields import Settings


def _settings(host: str = "127.0.0.1", *names: str, auth: bool = False) -> Settings:
    return Settings(host=host, allowed_hosts=list(names), auth=auth, open_access=True)


@pytest.mark.parametrize(
    ("host", "settings", "is_allowed"),
    [
        ("localhost:8000", _settings(), True),
        ("10.0.0.7:8000", _settings(), True),
        ("evil.example", _settings(), False),
        ("", _settings(), False),
        ("evil.example", _settings("0.0.0.0"), True),
        ("evil.example", _settings("0.0.0.0", "my_service"), False),
        ("my_service:8000", _settings("0.0.0.0", "my_service"), True),
        ("MY_SERVICE:8000", _settings("127.0.0.1", "my_service"), True),
        ("evil.example", _settings("127.0.0.1", "*"), True),
        ("web:8000", _settings("0.0.0.0", "llm.example.com", auth=True), True),
        ("evil.example", _settings(auth=True), True),
    ],
)
def test_names_are_answered_that_cannot_have_been_pointed_here(
    host: str, settings: Settings, is_allowed: bool
) -> None:
    assert is_allowed_host(host, settings) == is_allowed
