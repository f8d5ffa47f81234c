"""The Celery message of a job, byte for byte like that of Celery's own `send_task`.

Made here, so that one script can check a request's limits, store its job and put its message into
its place in the queue. Source: Celery's message protocol, version 2.
"""

import base64
import os
import socket
import uuid
from typing import Any

import msgspec

from shared import names
from shared.wire.job import Job

_encode = msgspec.json.Encoder().encode
_ORIGIN = f"gen{os.getpid()}@{socket.gethostname()}"
UNPLACED = "@"
"""The header `llmis_order` until the admission script sets it."""
FIRST = "0.0"


def queue_message(job: Job, priority: int, order: str = UNPLACED) -> bytes:
    """Make the message of a job. `priority` is one of `names.PRIORITY_STEPS`."""
    body = _encode([[job.id], {}, dict.fromkeys(("callbacks", "errbacks", "chain", "chord"))])
    queue = names.model_queue(job.model)
    message: dict[str, Any] = {
        "headers": {
            # First: the scripts of the queue search for these.
            "llmis_order": order,
            "llmis_made_ms": int(1000 * job.created_at),
            "lang": "py",
            "task": names.GENERATE_TASK,
            "id": job.id,
            "root_id": job.id,
            **dict.fromkeys(("parent_id", "group", "group_index", "shadow", "eta", "expires")),
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
