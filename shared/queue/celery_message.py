"""The Celery message of a job, as Celery's own `send_task` would word it.

Made here, so that one call can check a request's limits, store its job and put its message into
its place in the queue. Source: Celery's message protocol, version 2.
"""

import base64
import os
import socket
import uuid
from typing import Any

import msgspec

from shared import names
from shared.messages import Job

_encode = msgspec.json.Encoder().encode
_ORIGIN = f"gen{os.getpid()}@{socket.gethostname()}"
UNPLACED = "@"
"""The header `llmis_order` until the queue has set it."""
FIRST = "0.0"


def queue_message(job: Job, priority: int, order: str = UNPLACED) -> bytes:
    """Word the message of a job. `priority` is one of `names.PRIORITY_STEPS`."""
    body = _encode([[job.id], {}, {"callbacks": None, "errbacks": None, "chain": None,
                                   "chord": None}])  # fmt: skip
    queue = names.model_queue(job.model)
    message: dict[str, Any] = {
        "headers": {
            # First: these are what the queue looks for.
            "llmis_order": order,
            "llmis_made_ms": int(1000 * job.created_at),
            "lang": "py",
            "task": names.GENERATE_TASK,
            "id": job.id,
            "root_id": job.id,
            "parent_id": None,
            "group": None,
            "group_index": None,
            "shadow": None,
            "eta": None,
            "expires": None,
            "retries": 0,
            "timelimit": [None, None],
            "argsrepr": repr((job.id,)),
            "kwargsrepr": "{}",
            "origin": _ORIGIN,
            "ignore_result": True,
            "replaced_task_nesting": 0,
            "stamped_headers": None,
            "stamps": {},
        },
        "body": base64.b64encode(body).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "properties": {
            "correlation_id": job.id,
            "reply_to": "",
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": queue},
            "priority": priority,
            "body_encoding": "base64",
            "delivery_tag": str(uuid.uuid4()),
        },
    }
    return _encode(message)
