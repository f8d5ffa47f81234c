"""The chat page as its user sees it: what the browser tests act on."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Browser, Locator, Page, WebSocket, expect

from tests.conftest import Service, wait_for

DEADLINE_S = 60.0
"""Other work shares the machine; only a test that fails waits this long."""
CONTRAST = """
(element) => {
  const channels = (text) => text.match(/[\\d.]+/g).map(Number);
  const behind = (node) => {
    const [r, g, b, alpha = 1] = channels(getComputedStyle(node).backgroundColor);
    return alpha > 0 ? [r, g, b] : behind(node.parentElement);
  };
  const luminance = (rgb) => rgb.slice(0, 3)
    .map((c) => c / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const pair = [channels(getComputedStyle(element).color), behind(element)].map(luminance);
  return (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
}
"""
"""WCAG 2.2's contrast ratio of an element's text to what lies behind it."""
_REPORT_VIOLATIONS = """
document.addEventListener('securitypolicyviolation', (event) =>
  console.error(`CSP: ${event.violatedDirective} ${event.blockedURI}`));
"""


@dataclass
class Chat:
    """The page as its user sees it, and what it did behind that."""

    page: Page
    sent: list[dict[str, Any]] = field(default_factory=list)
    received: list[dict[str, Any]] = field(default_factory=list)
    hosts: set[str] = field(default_factory=set)
    urls: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    """Console errors and warnings, uncaught exceptions, CSP violations."""

    def watch(self) -> None:
        self.page.on("request", lambda request: self._visit(request.url))
        self.page.on("websocket", self._watch_socket)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", self._hear)
        self.page.add_init_script(_REPORT_VIOLATIONS)

    def _visit(self, url: str) -> None:
        if not url.startswith("data:"):
            self.urls.append(url)
            self.hosts.add(urlsplit(url).netloc)

    def _watch_socket(self, socket: WebSocket) -> None:
        self._visit(socket.url)
        socket.on("framesent", lambda payload: self.sent.append(json.loads(payload)))
        socket.on("framereceived", lambda payload: self.received.append(json.loads(payload)))

    def _hear(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def open(self, url: str) -> None:
        self.page.goto(url)
        expect(self.model).to_be_enabled()

    @property
    def model(self) -> Locator:
        return self.page.get_by_role("combobox", name="Model")

    @property
    def message(self) -> Locator:
        return self.page.get_by_role("textbox", name="Message", exact=True)

    @property
    def stop(self) -> Locator:
        return self.page.get_by_role("button", name="Stop")

    @property
    def send_button(self) -> Locator:
        return self.page.get_by_role("button", name="Send")

    @property
    def turns(self) -> Locator:
        return self.page.get_by_role("article")

    def answer(self, turn: int = -1) -> Locator:
        return self.turns.nth(turn).locator(".answer .text")

    def stats(self, turn: int = -1) -> Locator:
        return self.turns.nth(turn).locator(".stats")

    def send(self, text: str) -> None:
        self.message.fill(text)
        self.send_button.click()

    def ask(self, text: str) -> str:
        """Send a message and return the whole answer."""
        self.send(text)
        expect(self.send_button).to_be_visible()
        expect(self.turns.last).to_have_attribute("data-state", "done")
        return self.answer().text_content() or ""

    def answer_length(self, turn: int = -1) -> int:
        return len(self.answer(turn).text_content() or "")

    def wait_for_growth(self) -> int:
        """Wait until the answer that streams has become longer; return its length."""
        before = self.answer_length()
        return int(
            wait_for(
                lambda: length if (length := self.answer_length()) > before else 0,
                "the answer grows",
                DEADLINE_S,
            )
        )

    def requests(self) -> list[dict[str, Any]]:
        """Bodies of the requests so far."""
        return [frame["body"] for frame in self.sent if frame["type"] == "request"]


@contextmanager
def opened(browser: Browser, service: Service, **options: Any) -> Iterator[Chat]:
    context = browser.new_context(**options)
    context.set_default_timeout(1000 * DEADLINE_S)
    chat = Chat(context.new_page())
    chat.watch()
    chat.open(service.url)
    yield chat
    context.close()
