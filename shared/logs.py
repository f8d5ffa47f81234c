"""JSON log lines on standard error: one object per line, with `request_id` where one is known.

No line has the text of a prompt or an answer, or a header's value: the code logs none, and the
messages of foreign exceptions, which may quote their input, are left out of the lines of
requests. `log_prompts` lifts both.
"""

import json
import logging
import re
import threading
import time
import traceback
from contextvars import ContextVar
from typing import Any

import redis
from kombu.exceptions import OperationalError

from shared import names
from shared.clock import clock
from shared.errors import LlmisError, SettingsError

_log = logging.getLogger(__name__)
_OWN_FIELDS = set(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName", "data"}
"""`data` is Celery's: the arguments of a task, and its traceback a second time."""
_TASK = re.compile(rf"{re.escape(names.GENERATE_TASK)}\[([^\]]*)\]")
"""A task in Celery's messages."""
_SAFE_MESSAGES = (LlmisError, SettingsError, OSError, redis.RedisError, OperationalError)
"""Exceptions whose messages never quote a request."""
_VERBOSE_LOGGERS = (
    "kombu",
    "amqp",
    "geventwebsocket",
    "celery.worker.strategy",
    "celery.app.trace",
)
"""Libraries that log every message or task at INFO."""
_request_id: ContextVar[str] = ContextVar("request_id", default="")


def set_request_id(request_id: str) -> None:
    """Set the request of this thread or greenlet for its further log lines; "" = none."""
    _request_id.set(request_id)


class JsonFormatter(logging.Formatter):
    """Formats a record as JSON. The fields of `extra=` become fields of the object."""

    def __init__(self, process: str, *, with_prompts: bool = False) -> None:
        super().__init__()
        self._process = process
        self._with_prompts = with_prompts

    def format(self, record: logging.LogRecord) -> str:
        message, at_ms = _message(record), int(1000 * (record.created - clock.host_ahead_s))
        line: dict[str, Any] = {
            "ts": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at_ms // 1000))
            + f".{at_ms % 1000:03d}Z",
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
            with_messages = self._with_prompts or "request_id" not in line
            line["traceback"] = _traceback(record.exc_info[1], with_messages=with_messages)
        # ASCII escapes U+2028 and U+0085, too, which some programs take for the end of a line.
        return json.dumps(line, default=str)


def _message(record: logging.LogRecord) -> str:
    task = record.__dict__.get("data")
    if isinstance(task, dict) and "description" in task:
        # Celery's own message quotes the exception, which the traceback has already.
        return f"Task {task.get('name')}[{task.get('id')}] {task['description']}"
    return record.getMessage()


def _task_id(logger: str, message: str) -> str:
    found = _TASK.search(message) if logger.startswith("celery.") else None
    return found[1] if found else ""


def _traceback(exc: BaseException, *, with_messages: bool) -> str:
    """Format like Python. Without messages, foreign exceptions show only their class."""
    if with_messages:
        return "".join(traceback.format_exception(exc)).rstrip("\n")
    earlier = exc.__cause__ or (None if exc.__suppress_context__ else exc.__context__)
    parts = [f"{_traceback(earlier, with_messages=False)}\n\nthen:\n"] if earlier else []
    parts += traceback.format_tb(exc.__traceback__)
    message = f": {exc}" if isinstance(exc, _SAFE_MESSAGES) else ""
    return "".join(parts) + f"{type(exc).__module__}.{type(exc).__qualname__}{message}"


def _log_thread_end(end: threading.ExceptHookArgs) -> None:
    if end.exc_value is not None:
        name = end.thread.name if end.thread is not None else "a thread"
        _log.critical("%s died", name, exc_info=end.exc_value)


def configure(process: str, level: str, *, with_prompts: bool = False) -> None:
    """Send all logging of this process to standard error as JSON lines. What ends a thread is
    logged, too."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter(process, with_prompts=with_prompts))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    threading.excepthook = _log_thread_end
    # No line has them, and looking for them takes longer than the line itself.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None  # as the documentation of `logging` has it: no search for the caller
    for name in _VERBOSE_LOGGERS:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    if with_prompts:
        _log.warning("log_prompts is on: texts of prompts and answers are written into this log")
