"""Jobs of completions for tests."""

import time
from typing import Any

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
