"""The browser of the tests, and the chat page of the session's service in it."""

from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, expect, sync_playwright

from tests.conftest import Service
from tests.e2e.chat_page import DEADLINE_S, Chat, opened

_CHROMIUM = "/usr/bin/chromium"
_CHROMIUM_ARGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    expect.set_options(timeout=1000 * DEADLINE_S)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_CHROMIUM, args=_CHROMIUM_ARGS)
        yield browser
        browser.close()


@pytest.fixture
def chat(browser: Browser, service: Service) -> Iterator[Chat]:
    """The page in a wide window; it must ask no other host and have nothing to complain of."""
    with opened(browser, service, viewport={"width": 1200, "height": 800}) as chat:
        yield chat
        assert chat.hosts == {urlsplit(service.url).netloc}
        assert chat.complaints == []
