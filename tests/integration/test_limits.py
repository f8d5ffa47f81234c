"""The limits, through two web processes: what a key gets, and what it is told beyond that."""

import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from shared import names
from tests.conftest import Service, running_service, wait_for
from tests.support.paused_replica import paused
from tests.support.plain_client import Answer, Senders, complete, owner_of

_MODEL = "counter-small"
_REQUESTS, _TOKENS = 30, 2000
_LIMITS = f"""\
requests_per_minute = {_REQUESTS}
tokens_per_minute = {_TOKENS}
max_open_requests = 8
max_waiting_requests = 5
max_queue_length = 8
max_queue_s = 3
max_prompt_tokens = 50
max_completion_tokens = 300
"""


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    data_dir = tmp_path_factory.mktemp("limited")
    environ = {"LLMIS_REPLICA_WAIT_S": "60", "LLMIS_WEB_WORKERS": "2"}
    with running_service(data_dir, extra=_LIMITS, environ=environ) as running:
        yield running


@pytest.fixture
def senders(limited: Service) -> Iterator[Senders]:
    made = Senders(limited)
    yield made
    made.close()


def _unique(name: str) -> str:
    return f"{name}-{time.monotonic_ns()}"


def _until_refused(service: Service, key: str, **fields: Any) -> tuple[int, Answer]:
    """Send requests one after the other; how many were taken, and the refusal."""
    for taken in range(1000):
        answer = complete(service, key=key, **fields)
        if answer.status != 200:
            return taken, answer
    raise AssertionError("never refused")


def test_requests_a_minute(limited: Service) -> None:
    key = _unique("key")
    first = complete(limited, key=key)
    assert first.headers["x-ratelimit-limit-requests"] == str(_REQUESTS)
    assert first.headers["x-ratelimit-remaining-requests"] == str(_REQUESTS - 1)
    assert first.headers["x-ratelimit-reset-requests"] == "2s"
    taken, refused = _until_refused(limited, key)
    # The bucket fills up meanwhile, by one every two seconds.
    assert _REQUESTS - 1 <= taken < 2 * _REQUESTS
    assert refused.status == 429
    assert (refused.error["type"], refused.error["code"]) == ("requests", "rate_limit_exceeded")
    assert refused.headers["retry-after"] in ("1", "2")
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert refused.headers["x-ratelimit-limit-tokens"] == str(_TOKENS)
    assert complete(limited, key=_unique("another")).status == 200


def test_tokens_a_minute_are_those_that_were_used(limited: Service) -> None:
    """Charged with 300, a request that ends at once gets them back."""
    key = _unique("key")
    for _ in range(10):
        request_id = _unique("stops")
        answer = complete(limited, request_id, key=key, prompt="<stop>", max_tokens=300)
        assert answer.status == 200
        assert int(answer.headers["x-ratelimit-remaining-tokens"]) > _TOKENS - 400
        _wait_until_settled(limited, key)


def _wait_until_settled(service: Service, key: str) -> None:
    owner = owner_of(key)
    keys = (names.waiting_key(owner), names.running_key(owner))
    wait_for(lambda: not service.redis.exists(*keys), "the request is settled")


def test_tokens_a_minute(limited: Service) -> None:
    key = _unique("key")
    taken, refused = _until_refused(limited, key, max_tokens=290)
    assert 6 <= taken < 12
    assert refused.status == 429
    assert (refused.error["type"], refused.error["code"]) == ("tokens", "rate_limit_exceeded")
    assert 1 <= int(refused.headers["retry-after"]) <= 9
    assert int(refused.headers["x-ratelimit-remaining-tokens"]) < 291


def test_a_request_that_fails_gets_its_tokens_back(limited: Service) -> None:
    key = _unique("key")
    for _ in range(10):
        answer = complete(limited, key=key, prompt="5 " * 60, max_tokens=300)
        assert answer.status == 400
        _wait_until_settled(limited, key)
    remaining = complete(limited, key=key).headers["x-ratelimit-remaining-tokens"]
    assert int(remaining) > _TOKENS - 100


def test_openai_client_comes_back_by_itself(limited: Service) -> None:
    key = _unique("key")
    complete(limited, key=key)
    # Six seconds until there is one request again, however slow the machine is.
    limited.redis.hset(names.rates_key(owner_of(key)), "requests", "-2")
    with openai.OpenAI(base_url=f"{limited.url}/v1", api_key=key, max_retries=0) as hasty:
        with pytest.raises(openai.RateLimitError) as refused:
            hasty.completions.create(model=_MODEL, prompt="5", max_tokens=2, temperature=0)
        assert refused.value.code == "rate_limit_exceeded" and refused.value.type == "requests"
        patient = hasty.with_options(max_retries=5)
        answer = patient.completions.with_raw_response.create(
            model=_MODEL, prompt="5", max_tokens=2, temperature=0
        )
    assert answer.parse().choices[0].text == " 6 7"
    assert answer.retries_taken >= 1


def test_waiting_and_open_requests_of_a_key(limited: Service, senders: Senders) -> None:
    prefix, key = _unique("open"), _unique("key")
    with paused(limited, _MODEL):
        requests = [senders.send(f"{prefix}-{i}", key=key) for i in range(5)]
        refused = complete(limited, key=key)
        other = senders.send(f"{prefix}-other", key=_unique("other"))
    assert (refused.status, refused.error["code"]) == (429, "rate_limit_exceeded")
    assert refused.error["message"].startswith("Requests of this key that are waiting: 5.")
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.headers["x-ratelimit-remaining-requests"] == str(_REQUESTS - 5)
    assert [r.result(60).status for r in [*requests, other]] == [200] * 6


def test_the_queue_of_a_model_is_bounded(limited: Service, senders: Senders) -> None:
    prefix = _unique("full")
    with paused(limited, _MODEL):
        requests = []
        while limited.num_queued(_MODEL) < 8:
            i = len(requests)
            requests.append(senders.send(f"{prefix}-{i}", key=f"{prefix}-{i}"))
        refused = complete(limited, key=_unique("late"))
    assert (refused.status, refused.error["code"]) == (429, "queue_full")
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert [r.result(60).status for r in requests] == [200] * len(requests)


def test_prompt_and_completion_tokens(limited: Service) -> None:
    key = _unique("key")
    long = complete(limited, key=key, prompt="5 " * 60)
    assert (long.status, long.error["code"]) == (400, "context_length_exceeded")
    assert long.error["param"] == "prompt" and "at most 50" in long.error["message"]
    greedy = complete(limited, key=key, max_tokens=301)
    assert (greedy.status, greedy.error["param"]) == (400, "max_tokens")
    with openai.OpenAI(base_url=f"{limited.url}/v1", api_key=key, max_retries=0) as client:
        chat = client.chat.completions.create(
            model=_MODEL, messages=[{"role": "user", "content": "5"}], temperature=0
        )
    assert chat.usage is not None and chat.usage.completion_tokens == 300
    assert chat.choices[0].finish_reason == "length"


def test_time_in_the_queue(limited: Service, senders: Senders) -> None:
    """Whether a replica finds the request too old, or the web process that waits for one."""
    prefix = _unique("old")
    with paused(limited, _MODEL):
        fresh = [senders.send(f"{prefix}-held{i}", key=prefix) for i in range(2)]
        first = senders.send(f"{prefix}-first", key=prefix, priority="background")
        given_up = first.result(60)
        late = senders.send(f"{prefix}-late", key=prefix, priority="background")
        sent_at = time.time()
        wait_for(lambda: time.time() > sent_at + 4, "it is too old")
    for answer in (given_up, late.result(60)):
        assert (answer.status, answer.error["code"]) == (503, "queue_timeout")
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.headers["x-ratelimit-limit-requests"] == str(_REQUESTS)
    assert {request.result(60).status for request in fresh} == {503}
    assert complete(limited, key=prefix).status == 200
    assert limited.redis.zcard(names.waiting_key(owner_of(prefix))) == 0
