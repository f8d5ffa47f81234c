"""What a model, or a server that was taken over, may say: the page shows it as text."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, WebSocketRoute, expect

from shared import names
from tests.conftest import Service
from tests.e2e.chat_page import DEADLINE_S, Chat

_MARKUP = (
    "<img src=x onerror=\"window.isHacked=1\"><script>window.isHacked=1</script>"
    "<svg onload=window.isHacked=1></svg><iframe srcdoc='<script>top.isHacked=1</script>'></iframe>"
    "[a](javascript:window.isHacked=1) ![x](http://evil.example/x.png) **bold** `code`"
    "</p></article><form action=//evil.example><input name=key></form>"
    "<style>*{display:none}</style><base href=//evil.example><meta http-equiv=refresh content=0>"
    "<a href=\"javascript:window.isHacked=1\">x</a>{{7*7}}${window.isHacked=1}\u202e\u0000"
)  # fmt: skip
_EVIL_SCRIPT = """
async (url) => {
  const frame = document.createElement('iframe');
  const framed = new Promise((resolve) => { frame.onload = () => resolve('loaded'); });
  frame.src = url;
  document.body.append(frame);
  const socket = new WebSocket(`${url.replace('http', 'ws')}/v1/ws`);
  const closed = new Promise((resolve) => { socket.onclose = (event) => resolve(event.code); });
  const body = JSON.stringify({ model: 'counter', prompt: '31337', max_tokens: 2 });
  const tried = (promise) => promise.catch(() => null);
  const ask = (options) => fetch(`${url}/v1/completions`, { method: 'POST', body, ...options });
  await tried(ask({ mode: 'no-cors' }));
  await tried(ask({ headers: { 'Content-Type': 'application/json' } }));
  return { framed: await framed, socket: await closed };
}
"""
_POLLUTED = {"__proto__": {"isHacked": 1}, "constructor": {"prototype": {"isHacked": 1}}}


def _hostile(frame: dict[str, Any], where: str) -> dict[str, Any]:
    """The same frame with markup in one place."""
    if frame["type"] == "chunk" and frame["data"]["choices"]:
        delta = frame["data"]["choices"][0]["delta"]
        if where in ("content", "reasoning_content") and delta.get("content"):
            delta[where] = _MARKUP
        delta |= _POLLUTED
    if where == "error" and frame["type"] == "done":
        error = {"message": _MARKUP, "type": _MARKUP, "param": None, "code": _MARKUP}
        return {"type": "error", "id": frame["id"], "error": error | _POLLUTED}
    if where == "loading" and frame["type"] == "accepted":
        progress = {"model": _MARKUP, "stage": _MARKUP, "fraction": 0.5}
        return {"type": "loading", "id": frame["id"], **progress}
    return frame | _POLLUTED


@pytest.mark.parametrize("where", ["content", "reasoning_content", "error", "loading"])
def test_markup_of_the_server_is_text(browser: Browser, service: Service, where: str) -> None:
    context = browser.new_context()
    context.set_default_timeout(1000 * DEADLINE_S)
    chat = Chat(context.new_page())
    chat.watch()

    def meddle(socket: WebSocketRoute) -> None:
        server = socket.connect_to_server()

        def pass_on(payload: str | bytes) -> None:
            # By hand: a dict would not keep a key named __proto__ apart.
            frame = json.loads(payload)
            socket.send(json.dumps(_hostile(frame, where)))
            if where == "loading" and frame["type"] == "accepted":
                socket.send(payload)

        server.on_message(pass_on)

    chat.page.route_web_socket("**/v1/ws", meddle)
    chat.open(service.url)
    chat.send("17")
    state = "failed" if where == "error" else "done"
    expect(chat.turns.last).to_have_attribute("data-state", state)
    if where != "loading":
        shown = {"content": ".answer .text", "reasoning_content": ".reasoning p",
                 "error": ".failure-text"}[where]  # fmt: skip
        text = chat.turns.last.locator(shown).text_content() or ""
        assert "<img src=x onerror=" in text and "**bold**" in text
    elements = "img, script, svg, iframe, form, a, style, base, meta, b, strong, code, input"
    expect(chat.turns.locator(elements)).to_have_count(0)
    # Once more from the storage, as after a reload.
    chat.page.reload()
    expect(chat.turns).to_have_count(1)
    expect(chat.turns.locator(elements)).to_have_count(0)
    assert chat.page.evaluate("[window.isHacked, {}.isHacked, [].isHacked]") == [None, None, None]
    assert all("evil" not in host for host in chat.hosts)
    assert chat.complaints == [], "nothing was even tried that the policy had to stop"
    context.close()


def test_a_chat_from_the_storage_pollutes_nothing(browser: Browser, service: Service) -> None:
    """Whoever can write there could do worse; still, it is read as data."""
    turn = {"question": _MARKUP, "text": _MARKUP, "model": _MARKUP, "state": "failed",
            "error": {"message": _MARKUP, "code": _MARKUP, "requestId": _MARKUP}}  # fmt: skip
    saved = json.dumps({"settings": {"system": _MARKUP} | _POLLUTED, "turns": [turn | _POLLUTED]})
    context = browser.new_context()
    chat = Chat(context.new_page())
    chat.watch()
    chat.page.goto(service.url)
    chat.page.add_init_script(f"sessionStorage.setItem('llmis.chat', {json.dumps(saved)})")
    chat.page.reload()
    expect(chat.turns).to_have_count(1)
    expect(chat.turns.locator("img, script, svg, iframe, form, a")).to_have_count(0)
    assert chat.page.evaluate("[window.isHacked, {}.isHacked]") == [None, None]
    assert chat.complaints == []
    context.close()


def test_a_page_of_another_origin_can_neither_frame_nor_ask_it(
    browser: Browser, service: Service, tmp_path: Path
) -> None:
    """On this machine, too: from another host Chromium itself would stop it."""
    (tmp_path / "evil.html").write_text("<p>evil</p>")
    with _served(tmp_path) as url:
        _try_evil(browser, service, f"{url}/evil.html")


@contextmanager
def _served(folder: Path) -> Iterator[str]:
    serve = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def _try_evil(browser: Browser, service: Service, evil: str) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.goto(evil)
    outcome = page.evaluate(_EVIL_SCRIPT, service.url)
    assert outcome == {"framed": "loaded", "socket": 1008}
    jobs = [service.redis.dump(key) or b"" for key in service.redis.scan_iter(names.job_key("*"))]
    assert not any(b"31337" in job for job in jobs)
    framed = [frame for frame in page.frames if frame.parent_frame is not None]
    assert [frame.locator("#composer").count() for frame in framed] == [0]
    context.close()
