"""A reader comes back, to any web process, and gets exactly the rest."""

import http.client
import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from simple_websocket import Client

from shared import names
from shared.queue import lease
from shared.registry import records
from tests.conftest import Service, wait_for
from tests.support.counter_model import expected_text
from tests.support.paused_replica import slowed, stopped
from tests.support.sse_reader import Answer

_NUM_LONG = 2500


def _body(model: str, num_tokens: int, **fields: Any) -> dict[str, Any]:
    return {"model": model, "prompt": "5", "max_tokens": num_tokens, "temperature": 0,
            "stream": True, **fields}  # fmt: skip


def _long(service: Service, num_tokens: int = _NUM_LONG, **headers: str) -> Answer:
    return Answer(service, "completions", _body("long", num_tokens), **headers)


def _state(service: Service, request_id: str, **headers: str) -> Any:
    return Answer(service, f"requests/{request_id}", **headers).json()


def _wait_for_state(service: Service, request_id: str, status: str) -> Any:
    def found() -> Any:
        state = _state(service, request_id)
        return state if state["status"] == status else None

    return wait_for(found, f"{request_id} is {status}")


def _busy(service: Service) -> int:
    return sum(r.busy_slots for r in records.read(service.redis) if r.model == "long")


def _replica(service: Service) -> int:
    """Process id of the long model's replica. To be read before a stream that it is to hold."""
    (pid,) = service.pids("worker.replica", "long@")
    return pid


def _is_given_back(service: Service, request_id: str) -> bool:
    claim = lease.read(service.redis, request_id)
    return claim is not None and claim.holder == ""


def _events(service: Service, request_id: str, last_id: str = "", **headers: str) -> Answer:
    return Answer(service, f"requests/{request_id}/events", last_id=last_id, **headers)


@contextmanager
def _full(service: Service) -> Iterator[None]:
    """All slots of the long model are taken, by requests of so many choices that none ends by
    itself."""
    body = _body("long", 16_000, n=100)
    fillers = [Answer(service, "completions", body) for _ in range(2)]
    ids = [filler.request_id for filler in fillers]
    wait_for(lambda: all(lease.read(service.redis, one) for one in ids), "both are taken")
    with slowed(_replica(service)):
        yield
    for filler in fillers:
        assert Answer(service, f"requests/{filler.request_id}/cancel", {}).status == 200
        filler.close()


def test_every_event_of_an_ended_answer_leads_to_its_rest(webs: Service) -> None:
    whole = Answer(webs, "completions", _body("counter", 30, n=2, logprobs=1)).read()
    assert whole.is_done
    ids = [event.id for event in whole.events]
    assert len(set(ids[:-1])) == len(ids[:-1]) and ids[-1] == ids[-2], "the end has no id"
    for i, event in enumerate(whole.events):
        rest = _events(webs, whole.request_id, event.id).read()
        assert rest.status == 200
        assert rest.request_id == whole.request_id
        texts = ["", ""]
        for part in [*whole.events[: i + 1], *rest.events]:
            for choice in [] if part.data == "[DONE]" else json.loads(part.data)["choices"]:
                assert choice["logprobs"] is not None
                texts[choice["index"]] += choice["text"]
        assert texts == [expected_text(5, 30)] * 2
        assert rest.is_done
        # How events are joined differs between readers, and with it the last id; each leads to the
        # end alone.
        behind = _events(webs, whole.request_id, rest.last_id).read()
        assert [part.data for part in behind.events] == ["[DONE]"]


def test_a_repeated_post_goes_on_in_a_chat(webs: Service) -> None:
    body = {
        "model": "counter",
        "messages": [{"role": "user", "content": "5"}],
        "max_tokens": 400,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    chunks: list[Any] = []
    last_id, is_done = "", False
    while not is_done:
        answer = Answer(webs, "chat/completions", body, last_id=last_id)
        answer.read(4)  # then the connection breaks
        answer.close()
        last_id, is_done = answer.last_id, answer.is_done
        chunks += [json.loads(e.data) for e in answer.events if e.data != "[DONE]"]
    roles = [c for chunk in chunks for c in chunk["choices"] if "role" in c["delta"]]
    text = "".join(c["delta"].get("content", "") for chunk in chunks for c in chunk["choices"])
    assert len(roles) == 1
    assert text == expected_text(5, 400).lstrip()
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks if chunk["usage"]] == [400]
    assert len({(chunk["id"], chunk["created"]) for chunk in chunks}) == 1


@pytest.mark.parametrize("is_master", [True, False])
def test_all_web_processes_are_killed_and_the_answer_goes_on(
    webs: Service, is_master: bool
) -> None:
    with slowed(_replica(webs)):
        first = _long(webs).read(10)
    pids = webs.pids("gunicorn")
    assert len(pids) == 3
    for pid in pids if is_master else pids[1:]:
        os.kill(pid, signal.SIGKILL)
    first.close()
    wait_for(lambda: _is_up(webs, but=pids[1:]), "other web processes answer", 60)
    rest = Answer(webs, "completions", _body("long", 1), last_id=first.last_id).read()
    assert first.text + rest.text == expected_text(5, _NUM_LONG)
    assert rest.is_done


def test_a_web_tier_that_is_restarted_breaks_off_and_the_answer_goes_on(webs: Service) -> None:
    pids, replica = webs.pids("gunicorn"), _replica(webs)
    with slowed(replica):
        first = _long(webs).read(1)
    with stopped(replica):
        os.kill(pids[0], signal.SIGTERM)
        first.read()
    assert not first.is_done
    assert "error" not in first.events[-1].data, "it is cut off, no more"
    wait_for(lambda: _is_up(webs, but=pids), "the web tier is there again", 60)
    rest = _events(webs, first.request_id, first.last_id).read()
    assert (first.text + rest.text).strip() == expected_text(5, _NUM_LONG).strip()


def test_a_stream_that_outlasts_its_web_process_is_cut_off_and_can_be_resumed(
    webs: Service,
) -> None:
    pids, replica = webs.pids("gunicorn"), _replica(webs)
    with slowed(replica):
        first = _long(webs).read(2)
    with stopped(replica):
        os.kill(pids[0], signal.SIGHUP)
        meanwhile = Answer(webs, "completions", _body("counter", 20)).read()
        assert meanwhile.text == expected_text(5, 20)
        first.read()
    assert not first.is_done
    rest = _events(webs, first.request_id, first.last_id).read()
    assert rest.is_done
    assert first.text + rest.text == expected_text(5, _NUM_LONG)
    wait_for(lambda: not set(pids[1:]) & set(webs.pids("gunicorn")), "the old ones are gone", 60)


def _is_up(service: Service, but: list[int]) -> bool:
    if set(but) & set(service.pids("gunicorn")):
        return False
    try:
        return Answer(service, "models").status == 200
    except (OSError, http.client.HTTPException):
        return False


def test_a_parked_answer_frees_its_slot_and_goes_on(webs: Service) -> None:
    replica = _replica(webs)
    with slowed(replica):
        first = _long(webs).read(10)
    with stopped(replica):
        first.close()
        _wait_for_state(webs, first.request_id, "parked")
    wait_for(lambda: _is_given_back(webs, first.request_id), "its replica has let it go")
    wait_for(lambda: _busy(webs) == 0, "its slot is free")
    num_events = webs.redis.llen(f"llmis:job:{first.request_id}:log")
    with _full(webs):
        assert webs.redis.llen(f"llmis:job:{first.request_id}:log") == num_events, "it stood still"
    rest = _events(webs, first.request_id, first.last_id).read()
    assert first.text + rest.text == expected_text(5, _NUM_LONG)
    state = _state(webs, first.request_id)
    assert state["status"] == "finished"
    assert state["answer"]["choices"][0]["text"] == expected_text(5, _NUM_LONG)
    assert state["answer"]["usage"]["completion_tokens"] == _NUM_LONG


def test_a_queued_request_has_a_position_and_may_be_left_and_read_again(webs: Service) -> None:
    with _full(webs):
        left, second = _long(webs, 50), _long(webs, 60)
        states = [_state(webs, answer.request_id) for answer in (left, second)]
        assert [(s["status"], s["position"]) for s in states] == [("queued", 0), ("queued", 1)]
        left.close()
        _wait_for_state(webs, left.request_id, "parked")
        wait_for(lambda: _state(webs, second.request_id)["position"] == 0, "one less is before it")
        again = _events(webs, left.request_id)
        assert _state(webs, left.request_id)["position"] == 1, "it had not begun: it goes last"
    assert again.read().text == expected_text(5, 50)
    assert second.read().text == expected_text(5, 60)


def test_several_readers_have_the_same_answer_and_the_last_one_parks_it(webs: Service) -> None:
    replica = _replica(webs)
    with slowed(replica):
        first = _long(webs).read(5)
        late = _events(webs, first.request_id)
        behind = _events(webs, first.request_id, first.last_id)
        first.close()
    assert late.read().text == expected_text(5, _NUM_LONG)
    assert first.text + behind.read().text == expected_text(5, _NUM_LONG)
    first = _long(webs, 16_000).read(1)
    others = [_events(webs, first.request_id).read(1) for _ in range(4)]
    first.close()
    for reader in others[:-1]:
        reader.close()
    before = len(others[-1].events)
    others[-1].read(200)
    assert len(others[-1].events) == before + 200
    with stopped(replica):
        others[-1].close()
        state = _wait_for_state(webs, first.request_id, "parked")
    assert "answer" not in state
    wait_for(lambda: _busy(webs) == 0, "its slot is free")


def test_only_its_owner_may_read_resume_or_cancel(webs: Service) -> None:
    mine = Answer(webs, "completions", _body("counter", 20), owner="alice").read()
    path = f"requests/{mine.request_id}"
    for other in ("bob", ""):
        assert Answer(webs, path, owner=other).status == 404
        assert _events(webs, mine.request_id, owner=other).status == 404
        assert Answer(webs, f"{path}/cancel", {}, owner=other).status == 404
        resumed = Answer(webs, "completions", {}, owner=other, last_id=mine.last_id)
        assert resumed.status == 404
    assert _events(webs, mine.request_id, owner="alice").read().text == expected_text(5, 20)
    assert Answer(webs, f"{path}/cancel", {}, owner="alice").status == 200


def test_a_cancelled_request_is_over_for_all_readers(webs: Service) -> None:
    replica = _replica(webs)
    first = _long(webs, 16_000).read(5)
    with stopped(replica):
        other = _events(webs, first.request_id)
        assert Answer(webs, f"requests/{first.request_id}/cancel", {}).status == 200
    for reader in (first, other):
        assert "request_cancelled" in reader.read().events[-1].data
    _wait_for_state(webs, first.request_id, "cancelled")
    again = _events(webs, first.request_id, first.last_id)
    assert again.status == 499
    assert again.json()["error"]["code"] == "request_cancelled"


def test_a_parked_request_that_is_cancelled_is_over(webs: Service) -> None:
    replica = _replica(webs)
    first = _long(webs, 16_000).read(5)
    with stopped(replica):
        first.close()
        _wait_for_state(webs, first.request_id, "parked")
    assert Answer(webs, f"requests/{first.request_id}/cancel", {}).status == 200
    assert _state(webs, first.request_id)["status"] == "cancelled"
    assert "request_cancelled" in _events(webs, first.request_id).read().events[-1].data


def test_a_failed_request_is_shown_with_its_error(webs: Service) -> None:
    failed = Answer(webs, "completions", _body("counter-small", 5, prompt="5 " * 600))
    assert failed.status == 400
    state = _state(webs, failed.request_id)
    assert state["status"] == "failed"
    assert state["error"]["code"] == "context_length_exceeded"
    assert _events(webs, failed.request_id).status == 400


@pytest.mark.parametrize("last_id", ["nonsense", "{id}:999999", "{id}:1+1.99", "other:1"])
def test_an_id_that_is_none_is_400(webs: Service, last_id: str) -> None:
    answer = Answer(webs, "completions", _body("counter", 5)).read()
    wrong = _events(webs, answer.request_id, last_id.format(id=answer.request_id))
    assert wrong.status == 400
    assert wrong.json()["error"]["param"] == "Last-Event-ID"


def test_a_resume_at_another_endpoint_is_400(webs: Service) -> None:
    answer = Answer(webs, "completions", _body("counter", 5)).read()
    assert Answer(webs, "chat/completions", {}, last_id=answer.last_id).status == 400


def test_what_cannot_be_streamed_has_a_state_alone(webs: Service) -> None:
    body = _body("counter", 5, best_of=2, stream=False)
    answer = Answer(webs, "completions", body)
    whole = answer.json()
    assert _events(webs, answer.request_id).status == 400
    assert _state(webs, answer.request_id)["answer"] == whole


# -- WebSocket -------------------------------------------------------------------------------


def _connect(service: Service) -> Client:
    return Client.connect(f"ws://127.0.0.1:{service.port}/v1/ws")


def _send(ws: Client, **frame: Any) -> None:
    ws.send(json.dumps(frame))


def _receive(ws: Client) -> dict[str, Any]:
    message: dict[str, Any] = json.loads(ws.receive(timeout=30))
    return message


def _request(ws: Client, num_tokens: int) -> str:
    body = _body("long", num_tokens)
    _send(ws, type="request", id="a", endpoint="completions", body=body)
    return str(_receive(ws)["request_id"])


def _read(ws: Client, num_frames: int | None = None) -> list[dict[str, Any]]:
    frames: list[dict[str, Any]] = []
    while num_frames is None or len(frames) < num_frames:
        frames.append(_receive(ws))
        if frames[-1]["type"] not in ("accepted", "chunk"):
            break
    return frames


def _text(frames: list[dict[str, Any]]) -> str:
    return "".join(f["data"]["choices"][0]["text"] for f in frames if f["type"] == "chunk")


@pytest.mark.parametrize("is_parked", [True, False])
def test_a_websocket_request_goes_on_over_another_connection(
    webs: Service, is_parked: bool
) -> None:
    replica, ws = _replica(webs), _connect(webs)
    with slowed(replica):
        request_id = _request(ws, _NUM_LONG)
        frames = _read(ws, 10)
    with stopped(replica):
        ws.close()
        if is_parked:
            _wait_for_state(webs, request_id, "parked")
    ws = _connect(webs)
    _send(ws, type="resume", id="b", last_event_id=frames[-1]["event_id"])
    rest = _read(ws)
    assert rest[0]["type"] == "accepted"
    assert rest[0]["request_id"] == request_id
    assert rest[-1]["type"] == "done"
    assert _text(frames + rest) == expected_text(5, _NUM_LONG)
    # The ids are those of server-sent events.
    answer = _events(webs, request_id, frames[-1]["event_id"]).read()
    assert _text(frames) + answer.text == expected_text(5, _NUM_LONG)
    _send(ws, type="resume", id="c", last_event_id=rest[-1]["event_id"])
    assert [frame["type"] for frame in _read(ws)] == ["accepted", "done"]
    ws.close()


def test_a_websocket_cancel_ends_the_request_for_good(webs: Service) -> None:
    ws = _connect(webs)
    request_id = _request(ws, 16_000)
    _read(ws, 3)
    reader = _events(webs, request_id)
    _send(ws, type="cancel", id="a")
    while (frame := _receive(ws))["type"] == "chunk":
        pass
    assert frame == {"type": "cancelled", "id": "a"}
    assert "request_cancelled" in reader.read().events[-1].data
    assert _wait_for_state(webs, request_id, "cancelled")
    ws.close()


def test_a_repeated_websocket_request_with_its_key_joins(webs: Service) -> None:
    key = f"key-{time.monotonic_ns()}"
    request = {"type": "request", "endpoint": "completions", "idempotency_key": key,
               "body": _body("long", 300)}  # fmt: skip
    ws = _connect(webs)
    _send(ws, id="a", **request)
    accepted = _receive(ws)
    ws.close()
    ws = _connect(webs)
    _send(ws, id="b", **request)
    frames = _read(ws)
    assert frames[0]["request_id"] == accepted["request_id"]
    assert _text(frames) == expected_text(5, 300)
    _send(ws, id="c", **{**request, "body": _body("long", 301)})
    assert _receive(ws)["error"]["code"] == "idempotency_key_reused"
    ws.close()


def test_bad_resume_frames_get_an_error(webs: Service) -> None:
    ws = _connect(webs)
    for last_event_id in (None, 5, "", "x", "never-seen:3"):
        _send(ws, type="resume", id="a", last_event_id=last_event_id)
        assert _receive(ws)["type"] == "error"
    ws.close()


def test_a_background_request_runs_on_when_its_client_leaves(webs: Service) -> None:
    body = _body("long", _NUM_LONG, priority="background")
    replica = _replica(webs)
    with slowed(replica):
        left = Answer(webs, "completions", body).read(3)
    with stopped(replica):
        left.close()
        readers = names.readers_key(left.request_id)
        wait_for(lambda: not webs.redis.exists(readers), "its events are sent to nobody")
    _wait_for_state(webs, left.request_id, "finished")
    whole = _events(webs, left.request_id).read()
    assert whole.text == expected_text(5, _NUM_LONG)
