"""The names of the fields of the JSON log lines: who collects logs has made filters of them."""

import json
import logging
from typing import Any

import pytest
import redis

from app.metrics.request_record import RequestRecord
from app.middleware.request_log import end
from shared.errors import EngineError, InvalidRequest, LlmisError
from shared.limits import Limits
from shared.logs import JsonFormatter, set_request_id
from shared.queue.job_queue import JobQueue
from shared.settings.fields import Settings
from shared.wire.events import Delta, Finished, FinishReason, Started, Timings, Usage
from shared.wire.job import Job
from tests.contract.frozen_file import assert_frozen
from tests.contract.replica_parts import run_job, serving
from tests.contract.source_log_lines import fields_of_lines
from tests.support.jobs import completion_job


def _fields_of(record: logging.LogRecord, process: str) -> list[str]:
    return sorted(json.loads(JsonFormatter(process).format(record)))


def _only(caplog: pytest.LogCaptureFixture, message: str) -> logging.LogRecord:
    (record,) = [one for one in caplog.records if one.getMessage() == message]
    return record


def _job(**fields: Any) -> Job:
    return completion_job(**{"id": "req-1", "max_tokens": 5, **fields})


# -- the line of a request -----------------------------------------------------------------------


def _plain() -> RequestRecord:
    return RequestRecord("GET /v1/models")


def _rejected() -> RequestRecord:
    facts = RequestRecord("POST /v1/completions")
    facts.fail(InvalidRequest("no"))
    return facts


def _with_job(error: LlmisError | None = None, *, with_texts: bool = False) -> RequestRecord:
    facts, job = RequestRecord("POST /v1/completions", with_texts=with_texts), _job()
    facts.ask(job)
    facts.read(job, is_first=True)
    facts.observe([Started(0, 0, 1), Delta(1, 0, 0, "a", [1], FinishReason.STOP)])
    if error is None:
        facts.observe([Finished(2, 0, Usage(1, 1), Timings(0.0, 0.0, 0.0))])
    facts.fail(error)
    return facts


def _filtered() -> RequestRecord:
    facts = _with_job(with_texts=True)
    facts.note_match("no-moon", "mask", "output")
    return facts


_REQUESTS = {
    "no model": _plain,
    "rejected": _rejected,
    "finished": _with_job,
    "failed": lambda: _with_job(EngineError("no")),
    "with texts and filter": _filtered,
}


def test_the_line_of_a_request(caplog: pytest.LogCaptureFixture) -> None:
    found = {}
    for name, facts in _REQUESTS.items():
        caplog.clear()
        with caplog.at_level(logging.INFO):
            set_request_id("req-1")
            end(facts(), "req-1", "key-1", 200)
        record = _only(caplog, "request")
        found[name] = {"fields": _fields_of(record, "web"), "level": record.levelname}
    assert_frozen("logs/request.json", found)


# -- the line of a job ---------------------------------------------------------------------------


def test_the_line_of_a_job(server: redis.Redis, caplog: pytest.LogCaptureFixture) -> None:
    JobQueue(server, 60).admit(_job(), "llmis:hub:w", Limits(), 10)
    with caplog.at_level(logging.INFO), serving(server, Settings()):
        run_job("req-1")
    assert_frozen("logs/job.json", _fields_of(_only(caplog, "request done"), "replica"))


# -- all others ----------------------------------------------------------------------------------


def test_the_fields_that_other_lines_have() -> None:
    assert_frozen("logs/lines.json", fields_of_lines())


def test_the_fields_that_every_line_has(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("app.x")
    log.warning("plain")
    try:
        raise InvalidRequest("no")
    except InvalidRequest:
        log.exception("failed")
    set_request_id("req-1")
    try:
        found = {
            "of a request": _fields_of(_only(caplog, "plain"), "web"),
            "with an exception": _fields_of(_only(caplog, "failed"), "web"),
        }
    finally:
        set_request_id("")
    found["of no request"] = _fields_of(_only(caplog, "plain"), "web")
    assert_frozen("logs/every_line.json", found)


def test_a_line_as_text() -> None:
    record = logging.LogRecord("app.x", logging.INFO, "x.py", 1, "a %s", ("b",), None)
    record.created, record.msecs = 1_700_000_000.25, 250.0
    record.model = "m"
    line = (
        '{"ts": "2023-11-14T22:13:20.250Z", "level": "info", "process": "web", '
        '"logger": "app.x", "message": "a b", "model": "m"}'
    )
    assert JsonFormatter("web").format(record) == line
