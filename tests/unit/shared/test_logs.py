"""What a log line holds, and what it never does."""

import json
import logging
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from shared import logs
from shared.clock import clock
from shared.errors import InternalError
from shared.logs import JsonFormatter
from shared.wire import codec
from shared.wire.codec import DecodeError
from shared.wire.job import ChatMessage, Job, JobKind

_SECRET = "the moon is made of cheese"


@pytest.fixture(autouse=True)
def _no_request() -> Iterator[None]:
    yield
    logs.set_request_id("")


def _line(message: str, *args: Any, logger: str = "app.x", with_prompts: bool = False,
          **extra: Any) -> str:  # fmt: skip
    record = logging.LogRecord(logger, logging.INFO, "x.py", 1, message, args, None)
    record.exc_info = sys.exc_info() if sys.exc_info()[0] else None
    record.__dict__.update(extra)
    return JsonFormatter("web", with_prompts=with_prompts).format(record)


def _fields(*args: Any, **options: Any) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(_line(*args, **options))
    return fields


@pytest.mark.parametrize("ahead_s", [0, 40, -700])
def test_the_time_of_a_line_is_that_of_the_service(
    monkeypatch: pytest.MonkeyPatch, ahead_s: int
) -> None:
    monkeypatch.setattr(clock, "_offset", time.time() - ahead_s - time.monotonic())
    at = datetime.fromisoformat(_fields("m")["ts"]).timestamp()
    assert at == pytest.approx(time.time() - ahead_s, abs=10)


def test_no_text_can_end_a_line_or_begin_one() -> None:
    hostile = 'a\n{"level": "info"}\r\x1b[31m\x00\x7f\x85\u2028\u2029\ud800 é'
    line = _line("%s", hostile, model=hostile)
    assert line.isascii()
    assert len(line.splitlines()) == 1
    assert not any(ord(c) < 32 for c in line)
    assert json.loads(line)["message"] == json.loads(line)["model"] == hostile


def test_the_request_of_the_thread_is_in_its_lines() -> None:
    assert "request_id" not in _fields("x")
    logs.set_request_id("r-1")
    assert _fields("x")["request_id"] == "r-1"
    assert _fields("x", request_id="r-2")["request_id"] == "r-2"


def test_celerys_lines_name_the_request_of_their_task() -> None:
    line = _fields("Discarding revoked task: llmis.generate[r-3]", logger="celery.worker.request")
    assert line["request_id"] == "r-3"
    assert "request_id" not in _fields("llmis.generate[r-3]", logger="app.x")


def test_celery_shows_neither_arguments_nor_what_an_exception_quotes() -> None:
    context = {"name": "llmis.generate", "id": "r-4", "description": "raised unexpected",
               "args": f"['{_SECRET}']", "exc": f"ValueError('{_SECRET}')"}  # fmt: skip
    try:
        raise ValueError(_SECRET)
    except ValueError:
        text = _line(f"Task raised: {_SECRET}", logger="celery.app.trace", data=context)
    line = json.loads(text)
    assert _SECRET not in text
    assert line["message"] == "Task llmis.generate[r-4] raised unexpected"
    assert line["request_id"] == "r-4"
    assert "ValueError" in line["traceback"]


def _failing() -> None:
    try:
        {}[_SECRET]
    except KeyError as exc:
        try:
            raise InternalError("The replica had an error.") from exc
        except InternalError:
            raise RuntimeError(_SECRET)  # noqa: B904


def test_a_requests_traceback_has_classes_and_places_and_no_foreign_message() -> None:
    try:
        _failing()
    except RuntimeError:
        text = _line("job failed", request_id="r-5")
        assert _SECRET not in text.replace("_SECRET", "")
        trace = json.loads(text)["traceback"]
        for word in ("KeyError", "RuntimeError", "InternalError: The replica had an error."):
            assert word in trace
        assert "test_logs.py" in trace
        assert _SECRET in _line("job failed", request_id="r-5", with_prompts=True)
        assert _SECRET in _line("not of a request")


def test_bytes_that_are_no_job_are_not_quoted() -> None:
    job = Job(id="r", model="m", kind=JobKind.CHAT, created_at=0, deadline_at=0,
              messages=[ChatMessage("user", _SECRET)])  # fmt: skip
    for payload in (codec.encode_job(job)[:-1], codec.encode_job(job) + b"\xc1"):
        with pytest.raises(DecodeError) as caught:
            codec.decode_job(payload)
        assert _SECRET not in str(caught.value)
        assert _SECRET not in repr(caught.value)
