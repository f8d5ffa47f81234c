"""`WS /v1/ws`: several requests over one connection, cancel, errors, origin."""

import http.client
import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest
import wsproto
import wsproto.frame_protocol
from simple_websocket import Client, ConnectionClosed
from wsproto.events import Request, TextMessage

from shared.registry import records
from tests.conftest import ENDLESS, Service, wait_for
from tests.support.counter_model import expected_text


@pytest.fixture
def ws(service: Service) -> Iterator[Client]:
    connection = Client.connect(f"ws://127.0.0.1:{service.port}/v1/ws")
    yield connection
    if connection.connected:
        connection.close()


def _send(ws: Client, **frame: Any) -> None:
    ws.send(json.dumps(frame))


def _receive(ws: Client) -> dict[str, Any]:
    frame = ws.receive(timeout=30)
    assert frame is not None, "a frame within 30 s"
    message: dict[str, Any] = json.loads(frame)
    return message


def _request(ws: Client, frame_id: str, **body: Any) -> None:
    base = {"model": "counter", "prompt": "5", "max_tokens": 20, "temperature": 0}
    _send(ws, type="request", id=frame_id, endpoint="completions", body={**base, **body})


def test_requests_share_a_connection_and_stay_apart(ws: Client) -> None:
    starts = {f"r{n}": 30 * n for n in range(8)}
    for frame_id, start in starts.items():
        _request(ws, frame_id, prompt=str(start), max_tokens=200)
    texts = dict.fromkeys(starts, "")
    open_ids = set(starts)
    while open_ids:
        frame = _receive(ws)
        if frame["type"] == "chunk":
            texts[frame["id"]] += frame["data"]["choices"][0]["text"]
        elif frame["type"] == "done":
            assert frame["timings"]["decode_ms"] >= 0
            open_ids.remove(frame["id"])
        else:
            assert frame["type"] in ("accepted", "queued")
    assert texts == {frame_id: expected_text(start, 200) for frame_id, start in starts.items()}


def test_a_chat_request_opens_with_the_role_and_can_be_cancelled(ws: Client) -> None:
    body = {"model": "gemma-3-270m", "messages": [{"role": "user", "content": "Tell a story"}]}
    _send(ws, type="request", id="c", body={**body, "logit_bias": ENDLESS})
    kinds = [_receive(ws) for _ in range(3)]
    assert [kind["type"] for kind in kinds] == ["accepted", "chunk", "chunk"]
    assert kinds[1]["data"]["choices"][0]["delta"]["role"] == "assistant"
    _send(ws, type="cancel", id="c")
    while (frame := _receive(ws))["type"] == "chunk":
        pass
    assert frame == {"type": "cancelled", "id": "c"}


def test_errors_come_as_frames_and_the_connection_lives_on(ws: Client) -> None:
    bad: list[tuple[Any, str | None]] = [
        ("{", None),
        ("[]", None),
        ('{"type": "what"}', "type"),
        ('{"type": "request", "id": 5}', "id"),
        ('{"type": "cancel", "id": "none"}', "id"),
        ('{"type": "request", "id": "a", "endpoint": "x"}', "endpoint"),
        ('{"type": "request", "id": "b", "body": {"model": "m", "messages": []}}', "messages"),
        ('{"type": "request", "id": "d", "body": null}', None),
        ('{"type": "request", "id": "e", "request_id": 5, "body": {}}', "request_id"),
    ]
    for text, param in bad:
        ws.send(text)
        frame = _receive(ws)
        assert frame["type"] == "error", text
        assert frame["error"]["param"] == param, text
    _send(ws, type="ping", id="p")
    assert _receive(ws) == {"type": "pong", "id": "p"}


def test_closing_the_connection_cancels_its_requests(service: Service, ws: Client) -> None:
    for n in range(4):
        _request(
            ws, f"r{n}", model="gemma-3-270m", max_tokens=3000, temperature=1, logit_bias=ENDLESS
        )

    def busy() -> int:
        return sum(r.busy_slots for r in records.read(service.redis) if r.model == "gemma-3-270m")

    wait_for(lambda: busy() == 4, "the requests run")
    ws.close()
    wait_for(lambda: busy() == 0, "their slots are free")


def test_a_page_of_another_origin_is_turned_away(service: Service) -> None:
    stranger = Client.connect(
        f"ws://127.0.0.1:{service.port}/v1/ws", headers={"Origin": "http://evil.example"}
    )
    with pytest.raises(ConnectionClosed):
        stranger.receive(timeout=10)


@pytest.mark.parametrize("origin", ["http://[bad", "null", "file://", ""])
def test_an_odd_origin_is_turned_away_without_a_fault(service: Service, origin: str) -> None:
    stranger = Client.connect(f"ws://127.0.0.1:{service.port}/v1/ws", headers={"Origin": origin})
    with pytest.raises(ConnectionClosed):
        stranger.receive(timeout=10)
    assert "Invalid IPv6" not in service.log("web")


def test_bytes_that_are_no_text_are_answered_with_an_error(ws: Client) -> None:
    ws.send(b"\xff\xfe")
    assert _receive(ws)["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("num_bytes", [2**62, 8 * 2**20 + 1])
def test_a_frame_that_is_too_large_is_refused_when_it_is_announced(
    service: Service, num_bytes: int
) -> None:
    ws = Client.connect(f"ws://127.0.0.1:{service.port}/v1/ws")
    ws.sock.sendall(b"\x81\xff" + num_bytes.to_bytes(8, "big") + b"mask")
    with pytest.raises(ConnectionClosed) as closed:
        ws.receive(timeout=20)
    assert (closed.value.reason, closed.value.message) == (1009, "Message is too big")


@pytest.mark.parametrize("version", ["", "12"])
def test_a_handshake_that_is_none_is_400(service: Service, version: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=30)
    headers = {"Upgrade": "websocket", "Connection": "Upgrade"}
    connection.request("GET", "/v1/ws", headers={**headers, "Sec-WebSocket-Version": version})
    assert connection.getresponse().status == 400
    connection.close()


def test_vanishing_clients_leave_no_error_in_the_log(service: Service) -> None:
    before = service.log("web").count("unexpected error")
    for _ in range(5):
        connection = Client.connect(f"ws://127.0.0.1:{service.port}/v1/ws")
        for n in range(8):
            _request(connection, f"r{n}", max_tokens=1500)
        _receive(connection)
        connection.sock.close()
    wait_for(
        lambda: not any(r.busy_slots for r in records.read(service.redis)), "all slots are free"
    )
    assert service.log("web").count("unexpected error") == before


def test_a_client_that_does_not_read_holds_up_nobody_and_gets_larger_pieces(
    service: Service, ws: Client
) -> None:
    """Its frames wait in the socket, and the text behind them is joined."""
    num_choices, num_tokens = 64, 600
    body = {"model": "counter", "prompt": "5", "max_tokens": num_tokens, "temperature": 0}
    request = {"type": "request", "id": "slow", "endpoint": "completions"}
    request["request_id"] = "slow-reader"
    with socket.socket() as sock:
        # Before the connection is made: afterwards the system lets the window grow.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        sock.connect(("127.0.0.1", service.port))
        protocol = wsproto.WSConnection(wsproto.ConnectionType.CLIENT)
        sock.sendall(protocol.send(Request(host=f"127.0.0.1:{service.port}", target="/v1/ws")))
        protocol.receive_data(sock.recv(4096))
        frame = json.dumps({**request, "body": {**body, "n": num_choices}})
        sock.sendall(protocol.send(TextMessage(frame)))
        _request(ws, "other", max_tokens=500)
        text = ""
        while (frame_of_other := _receive(ws))["type"] != "done":
            if frame_of_other["type"] == "chunk":
                text += frame_of_other["data"]["choices"][0]["text"]
        assert text == expected_text(5, 500)
        wait_for(lambda: _is_done(service, "slow-reader"), "the engine is done with it", 60)
        texts, num_frames = _read_all(sock, protocol, num_choices)
    assert texts == [expected_text(5, num_tokens)] * num_choices
    assert num_frames < num_choices * num_tokens / 2


def _is_done(service: Service, request_id: str) -> bool:
    lines = service.log("replica-counter").splitlines()
    return any('"request done"' in line and request_id in line for line in lines)


def _read_all(
    sock: socket.socket, protocol: wsproto.WSConnection, num_choices: int
) -> tuple[list[str], int]:
    """The texts of a request that has the connection for itself, and the number of frames."""
    texts, num_frames, partial = [""] * num_choices, 0, ""
    while True:
        for event in protocol.events():
            if not isinstance(event, TextMessage):
                continue
            partial += event.data
            if not event.message_finished:
                continue
            frame, partial = json.loads(partial), ""
            num_frames += 1
            if frame["type"] == "done":
                return texts, num_frames
            if frame["type"] == "chunk":
                choice = frame["data"]["choices"][0]
                texts[choice["index"]] += choice["text"]
        protocol.receive_data(sock.recv(65536))


def test_frames_that_come_with_the_handshake_are_answered_at_once(service: Service) -> None:
    """Long before the server's first ping, 25 s later, would wake it."""
    protocol = wsproto.WSConnection(wsproto.ConnectionType.CLIENT)
    handshake = protocol.send(Request(host=f"127.0.0.1:{service.port}", target="/v1/ws"))
    frames = [{"type": "ping", "id": f"{n}{'x' * 100}"} for n in range(50)]
    with socket.create_connection(("127.0.0.1", service.port), timeout=15) as sock:
        # wsproto sends nothing before the server has accepted: masked frames, by another client.
        encoder = wsproto.frame_protocol.FrameProtocol(client=True, extensions=[])
        payload = b"".join(encoder.send_data(json.dumps(frame)) for frame in frames)
        sock.sendall(handshake + payload)
        pongs: list[Any] = []
        while len(pongs) < len(frames):
            protocol.receive_data(sock.recv(65536))
            texts = [event.data for event in protocol.events() if isinstance(event, TextMessage)]
            pongs += [json.loads(text)["id"] for text in texts]
    assert pongs == [frame["id"] for frame in frames]
