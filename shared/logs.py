"""JSON log lines on standard error: one object per line, `request_id` wherever there is one.

No line has the text of a prompt or an answer, or a header's value. What code logs has none, and
the messages of foreign exceptions, which may quote what they stumbled over, are left out of the
lines of requests. `log_prompts` lifts both.
"""

import json
import logging
import re
import time
import traceback
from contextvars import ContextVar
from typing import Any

import redis
from kombu.exceptions import OperationalError

from shared import names
from shared.errors import LlmisError, SettingsError

_OWN_FIELDS = set(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName", "data"}
"""`data` is what Celery adds: the arguments of a task and its traceback once more."""
_TASK = re.compile(rf"{re.escape(names.GENERATE_TASK)}\[([^\]]*)\]")
"""How Celery names a task."""
_OUTSPOKEN = (LlmisError, SettingsError, OSError, redis.RedisError, OperationalError)
"""Exceptions whose messages hold no text of a request."""
_request_id: ContextVar[str] = ContextVar("request_id", default="")


def set_request_id(request_id: str) -> None:
    """Name the request that this thread or greenlet works for from now on; "" = none."""
    _request_id.set(request_id)


class JsonFormatter(logging.Formatter):
    """Shapes a record as JSON. What is given as `extra=` becomes fields of its own."""

    def __init__(self, process: str, *, with_prompts: bool = False) -> None:
        super().__init__()
        self._process = process
        self._with_prompts = with_prompts

    def format(self, record: logging.LogRecord) -> str:
        message = _message(record)
        line: dict[str, Any] = {
            "ts": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "process": self._process,
            "logger": record.name,
            "message": message,
        }
        request_id = _request_id.get() or _task_id(record.name, message)
        if request_id:
            line["request_id"] = request_id
        line.update({k: v for k, v in record.__dict__.items() if k not in _OWN_FIELDS})
        if record.exc_info and record.exc_info[1] is not None:
            is_open = self._with_prompts or "request_id" not in line
            line["traceback"] = _traceback(record.exc_info[1], with_messages=is_open)
        # ASCII: what some programs take for the end of a line (U+2028, U+0085) is escaped, too.
        return json.dumps(line, default=str)


def _message(record: logging.LogRecord) -> str:
    task = record.__dict__.get("data")
    if isinstance(task, dict) and "description" in task:
        # Celery's own words quote the exception; it comes as the traceback.
        return f"Task {task.get('name')}[{task.get('id')}] {task['description']}"
    return record.getMessage()


def _task_id(logger: str, message: str) -> str:
    found = _TASK.search(message) if logger.startswith("celery.") else None
    return found[1] if found else ""


def _traceback(exc: BaseException, *, with_messages: bool) -> str:
    """Like Python's own. Without messages foreign exceptions show their classes alone."""
    if with_messages:
        return "".join(traceback.format_exception(exc)).rstrip("\n")
    earlier = exc.__cause__ or (None if exc.__suppress_context__ else exc.__context__)
    parts = [f"{_traceback(earlier, with_messages=False)}\n\nthen:\n"] if earlier else []
    parts += traceback.format_tb(exc.__traceback__)
    says = f": {exc}" if isinstance(exc, _OUTSPOKEN) else ""
    return "".join(parts) + f"{type(exc).__module__}.{type(exc).__qualname__}{says}"


def configure(process: str, level: str, *, with_prompts: bool = False) -> None:
    """Send all logging of this process to standard error as JSON lines."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter(process, with_prompts=with_prompts))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for chatty in (
        "kombu",
        "amqp",
        "geventwebsocket",
        "celery.worker.strategy",
        "celery.app.trace",
    ):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, root.level))
    if with_prompts:
        logging.getLogger(__name__).warning(
            "log_prompts is on: texts of prompts and answers are written into this log"
        )
