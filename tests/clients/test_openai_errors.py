"""The `openai` package: errors, deadlines, retries, what is cancelled."""

import json
import time
from typing import Any

import openai
import pytest

from tests.conftest import ENDLESS, Service, wait_for

_LONG: dict[str, Any] = {
    "model": "gemma-3-270m",
    "prompt": "Once upon a time",
    "max_tokens": 3000,
    "logit_bias": ENDLESS,
}


def _chat(**fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "17"}]
    return {"model": "counter", "messages": messages, "max_tokens": 3, "temperature": 0, **fields}


def _outcomes(service: Service, request_id: str) -> list[str]:
    """Of all requests whose id begins so, once the replica has logged it."""
    lines = service.log("replica-gemma-3-270m").splitlines()
    done = [json.loads(line) for line in lines if request_id in line and '"request done"' in line]
    return [line["outcome"] for line in done]


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize(
    ("fields", "error", "code", "param"),
    [
        ({"model": "none"}, openai.NotFoundError, "model_not_found", "model"),
        ({"temperature": 3}, openai.BadRequestError, None, "temperature"),
        ({"messages": []}, openai.BadRequestError, None, "messages"),
        (
            {"model": "counter-small", "messages": [{"role": "user", "content": "17 " * 600}]},
            openai.BadRequestError,
            "context_length_exceeded",
            "messages",
        ),
    ],
)
def test_an_error_is_of_openais_class_and_says_where(
    client: openai.OpenAI,
    fields: dict[str, Any],
    error: type[openai.APIStatusError],
    code: str | None,
    param: str,
    is_stream: bool,
) -> None:
    with pytest.raises(error) as caught:
        client.chat.completions.create(**_chat(**fields), stream=is_stream)
    assert (caught.value.code, caught.value.param) == (code, param)
    assert caught.value.type == "invalid_request_error"
    assert caught.value.request_id


def test_what_is_not_served_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.responses.create(model="counter", input="17")
    assert caught.value.code == "unknown_url"


def test_a_deadline_of_the_request_is_an_error_that_clients_retry(client: openai.OpenAI) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        client.completions.create(**_LONG, extra_body={"timeout_s": 0.3})
    assert caught.value.status_code == 504


@pytest.mark.parametrize("num_retries", [0, 1])
def test_a_client_that_gives_up_leaves_nothing_running(service: Service, num_retries: int) -> None:
    """Also where it tries again: each try is a request of its own."""
    request_id = f"gives-up-{time.monotonic_ns()}"
    client = service.openai().with_options(timeout=0.5, max_retries=num_retries)
    with pytest.raises(openai.APITimeoutError):
        client.completions.create(**_LONG, extra_headers={"x-request-id": request_id})
    outcomes = wait_for(
        lambda: found if len(found := _outcomes(service, request_id)) > num_retries else None,
        "the replica has ended every try",
    )
    assert outcomes == ["client_gone"] * (num_retries + 1)


def test_a_stream_that_is_closed_early_is_cancelled(service: Service) -> None:
    client = service.openai()
    with client.completions.create(**_LONG, stream=True) as stream:
        first = next(iter(stream))
    request_id = first.id.removeprefix("cmpl-")
    outcomes = wait_for(lambda: _outcomes(service, request_id), "the replica has ended it")
    assert outcomes == ["client_gone"]


def test_an_error_in_mid_stream_is_raised(service: Service) -> None:
    stream = service.openai().completions.create(
        **_LONG, stream=True, extra_body={"timeout_s": 1.0}
    )
    with pytest.raises(openai.APIError) as caught:
        for _ in stream:
            pass
    assert caught.value.type == "timeout_error"
