"""The HTTP client of the command `llmis`."""

import contextlib
import socket
import subprocess
import sys

import pytest

from cli.client import ServiceClient, event_data
from cli.errors import ServiceError, Unreachable
from tests.conftest import ROOT, free_port
from tests.support import fake_service
from tests.support.fake_service import FakeService, Reply

# -- events --------------------------------------------------------------------------------------


def test_events_are_the_same_wherever_the_blocks_end() -> None:
    stream = (
        ': c\n\ndata: {"a": "é"}\n\nid: 1\r\ndata:x\r\ndata: y\r\n\r\ndata: [DONE]\n\n'.encode()
    )
    expected = ['{"a": "é"}', "x\ny", "[DONE]"]
    for i in range(len(stream) + 1):
        for j in range(i, len(stream) + 1):
            assert list(event_data([stream[:i], stream[i:j], stream[j:]])) == expected


def test_an_event_without_its_end_is_none() -> None:
    assert list(event_data([b"data: a\n\ndata: b\n"])) == ["a"]


def test_a_line_separator_within_an_event_is_text(fake: FakeService) -> None:
    text = "a\u2028b\x85c\x0cd"
    fake.replies["POST /events"] = Reply(
        events=[f'{{"text": "{text}"}}'.replace("\x0c", "\\f"), "[DONE]"]
    )
    assert list(ServiceClient(fake.url).stream("/events", {})) == [{"text": text}]


def test_a_closed_stream_closes_its_connection(fake: FakeService) -> None:
    fake.replies["POST /events"] = Reply(events=[{"n": 1}], is_endless=True)
    with contextlib.closing(ServiceClient(fake.url).stream("/events", {})) as events:
        assert next(events) == {"n": 1}
        assert not fake.client_gone.is_set()
    assert fake.client_gone.wait(60)


# -- connections ---------------------------------------------------------------------------------


def test_every_call_has_a_connection_of_its_own(fake: FakeService) -> None:
    client = ServiceClient(fake.url)
    for _ in range(3):
        client.get("/version")
    assert len(set(fake.client_addresses)) == 3


def test_the_status_of_an_error_is_returned(fake: FakeService) -> None:
    fake.replies["GET /healthz"] = fake_service.error("not yet", 503)
    client = ServiceClient(fake.url)
    assert (client.status("/healthz"), client.status("/version")) == (503, 200)
    with pytest.raises(ServiceError, match="not yet"):
        client.get("/healthz")


def test_a_server_that_is_silent_or_hangs_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(Unreachable, match="is silent"):
            ServiceClient(url, answer_timeout_s=0.05).get("/version")
    with pytest.raises(Unreachable, match=r"no service at .* \(Connection refused\)"):
        ServiceClient(url).get("/version")


@pytest.mark.parametrize("url", ["ftp://a", "a", "http://a:port", "http://a:0", "http:///a"])
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(ValueError, match=r"[Pp]ort|not like"):
        ServiceClient(url)


def test_a_name_that_cannot_be_resolved_is_no_service() -> None:
    with pytest.raises(Unreachable, match="no service at http://no host"):
        ServiceClient(f"http://no host:{free_port()}").get("/version")


def test_commands_that_make_no_request_do_not_import_httpx() -> None:
    code = (
        "import sys, cli.main as m\n"
        "for name in m._COMMANDS: m.cli.get_command(None, name)\n"
        "print('httpx' in sys.modules)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert found.stdout == "False\n"


@pytest.mark.parametrize("key", ["sk-llmis-a ", "\tsk-llmis-a", "sk-llmis-ä", "sk\n"])
def test_a_key_that_no_header_can_carry_is_refused_without_being_shown(key: str) -> None:
    with pytest.raises(ValueError, match="no API key has") as refused:
        ServiceClient("http://127.0.0.1:1", key)
    assert key.strip() not in str(refused.value)
