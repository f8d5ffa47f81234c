"""The chat page in a real Chromium against the real service."""

import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.conftest import Service, running_service, wait_for
from tests.e2e.chat_page import CONTRAST, DEADLINE_S, Chat, opened
from tests.support.admin_client import load
from tests.support.counter_model import expected_text
from tests.support.paused_replica import paused
from tests.support.plain_client import Senders

_TOO_LONG = " ".join(str(number) for number in range(600))
"""More tokens than the 512 of counter-small."""


@contextmanager
def _busy_counter(service: Service) -> Iterator[None]:
    """Make the counter model slow enough to be watched: it counts for 60 others as well."""
    with (
        service.openai() as client,
        client.completions.create(
            model="counter", prompt="500", n=60, max_tokens=2000, temperature=0, stream=True
        ) as others,
    ):
        next(iter(others))
        yield


def test_an_answer_grows_until_the_stop_button_ends_it(chat: Chat, service: Service) -> None:
    with _busy_counter(service):
        chat.send("17")
        lengths = [chat.wait_for_growth() for _ in range(3)]
        assert lengths == sorted(set(lengths))
        expect(chat.turns.last).to_have_attribute("aria-busy", "true")
        expect(chat.page.get_by_role("status")).to_have_text("Waiting for the answer")
        chat.stop.click()
        expect(chat.stats()).to_have_text(re.compile(r"^first token after [\d.]+ m?s · stopped$"))
        stopped_text = chat.answer().text_content() or ""
    expect(chat.message).to_be_focused()
    wait_for(
        # Asking the page something lets the events in.
        lambda: chat.page.title() and any(f["type"] == "cancelled" for f in chat.received),
        "the server has cancelled",
        DEADLINE_S,
    )

    chat.page.get_by_text("Sampling", exact=True).click()
    chat.page.get_by_label("Max tokens").fill("5")
    assert chat.ask("40") == expected_text(40, 5).strip()
    assert chat.answer(0).text_content() == stopped_text
    assert expected_text(17, 2047).strip().startswith(stopped_text)
    assert len(stopped_text) < len(expected_text(17, 2000))


def test_the_answer_has_its_speed_under_it(chat: Chat) -> None:
    text = chat.ask("17")
    num_tokens = len(text.split())
    assert text == expected_text(17, num_tokens).strip()
    expect(chat.stats()).to_have_text(
        re.compile(
            rf"^{num_tokens:,} tokens · [\d.,]+ tokens/s · first token after [\d.]+ m?s"
            r" · ended at the token limit$"
        )
    )
    expect(chat.page.get_by_role("status")).to_have_text(text)


def test_the_chosen_model_answers(chat: Chat) -> None:
    options = chat.model.locator("option").all_text_contents()
    assert options == ["counter", "counter-small", "gemma-3-270m"]
    # A base model that is free to choose may talk for minutes.
    chat.page.get_by_text("Sampling", exact=True).click()
    chat.page.get_by_label("Temperature").fill("0")
    chat.page.get_by_label("Max tokens").fill("32")
    chat.model.select_option("gemma-3-270m")
    expect(chat.page.get_by_text("4,096 tokens of context")).to_be_visible()
    assert re.search("[a-z]", chat.ask("What is the capital of France?"))
    chat.model.select_option("counter")
    assert chat.ask("17").startswith("18 19 20")
    assert chat.turns.locator(".model").all_text_contents() == ["gemma-3-270m", "counter"]


def test_settings_and_the_conversation_go_with_each_request(chat: Chat) -> None:
    chat.page.get_by_label("System message").fill("Count.")
    chat.page.get_by_text("Sampling", exact=True).click()
    chat.page.get_by_label("Temperature").fill("0")
    chat.page.get_by_label("Max tokens").fill("3")
    assert chat.ask("17") == "18 19 20"
    assert chat.ask("and 40") == "41 42 43"
    assert chat.requests()[-1] == {
        "model": "counter",
        "messages": [
            {"role": "system", "content": "Count."},
            {"role": "user", "content": "17"},
            {"role": "assistant", "content": "18 19 20"},
            {"role": "user", "content": "and 40"},
        ],
        "stream_options": {"include_usage": True},
        "temperature": 0,
        "max_tokens": 3,
    }


def test_a_setting_out_of_range_is_shown_and_nothing_is_sent(chat: Chat) -> None:
    chat.page.get_by_text("Sampling", exact=True).click()
    chat.page.get_by_label("Temperature").fill("3")
    chat.send("17")
    expect(chat.page.get_by_label("Temperature")).to_be_focused()
    assert chat.requests() == []
    expect(chat.message).to_have_value("17")


def test_the_chat_survives_a_reload_and_new_chat_clears_it(chat: Chat, service: Service) -> None:
    chat.page.get_by_label("System message").fill("Count.")
    text = chat.ask("17")
    with _busy_counter(service):
        chat.send("40")
        chat.wait_for_growth()
        chat.page.reload()
        expect(chat.model).to_be_enabled()
    assert chat.answer(0).text_content() == text
    expect(chat.page.get_by_label("System message")).to_have_value("Count.")
    expect(chat.turns.last).to_contain_text("The page was reloaded before the answer was complete.")

    chat.page.get_by_role("button", name="New chat").click()
    expect(chat.turns).to_have_count(0)
    expect(chat.message).to_be_focused()
    chat.ask("5")
    assert [m["content"] for m in chat.requests()[-1]["messages"]] == ["Count.", "5"]


def test_an_error_is_shown_as_text_and_the_message_can_be_mended(chat: Chat) -> None:
    chat.model.select_option("counter-small")
    chat.send(_TOO_LONG)
    expect(chat.turns.last).to_contain_text("This model's maximum context length is 512 tokens")
    expect(chat.turns.last).to_contain_text("context_length_exceeded")
    expect(chat.page.get_by_role("status")).to_contain_text("Error: This model's maximum")
    assert any(frame["type"] == "error" for frame in chat.received)

    chat.page.get_by_role("button", name="Edit the message").click()
    expect(chat.turns).to_have_count(0)
    expect(chat.message).to_have_value(_TOO_LONG)
    assert chat.ask("17").startswith("18 19 20")


def test_a_question_without_an_answer_is_asked_again_or_left_out(chat: Chat) -> None:
    chat.model.select_option("counter-small")
    chat.send(_TOO_LONG)
    expect(chat.turns.last).to_have_attribute("data-state", "failed")
    chat.model.select_option("counter")
    chat.page.get_by_role("button", name="Try again").click()
    expect(chat.turns.last).to_have_attribute("data-state", "done")
    assert (chat.answer().text_content() or "").startswith("600 601")

    chat.model.select_option("counter-small")
    chat.send(_TOO_LONG)
    expect(chat.turns.last).to_have_attribute("data-state", "failed")
    chat.model.select_option("counter")
    chat.ask("17")
    roles = [message["role"] for message in chat.requests()[-1]["messages"]]
    assert roles == ["user", "assistant", "user"]


def test_markup_in_a_message_stays_text(chat: Chat) -> None:
    markup = "<img src=x onerror=alert(1)><b>bold</b> 17"
    assert chat.ask(markup).startswith("18 19")
    expect(chat.turns.locator(".question .text")).to_have_text(markup)
    expect(chat.turns.locator("img, b")).to_have_count(0)


def test_everything_works_with_the_keyboard_alone(chat: Chat, service: Service) -> None:
    keys = chat.page.keyboard
    focused = "document.activeElement"
    expect(chat.message).to_be_focused()
    visited = []
    for _ in range(6):
        keys.press("Shift+Tab")
        visited.append(chat.page.evaluate(f"{focused}.id || {focused}.textContent"))
        assert chat.page.evaluate(f"getComputedStyle({focused}).outlineStyle") == "solid"
    assert visited == ["log", "Sampling", "system", "System message", "model", "new-chat"]
    keys.press("Tab")
    keys.press("ArrowDown")
    expect(chat.model).to_have_value("counter-small")
    keys.press("ArrowUp")
    expect(chat.model).to_have_value("counter")
    for _ in range(4):
        keys.press("Tab")
    keys.press("Tab")
    expect(chat.message).to_be_focused()
    assert chat.page.locator("#composer").evaluate("(c) => getComputedStyle(c).boxShadow") != "none"

    with _busy_counter(service):
        keys.type("count from")
        keys.press("Shift+Enter")
        keys.type("17")
        expect(chat.message).to_have_value("count from\n17")
        keys.press("Enter")
        chat.wait_for_growth()
        expect(chat.message).to_be_focused()
        keys.press("Escape")
        expect(chat.turns.last).to_have_attribute("data-state", "stopped")
    keys.type("40")
    keys.press("Tab")
    expect(chat.send_button).to_be_focused()
    keys.press("Space")
    expect(chat.turns.last).to_have_attribute("data-state", "done")
    expect(chat.message).to_be_focused()


def test_a_reader_who_scrolled_up_is_left_where_he_is(chat: Chat, service: Service) -> None:
    log = chat.page.get_by_role("region", name="Conversation")
    to_end = chat.page.get_by_role("button", name="Go to the end")
    distance = "(log) => log.scrollHeight - log.clientHeight - log.scrollTop"
    chat.ask("17")
    assert log.evaluate(distance) < 2
    with _busy_counter(service):
        chat.send("40")
        chat.wait_for_growth()
        assert log.evaluate(distance) < 2
        log.evaluate("(log) => { log.scrollTop = 100; }")
        expect(to_end).to_be_visible()
        chat.wait_for_growth()
        chat.wait_for_growth()
        assert log.evaluate("(log) => log.scrollTop") == 100
        to_end.click()
        chat.wait_for_growth()
        assert log.evaluate(distance) < 2
        expect(to_end).to_be_hidden()
        chat.stop.click()


def test_a_narrow_window_needs_no_sideways_scrolling(browser: Browser, service: Service) -> None:
    with opened(browser, service, viewport={"width": 360, "height": 640}) as chat:
        chat.ask("17")
        chat.ask("word" * 200 + " 17")
        chat.model.select_option("counter-small")
        chat.send(_TOO_LONG)
        expect(chat.turns.last).to_have_attribute("data-state", "failed")
        for summary in chat.page.locator("summary:visible").all():
            summary.click()
        expect(chat.page.get_by_label("Temperature")).to_be_visible()
        for width in (360, 320):
            chat.page.set_viewport_size({"width": width, "height": 640})
            overflowing = chat.page.evaluate(
                "[...document.querySelectorAll('body, body *')]"
                ".filter((e) => e.scrollWidth > e.clientWidth && e.clientWidth > 1"
                " && getComputedStyle(e).display !== 'inline')"
                ".map((e) => e.outerHTML.slice(0, 80))"
            )
            assert overflowing == []
            assert chat.page.evaluate("document.documentElement.scrollWidth") == width
        expect(chat.send_button).to_be_in_viewport(ratio=1)
        assert chat.complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_legible_in_light_and_dark(browser: Browser, service: Service, scheme: str) -> None:
    with opened(browser, service, color_scheme=scheme) as chat:
        chat.ask("17")
        chat.model.select_option("counter-small")
        chat.send(_TOO_LONG)
        expect(chat.turns.last).to_have_attribute("data-state", "failed")
        chat.message.fill("17")
        background = chat.page.evaluate("getComputedStyle(document.body).backgroundColor")
        is_dark = sum(int(channel) for channel in re.findall(r"\d+", background)) < 3 * 128
        assert is_dark == (scheme == "dark")
        for selector in (
            ".question .text",
            ".answer .text",
            ".model",
            ".stats",
            ".failure-text",
            ".failure-code",
            ".retry",
            ".note",
            "#model",
            "#send",
        ):
            ratio = chat.page.locator(selector).last.evaluate(CONTRAST)
            assert ratio >= 4.5, f"{selector}: {ratio:.2f}"


def test_a_web_process_that_dies_costs_an_answer_nothing_but_a_pause(
    browser: Browser, own_service: Service
) -> None:
    with opened(browser, own_service) as chat:
        notice = chat.page.get_by_role("alert")
        with _busy_counter(own_service):
            chat.send("17")
            chat.wait_for_growth()
            _kill_web(own_service)
            expect(notice).to_have_text(
                re.compile(
                    r"^\s*The connection to the server was lost. Connecting again.\s+Try now\s*$"
                )
            )
            expect(chat.turns.last).to_have_attribute("data-state", "streaming")
        expect(notice).to_be_hidden()
        expect(chat.turns.last).to_have_attribute("data-state", "done")
        text = chat.answer().text_content() or ""
        assert text == expected_text(17, len(text.split())).strip()
        assert len(text.split()) > 2000
        kinds = [f["type"] for f in chat.sent if f["type"] != "ping"]
        assert kinds == ["request", "resume"]


def test_a_question_is_asked_once_though_its_connection_was_lost_before_the_answer(
    browser: Browser, own_service: Service
) -> None:
    with opened(browser, own_service) as chat:
        (replica,) = own_service.pids("worker.replica", "counter@")
        os.kill(replica, signal.SIGSTOP)
        chat.send("17")
        _kill_web(own_service)
        notice = chat.page.get_by_role("alert")
        expect(notice).to_be_visible()
        os.kill(replica, signal.SIGCONT)
        expect(chat.turns.last).to_have_attribute("data-state", "done")
        text = chat.answer().text_content() or ""
        assert text == expected_text(17, len(text.split())).strip()


def _kill_web(service: Service) -> None:
    for pid in service.pids("gunicorn"):
        os.kill(pid, signal.SIGKILL)


def test_a_model_that_is_not_loaded_is_loaded_and_the_page_says_so(
    browser: Browser, own_service: Service
) -> None:
    with opened(browser, own_service) as chat:
        expect(chat.model.locator("option[value=lazy]")).to_have_text("lazy (not loaded)")
        chat.model.select_option("lazy")
        chat.send("17")
        (pid,) = wait_for(lambda: own_service.pids("worker.replica", "lazy@"), "it is spawned")
        os.kill(pid, signal.SIGSTOP)
        expect(chat.stats()).to_have_text(re.compile(r"^Loading lazy: [a-z ]+ \d+ %$"))
        os.kill(pid, signal.SIGCONT)
        expect(chat.turns.last).to_have_attribute("data-state", "done")
        assert (chat.answer().text_content() or "").startswith("18 19 20")


def test_a_question_that_waits_is_told_its_place(browser: Browser, tmp_path: Path) -> None:
    environ = {"LLMIS_REPLICA_WAIT_S": "60"}
    with running_service(tmp_path, environ=environ) as service, opened(browser, service) as chat:
        chat.model.select_option("counter-small")
        senders = Senders(service)
        with paused(service, "counter-small"):
            for i in range(8):
                senders.send(f"before-{i}", key="another")
            chat.send("17")
            place = re.compile(r"^(Next in the queue|In the queue behind \d+ requests?)$")
            expect(chat.stats()).to_have_text(place)
        expect(chat.turns.last).to_have_attribute("data-state", "done")
        senders.close()


def test_reasoning_is_shown_apart_from_the_answer(browser: Browser, own_service: Service) -> None:
    """The template leaves the model in the middle of its thoughts, so all of it is reasoning."""
    template = "{{ messages[-1].content }}{# </think> #}<think>"
    fields = {"context_length": 128, "chat_template": template}
    assert load(own_service, "thinker", **fields)[0] == 200
    with opened(browser, own_service) as chat:
        chat.model.select_option("thinker")
        chat.send("17")
        expect(chat.turns.last).to_have_attribute("data-state", "done")
        reasoning = chat.turns.last.locator(".reasoning")
        reasoning.locator("summary").click()
        expect(reasoning.locator("p")).to_have_text(re.compile(r"\d+ \d+ \d+"))
        expect(chat.answer()).to_have_text("")
