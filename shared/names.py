"""Every queue, channel, key and task name of the service, made here and nowhere else."""

import re

MODEL_NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,95}\Z"
_REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")

PRIORITY_STEPS = (0, 3, 6, 9)
"""Celery priorities; 0 is the highest. Kombu keeps one list a step."""

GENERATE_TASK = "llmis.generate"
"""The Celery task that runs one job. Its only argument is the job id, which is also the task id."""

REPLICA_INDEX = "llmis:replicas"
"""Set of the replica ids that may be alive; the record of each expires by itself."""


def is_request_id(text: str) -> bool:
    """Whether a text may be a request id: it becomes part of keys, headers and logs."""
    return _REQUEST_ID.fullmatch(text) is not None


def model_queue(model: str) -> str:
    return f"model.{model}"


def priority_lists(model: str) -> list[str]:
    """The Redis lists of a model's queue: its name, then name + separator + step."""
    queue = model_queue(model)
    return [f"{queue}\x06\x16{step}" if step else queue for step in PRIORITY_STEPS]


def job_key(job_id: str) -> str:
    """The encoded `Job`: written by the web tier, read by the replica."""
    return f"llmis:job:{job_id}"


def log_key(job_id: str) -> str:
    """List of the job's encoded events. The list index of an event is its sequence number."""
    return f"llmis:job:{job_id}:log"


def cancel_key(job_id: str) -> str:
    """Present when the job was cancelled: what a replica reads that missed the revocation."""
    return f"llmis:job:{job_id}:cancelled"


def claim_key(job_id: str) -> str:
    """Id of the replica that runs the job: a second delivery sees it and ends."""
    return f"llmis:job:{job_id}:claim"


def hub_channel(web_id: str) -> str:
    """Pub/sub channel of one web process: carries the events of all jobs that it relays."""
    return f"llmis:hub:{web_id}"


def replica_key(replica_id: str) -> str:
    return f"llmis:replica:{replica_id}"
