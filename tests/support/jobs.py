"""Jobs of completions for tests."""

import time
from typing import Any

import redis

from shared import names
from shared.wire import codec
from shared.wire.events import Finished
from shared.wire.job import Job, JobKind


def completion_job(**fields: Any) -> Job:
    """Asked for now, with ten minutes until its deadline."""
    now = time.time()
    base: dict[str, Any] = {
        "id": "j",
        "model": "m",
        "kind": JobKind.COMPLETION,
        "prompts": ["x"],
        "created_at": now,
        "deadline_at": now + 600,
    }
    return Job(**(base | fields))


def is_finished(client: "redis.Redis", job_id: str) -> bool:
    """Whether the last event of a job is in its log."""
    last = client.lindex(names.log_key(job_id), -1)
    return bool(last) and isinstance(codec.decode_event(last), Finished)
