"""From bodies to jobs: what a job takes from its request, what is refused, what is noted."""

import time
from pathlib import Path
from typing import Any

import pytest

from app.jobs.build import JobBuilder, JobRequest, is_streamable
from app.metrics.request_record import RequestRecord
from app.schemas.generation import ChatRequest, CompletionRequest
from app.schemas.parse import convert
from shared.denylist.denylist import parse
from shared.errors import ContentFiltered, InvalidRequest, ModelFailed, ModelNotFound, ModelUnloaded
from shared.settings.fields import Settings
from shared.wire.job import JobKind

_RULES = b"""
[[rules]]
name = "no-go"
literals = ["forbidden"]
action = "refuse"

[[rules]]
name = "marked"
literals = ["delicate"]
action = "tag"
"""


class _Models:
    """Stands for catalog, loader, denylist file and the note of last use."""

    def __init__(self) -> None:
        self.known, self.leaving, self.used = {"m"}, False, list[str]()
        self.failure: Exception | None = None
        self.current = parse(Path("denylist.toml"), _RULES)

    def is_known(self, name: str) -> bool:
        return name in self.known

    def is_leaving(self, _name: str) -> bool:
        return self.leaving

    def check(self, _model: str) -> None:
        if self.failure is not None:
            raise self.failure

    def note(self, model: str) -> None:
        self.used.append(model)


@pytest.fixture
def models() -> _Models:
    return _Models()


def _builder(models: Any, **settings: Any) -> JobBuilder:
    return JobBuilder(Settings(**settings), models, models, models, models)


def _request() -> JobRequest:
    return JobRequest("r", "owner", RequestRecord("/v1", is_counted=False))


def _chat(content: str = "hi", **fields: Any) -> ChatRequest:
    messages = [{"role": "user", "content": content}]
    return convert({"model": "m", "messages": messages, **fields}, ChatRequest)


def _completion(**fields: Any) -> CompletionRequest:
    return convert({"model": "m", "prompt": "x", **fields}, CompletionRequest)


def test_a_job_has_id_and_owner_of_its_request(models: _Models) -> None:
    request = _request()
    job = _builder(models).chat(_chat(), request)
    assert (job.id, job.owner, job.kind, job.model) == ("r", "owner", JobKind.CHAT, "m")
    assert request.record.model == "m"
    assert request.record.kind is JobKind.CHAT
    assert models.used == ["m"]


@pytest.mark.parametrize(("timeout_s", "allowed_s"), [(5, 5), (None, 600), (10_000, 600)])
def test_no_job_may_take_longer_than_the_longest(
    models: _Models, monkeypatch: pytest.MonkeyPatch, timeout_s: float | None, allowed_s: float
) -> None:
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    body = _chat() if timeout_s is None else _chat(timeout_s=timeout_s)
    job = _builder(models, request_timeout_s=600.0).chat(body, _request())
    assert (job.created_at, job.deadline_at) == (1000.0, 1000.0 + allowed_s)


def test_a_model_that_cannot_be_used_is_refused(models: _Models) -> None:
    request = _request()
    builder = _builder(models)
    models.known = set()
    with pytest.raises(ModelNotFound):
        builder.chat(_chat(), request)
    assert request.record.model == "", "a name that anybody sends is no label of a metric"
    models.known, models.failure = {"m"}, ModelFailed("it failed a moment ago")
    with pytest.raises(ModelFailed):
        builder.chat(_chat(), request)
    models.leaving = True
    with pytest.raises(ModelUnloaded):
        builder.other("m", JobKind.EMBEDDING, ["x"], request)
    assert request.record.model == "m"
    assert models.used == []


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"suffix": "y", "echo": True}, "echo"),
        ({"n": 5}, "n"),
        ({"max_tokens": 101}, "max_tokens"),
        ({"max_tokens": 5, "min_tokens": 6}, "min_tokens"),
    ],
)
def test_what_the_service_does_not_take_names_its_parameter(
    models: _Models, body: dict[str, Any], param: str
) -> None:
    builder = _builder(models, max_choices=4, max_completion_tokens=100)
    with pytest.raises(InvalidRequest) as caught:
        builder.completion(_completion(**body), _request())
    assert caught.value.param == param


def test_the_default_length_of_a_completion_is_within_the_limit(models: _Models) -> None:
    for limit, expected in ((0, 16), (100, 16), (8, 8)):
        job = _builder(models, max_completion_tokens=limit).completion(_completion(), _request())
        assert job.max_tokens == expected


def test_best_of_needs_log_probabilities_and_cannot_be_streamed(models: _Models) -> None:
    job = _builder(models).completion(_completion(best_of=3, n=1), _request())
    assert (job.num_choices, job.logprobs, job.answer.wants_logprobs) == (3, 0, False)
    assert not is_streamable(job)
    assert is_streamable(_builder(models).completion(_completion(n=3), _request()))


def test_tools_have_names_of_their_own(models: _Models) -> None:
    tool = {"type": "function", "function": {"name": "set"}}
    with pytest.raises(InvalidRequest, match="Two tools") as caught:
        _builder(models).chat(_chat(tools=[tool, tool]), _request())
    assert caught.value.param == "tools[1].function.name"


def test_tags_of_the_prompt_are_handed_back_and_recorded(models: _Models) -> None:
    request = _request()
    _builder(models).chat(_chat("a delicate, delicate matter"), request)
    assert request.filter_tags == ["marked"]
    assert list(request.record.rules) == ["marked"]


def test_a_forbidden_prompt_is_refused_and_recorded(models: _Models) -> None:
    request = _request()
    with pytest.raises(ContentFiltered) as caught:
        _builder(models).other("m", JobKind.EMBEDDING, ["fine", "forbidden"], request)
    assert caught.value.param == "input"
    assert list(request.record.rules) == ["no-go"]


def test_tokens_are_not_filtered(models: _Models) -> None:
    request = _request()
    _builder(models).other("m", JobKind.TOKENIZE, ["forbidden"], request)
    assert not request.record.rules
