"""A request that is sent again with its `Idempotency-Key` gets the answer of the first one."""

import json
import os
import signal
import threading
import uuid
from typing import Any

import pytest

from tests.conftest import Service, wait_for
from tests.support.counter_model import expected_text
from tests.support.paused_replica import slowed_model
from tests.support.sse_reader import Answer

_NUM_LONG = 2500


@pytest.fixture
def key() -> str:
    return uuid.uuid4().hex


def _post(service: Service, key: str, path: str = "completions", **fields: Any) -> Answer:
    owner = fields.pop("owner", "")
    body = {"model": "long", "prompt": "5", "max_tokens": 20, "temperature": 0, **fields}
    return Answer(service, path, body, owner=owner, Idempotency_Key=key)


def _lines(service: Service, request_id: str) -> list[Any]:
    """What the replica says of a request that has left it."""
    lines = service.log("replica-long").splitlines()
    return [json.loads(x) for x in lines if '"request done"' in x and f'"{request_id}"' in x]


def test_a_whole_answer_comes_again_to_the_byte(webs: Service, key: str) -> None:
    first, second = (_post(webs, key, metadata={"a": "b"}) for _ in range(2))
    assert first.request_id == second.request_id
    assert (first.is_replay, second.is_replay) == (False, True)
    answer = first.json()
    assert answer["choices"][0]["text"] == expected_text(5, 20)
    assert answer["metadata"] == {"a": "b"}
    assert second.json() == answer
    assert len(_lines(webs, first.request_id)) == 1


def test_a_running_stream_is_joined(webs: Service, key: str) -> None:
    with slowed_model(webs, "long"):
        first = _post(webs, key, max_tokens=_NUM_LONG, stream=True).read(5)
        second = _post(webs, key, max_tokens=_NUM_LONG, stream=True)
        assert second.is_replay
        first.close()
    assert second.read().text == expected_text(5, _NUM_LONG)
    assert second.request_id == first.request_id


def test_many_at_the_same_time_are_one_request(webs: Service, key: str) -> None:
    answers: list[Answer] = []
    threads = [
        threading.Thread(target=lambda: answers.append(_post(webs, key, max_tokens=500)))
        for _ in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({answer.request_id for answer in answers}) == 1
    assert [answer.is_replay for answer in answers].count(False) == 1
    assert {answer.json()["choices"][0]["text"] for answer in answers} == {expected_text(5, 500)}
    wait_for(lambda: len(_lines(webs, answers[0].request_id)) == 1, "it ran once")


def test_who_has_left_joins_what_waits_for_him(webs: Service, key: str) -> None:
    with slowed_model(webs, "long"):
        first = _post(webs, key, max_tokens=_NUM_LONG, stream=True).read(5)
        first.close()
        wait_for(lambda: _lines(webs, first.request_id), "it is parked")
    assert _lines(webs, first.request_id)[0]["outcome"] == "client_gone"
    second = _post(webs, key, max_tokens=_NUM_LONG, stream=True)
    assert second.request_id == first.request_id
    assert second.read().text == expected_text(5, _NUM_LONG)


def test_another_body_or_path_is_422(webs: Service, key: str) -> None:
    assert _post(webs, key).status == 200
    chat = {"model": "long", "messages": [{"role": "user", "content": "5"}]}
    for answer in (
        _post(webs, key, max_tokens=21),
        Answer(webs, "chat/completions", chat, Idempotency_Key=key),
    ):
        assert answer.status == 422
        assert answer.json()["error"]["code"] == "idempotency_key_reused"


def test_a_key_is_its_owners(webs: Service, key: str) -> None:
    first, second = (_post(webs, key, owner=owner) for owner in ("alice", "bob"))
    assert first.request_id != second.request_id
    assert not second.is_replay


def test_what_was_cancelled_is_run_anew(webs: Service, key: str) -> None:
    with slowed_model(webs, "long"):
        first = _post(webs, key, max_tokens=_NUM_LONG, stream=True).read(5)
        assert Answer(webs, f"requests/{first.request_id}/cancel", {}).status == 200
    assert "request_cancelled" in first.read().events[-1].data
    second = _post(webs, key, max_tokens=_NUM_LONG, stream=True)
    assert not second.is_replay
    assert second.request_id != first.request_id
    assert second.read().text == expected_text(5, _NUM_LONG)
    assert _post(webs, key, max_tokens=_NUM_LONG, stream=True).request_id == second.request_id


def test_a_failure_of_the_service_is_run_anew_one_of_the_client_is_not(
    webs: Service, key: str
) -> None:
    first, second = (_post(webs, key, timeout_s=0.000001) for _ in range(2))
    assert (first.status, second.status) == (504, 504)
    assert not second.is_replay
    first, second = (_post(webs, f"{key}-2", prompt="5 " * 17_000) for _ in range(2))
    assert (first.status, second.status) == (400, 400)
    assert second.is_replay
    assert first.json() == second.json()


def test_a_replay_needs_no_process_that_was_there_before(webs: Service, key: str) -> None:
    with slowed_model(webs, "long"):
        first = _post(webs, key, max_tokens=_NUM_LONG, stream=True).read(5)
        pids = webs.pids("gunicorn")[1:]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not set(pids) & set(webs.pids("gunicorn")), "they are gone")
    wait_for(lambda: len(webs.pids("gunicorn")) == 3, "others are there")
    second = _post(webs, key, max_tokens=_NUM_LONG, stream=True)
    assert second.is_replay
    assert second.request_id == first.request_id
    assert second.read().text == expected_text(5, _NUM_LONG)


@pytest.mark.parametrize("bad", ["", " ", "a b", "x" * 256, "ü"])
def test_a_bad_key_is_400(webs: Service, bad: str) -> None:
    answer = _post(webs, bad)
    assert answer.status == 400
    assert answer.json()["error"]["param"] == "Idempotency-Key"


def test_the_longest_key_is_taken(webs: Service) -> None:
    key = "".join(chr(33 + i % 94) for i in range(255))
    assert [_post(webs, key).is_replay for _ in range(2)] == [False, True]
