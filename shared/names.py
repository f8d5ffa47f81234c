"""Every queue, channel, key and task name of the service, made here and nowhere else."""

import re

MODEL_NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,95}\Z"
NODE_NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z"
_REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")

LEFT = b"left"
"""See `cancel_key`."""

PRIORITY_STEPS = (0, 3, 6, 9)
"""Celery priorities; 0 is the highest. Kombu keeps one list a step: of jobs that come again, then
interactive, background and batch ones."""

GENERATE_TASK = "llmis.generate"
"""The Celery task that runs one job. Its only argument is the job id, which is also the task id."""

LOAD_TASK = "llmis.load"
"""The agent's task that loads a model. Its only argument is the operation id."""

UNLOAD_TASK = "llmis.unload"

RESTART_AGENT_TASK = "llmis.restart_agent"

REPLICA_INDEX = "llmis:replicas"
"""Set of the replica ids that may be alive; the record of each expires by itself."""

HOLDERS = "llmis:holders"
"""Set of the replica ids that may hold jobs, dead ones among them until their jobs are rescued."""

NODE_INDEX = "llmis:nodes"
"""Set of the nodes whose agents may be alive; the record of each expires by itself."""

MODELS = "llmis:models"
"""Hash: name → `ModelSpec` of the models that were loaded at run time."""

FAILURES = "llmis:failures"
"""Hash: name → `Failure` of the models that could not be loaded or kept running."""

API_KEYS = "llmis:keys"
"""Hash: SHA-256 of an API key → its `ApiKey`."""

API_KEYS_VERSION = "llmis:keys:version"
"""Another text after each change of the keys."""

LAST_USED = "llmis:used"
"""Sorted set: name → Unix time of the last request."""

OPERATIONS_IN_FLIGHT = "llmis:operations"
"""Set of "kind:name" of the loads and unloads that may be under way."""

PROBE = "llmis:probe"
"""Written to see whether Redis takes new requests."""


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
    """Present when the job is to stop: what a replica reads that missed the revocation.

    `LEFT`: its last reader has left, and may come back. Anything else: it was cancelled.
    """
    return f"llmis:job:{job_id}:cancelled"


def claim_key(job_id: str) -> str:
    """The `Claim` of the replica that runs the job: a second delivery sees it and ends."""
    return f"llmis:job:{job_id}:claim"


def readers_key(job_id: str) -> str:
    """Set of the hub channels of the web processes that read the job."""
    return f"llmis:job:{job_id}:readers"


def waiting_key(owner: str) -> str:
    """Sorted set: job id → Unix time of its deadline, of what an owner has waiting."""
    return f"llmis:owner:{owner}:waiting"


def running_key(owner: str) -> str:
    """The same of what it has running."""
    return f"llmis:owner:{owner}:running"


def rates_key(owner: str) -> str:
    """Hash: what an owner has left of its requests and tokens a minute."""
    return f"llmis:owner:{owner}:rates"


def idempotency_key(owner: str, digest: str) -> str:
    """Fingerprint and job id of the request that an owner sent with an `Idempotency-Key`."""
    return f"llmis:owner:{owner}:once:{digest}"


def guesses_key(network: str) -> str:
    """How many keys and tokens that do not hold have come from a network of late."""
    return f"llmis:guesses:{network}"


def turns_key(model: str) -> str:
    """Hash: how the owners take turns in the model's queue."""
    return f"llmis:model:{model}:turns"


def tags_key(model: str, place: int) -> str:
    """Hash: owner → the turn that was given last to it in one list of the model's queue."""
    return f"llmis:model:{model}:tags:{place}"


def hub_channel(web_id: str) -> str:
    """Pub/sub channel of one web process: carries the events of all jobs that it relays."""
    return f"llmis:hub:{web_id}"


def replica_key(replica_id: str) -> str:
    return f"llmis:replica:{replica_id}"


def held_key(replica_id: str) -> str:
    """Set of the ids of the jobs that a replica has taken from the queue."""
    return f"llmis:replica:{replica_id}:jobs"


def node_queue(node: str) -> str:
    """Celery queue of a node's agent."""
    return f"node.{node}"


def node_key(node: str) -> str:
    return f"llmis:node:{node}"


def suspects_key(model: str) -> str:
    """Hash: fingerprint of a request → how often a replica of the model failed with it."""
    return f"llmis:model:{model}:suspects"


def assignments_key(node: str) -> str:
    """Hash of a node: assignment id → `Assignment`. What the agent is to keep running."""
    return f"llmis:node:{node}:assignments"


def stop_key(replica_id: str) -> str:
    """The `StopOrder` that a replica reads when it is told to stop."""
    return f"llmis:replica:{replica_id}:stop"


def command_key(operation_id: str) -> str:
    """The command of an operation: what its agent reads first."""
    return f"llmis:operation:{operation_id}"


def progress_key(operation_id: str) -> str:
    """List of the operation's `Progress` events, the last one is where it stands."""
    return f"llmis:operation:{operation_id}:progress"


def operation_lock_key(kind: str, model: str) -> str:
    """Id of the operation of that kind that is under way; expires when nobody works on it."""
    return f"llmis:operation:{kind}:{model}"
