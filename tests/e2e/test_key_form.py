"""The chat page of a service that asks for keys, in a real Chromium."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Locator, expect

from shared import api_keys
from shared.api_keys import Scope
from tests.conftest import Service, running_service
from tests.e2e.chat_page import CONTRAST, DEADLINE_S, Chat

_STORED = "(storage) => Object.values(window[storage]).filter((text) => text.startsWith('sk-'))"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running_service(tmp_path_factory.mktemp("guarded"), extra="auth = true") as running:
        yield running


@contextmanager
def _context(browser: Browser, **options: Any) -> Iterator[BrowserContext]:
    context = browser.new_context(**options)
    context.set_default_timeout(1000 * DEADLINE_S)
    yield context
    context.close()


def _visit(context: BrowserContext, service: Service) -> Chat:
    chat = Chat(context.new_page())
    chat.watch()
    chat.page.goto(service.url)
    return chat


def _field(chat: Chat) -> Locator:
    return chat.page.get_by_role("textbox", name="API key")


def _enter(chat: Chat, key: str) -> None:
    _field(chat).fill(key)
    chat.page.get_by_role("button", name="Use this key").click()


def _make_key(service: Service) -> str:
    return api_keys.create(service.redis, "page", Scope.USER)[0]


def test_a_key_is_asked_for_tried_and_kept_for_the_tab(browser: Browser, guarded: Service) -> None:
    key = _make_key(guarded)
    with _context(browser) as context:
        chat = _visit(context, guarded)
        expect(_field(chat)).to_be_focused()
        expect(_field(chat)).to_have_attribute("type", "password")
        expect(chat.message).to_be_hidden()
        expect(chat.model).to_contain_text("Needs an API key")
        expect(chat.page.get_by_role("alert")).to_be_hidden()
        for wrong, fault in (
            ("", "Enter a key."),
            ("two words", "An API key has no spaces"),
            ("sk-llmis-wrong", "The API key is not known."),
        ):
            _enter(chat, wrong)
            expect(chat.page.get_by_role("alert")).to_contain_text(fault)
            expect(_field(chat)).to_be_focused()
            expect(_field(chat)).to_have_attribute("aria-invalid", "true")
        assert chat.page.evaluate(_STORED, "sessionStorage") == []

        _enter(chat, f" {key} ")
        expect(chat.message).to_be_focused()
        expect(_field(chat)).to_be_hidden()
        assert chat.ask("17").startswith("18 19 20")
        assert chat.page.evaluate(_STORED, "sessionStorage") == [key]
        assert chat.page.evaluate(_STORED, "localStorage") == []

        chat.page.reload()
        expect(chat.model).to_be_enabled()
        assert chat.ask("40").startswith("41 42 43")
        other_tab = _visit(context, guarded)
        expect(_field(other_tab)).to_be_visible()
        assert chat.complaints == other_tab.complaints == []
        assert all(key not in url for url in (chat.page.url, *chat.urls))


def test_a_key_is_remembered_by_choice_until_it_is_forgotten(
    browser: Browser, guarded: Service
) -> None:
    key = _make_key(guarded)
    with _context(browser) as context:
        chat = _visit(context, guarded)
        chat.page.get_by_label("Remember it on this device").check()
        _enter(chat, key)
        expect(chat.model).to_be_enabled()
        assert chat.page.evaluate(_STORED, "localStorage") == [key]

        other_tab = _visit(context, guarded)
        assert other_tab.ask("17").startswith("18 19 20")
        other_tab.page.get_by_role("button", name="Forget the API key").click()
        expect(_field(other_tab)).to_be_focused()
        expect(other_tab.page.get_by_role("alert")).to_be_hidden()
        for storage in ("localStorage", "sessionStorage"):
            assert other_tab.page.evaluate(_STORED, storage) == []
        other_tab.page.reload()
        expect(_field(other_tab)).to_be_visible()
        assert chat.complaints == other_tab.complaints == []


def test_a_key_that_is_revoked_is_asked_for_again_and_the_conversation_stays(
    browser: Browser, guarded: Service
) -> None:
    key, record = api_keys.create(guarded.redis, "page", Scope.USER)
    with _context(browser) as context:
        chat = _visit(context, guarded)
        _enter(chat, key)
        first = chat.ask("17")
        api_keys.revoke(guarded.redis, record.id)
        # Web processes hear of it within a second.
        chat.page.wait_for_timeout(2000)
        chat.send("40")
        expect(_field(chat)).to_be_focused()
        expect(chat.page.locator("#key-fault")).to_have_text(re.compile("API key"))
        expect(chat.answer(0)).to_have_text(first)
        expect(chat.turns).to_have_count(2)
        expect(chat.turns.last).to_contain_text("invalid_api_key")
        expect(chat.turns.last.locator(".failure")).to_be_in_viewport(ratio=1)
        assert chat.page.evaluate(_STORED, "sessionStorage") == []

        _enter(chat, _make_key(guarded))
        expect(_field(chat)).to_be_hidden()
        chat.page.get_by_role("button", name="Try again").click()
        expect(chat.turns.last).to_have_attribute("data-state", "done")
        assert (chat.answer().text_content() or "").startswith("41 42")
        assert [m["role"] for m in chat.requests()[-1]["messages"]] == ["user", "assistant", "user"]
        assert chat.complaints == []


def test_the_form_works_with_the_keyboard_alone(browser: Browser, guarded: Service) -> None:
    key = _make_key(guarded)
    with _context(browser) as context:
        chat = _visit(context, guarded)
        expect(_field(chat)).to_be_focused()
        keys = chat.page.keyboard
        keys.type(key)
        keys.press("Tab")
        expect(chat.page.get_by_label("Remember it on this device")).to_be_focused()
        keys.press("Space")
        keys.press("Tab")
        expect(chat.page.get_by_role("button", name="Use this key")).to_be_focused()
        keys.press("Enter")
        expect(chat.message).to_be_focused()
        assert chat.page.evaluate(_STORED, "localStorage") == [key]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_form_is_legible_and_fits(browser: Browser, guarded: Service, scheme: Any) -> None:
    with _context(browser, color_scheme=scheme) as context:
        chat = _visit(context, guarded)
        _enter(chat, "sk-llmis-wrong")
        expect(chat.page.locator("#key-fault")).to_be_visible()
        for selector in (".field label[for=key]", "#key-fault", "#key-note", ".choice label",
                         "#remember-note", ".key-form .main-action", "#key"):  # fmt: skip
            ratio = chat.page.locator(selector).evaluate(CONTRAST)
            assert ratio >= 4.5, f"{selector}: {ratio:.2f}"
        for width in (1200, 320):
            chat.page.set_viewport_size({"width": width, "height": 640})
            assert chat.page.evaluate("document.documentElement.scrollWidth") == width
            assert (
                chat.page.locator("#key-form").evaluate("(f) => f.scrollWidth - f.clientWidth") == 0
            )
            expect(chat.page.get_by_role("button", name="Use this key")).to_be_in_viewport(ratio=1)
