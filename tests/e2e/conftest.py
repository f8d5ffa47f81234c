"""The browser of the tests, and the chat page of the session's service in it."""

from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, expect

from tests.conftest import Service
from tests.e2e.chat_page import DEADLINE_S, Chat, opened
from tests.support.browser import chromium


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    expect.set_options(timeout=1000 * DEADLINE_S)
    with chromium() as browser:
        yield browser


@pytest.fixture
def chat(browser: Browser, service: Service) -> Iterator[Chat]:
    """The page in a wide window; it must ask no other host and have nothing to complain of."""
    with opened(browser, service, viewport={"width": 1200, "height": 800}) as chat:
        yield chat
        assert chat.hosts == {urlsplit(service.url).netloc}
        assert chat.complaints == []
