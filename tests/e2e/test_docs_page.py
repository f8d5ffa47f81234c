"""The API's documentation in a browser: whole, under a strict policy, without another host."""

import json
import urllib.request
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.conftest import Service
from tests.e2e.chat_page import DEADLINE_S, Chat


@pytest.fixture
def docs(browser: Browser, service: Service, request: pytest.FixtureRequest) -> Iterator[Page]:
    """The page, light or in the colour scheme of the parameter; it must have nothing to complain
    of."""
    context = browser.new_context(
        color_scheme=getattr(request, "param", "light"), viewport={"width": 1200, "height": 1000}
    )
    context.set_default_timeout(1000 * DEADLINE_S)
    watcher = Chat(context.new_page())
    watcher.watch()
    watcher.page.goto(f"{service.url}/docs")
    yield watcher.page
    context.close()
    assert watcher.hosts == {urlsplit(service.url).netloc}
    assert watcher.complaints == []


def test_every_operation_is_shown_and_one_can_be_tried(docs: Page, service: Service) -> None:
    with urllib.request.urlopen(f"{service.url}/openapi.json") as answer:
        paths = json.load(answer)["paths"]
    expect(docs.locator(".opblock")).to_have_count(sum(len(methods) for methods in paths.values()))
    chat = docs.locator("#operations-Inference-generation_chat_completions")
    chat.get_by_role("button").first.click()
    expect(chat.get_by_text("text/event-stream")).to_be_attached()

    health = docs.locator("#operations-Service-health_healthz")
    health.get_by_role("button").first.click()
    health.get_by_role("button", name="Try it out").click()
    health.get_by_role("button", name="Execute").click()
    expect(health.locator(".live-responses-table tbody .response-col_status")).to_contain_text(
        "200"
    )


@pytest.mark.parametrize("docs", ["light", "dark"], indirect=True)
def test_it_takes_the_colours_that_the_system_asks_for(docs: Page) -> None:
    is_dark = docs.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    expect(docs.locator(".opblock").first).to_be_visible()
    lightness = docs.evaluate(
        "getComputedStyle(document.documentElement).backgroundColor.match(/\\d+/g).map(Number)"
    )
    assert (max(lightness) < 64) == is_dark
