"""The name of every queue, channel, key and task. Other modules must not build names themselves."""

import re

MODEL_NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,95}\Z"
NODE_NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z"
_REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")

CANCELLED, LEFT = b"1", b"left"
"""Values of `cancel_key`: the job is not wanted; its last reader has left."""
PRIORITY_STEPS = (0, 3, 6, 9)
"""Celery priorities, 0 is the highest. Kombu keeps one list per step: requeued jobs, then
interactive, background and batch ones."""

GENERATE_TASK = "llmis.generate"
"""The task of replicas that runs one job. Its only argument is the job id, also the task id."""
LOAD_TASK = "llmis.load"
"""The task of agents that loads a model. Its only argument is the operation id."""
UNLOAD_TASK = "llmis.unload"
RESTART_AGENT_TASK = "llmis.restart_agent"

REPLICA_INDEX = "llmis:replicas"
"""Set of the replica ids that may be alive; the record of each expires by itself."""
HOLDERS = "llmis:holders"
"""Set of the replica ids that may hold jobs; dead ones stay until their jobs are recovered."""
LOWER_CLASS_JOBS = "llmis:lower_class"
"""Sorted set: the background and batch jobs, which run without a reader, too → Unix time of their
deadline. A member is what `lower_class_member` makes."""
NODE_INDEX = "llmis:nodes"
"""Set of the nodes whose agents may be alive; the record of each expires by itself."""
MODELS = "llmis:models"
"""Hash: name → `ModelSpec` of the models that were loaded at run time."""
FAILURES = "llmis:failures"
"""Hash: name → `Failure` of the models that could not be loaded or kept running."""
API_KEYS = "llmis:keys"
"""Hash: SHA-256 of an API key → its `ApiKey`."""
API_KEYS_VERSION = "llmis:keys:version"
"""A text that differs after each change of the keys."""
LAST_USED = "llmis:used"
"""Sorted set: name → Unix time of the last request."""
OPERATIONS_IN_FLIGHT = "llmis:operations"
"""Set of "kind:name" of the loads and unloads that may be under way."""
PROBE = "llmis:probe"
"""Written to check that Redis has memory for new requests."""


def is_request_id(text: str) -> bool:
    """Whether a text is valid as a request id, which becomes part of keys, headers and logs."""
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


def lower_class_member(model: str, job_id: str) -> str:
    return f"{model}/{job_id}"


def log_key(job_id: str) -> str:
    """List of the job's encoded events. The list index of an event is its sequence number."""
    return f"llmis:job:{job_id}:log"


def cancel_key(job_id: str) -> str:
    """Present if the job must stop, for replicas that missed the revocation. `LEFT`: its last
    reader has left, and may resume it. Any other value: it was cancelled."""
    return f"llmis:job:{job_id}:cancelled"


def lease_key(job_id: str) -> str:
    """The `Lease` of the replica that runs the job: a second delivery finds it and ends."""
    return f"llmis:job:{job_id}:claim"


def readers_key(job_id: str) -> str:
    """Set of the hub channels of the web processes that read the job."""
    return f"llmis:job:{job_id}:readers"


def waiting_key(owner: str) -> str:
    """Sorted set of an owner's waiting jobs: job id → Unix time of its deadline."""
    return f"llmis:owner:{owner}:waiting"


def running_key(owner: str) -> str:
    """Sorted set of an owner's running jobs, likewise."""
    return f"llmis:owner:{owner}:running"


def rates_key(owner: str) -> str:
    """Hash: the requests and tokens per minute that an owner has left."""
    return f"llmis:owner:{owner}:rates"


def idempotency_key(owner: str, digest: str) -> str:
    """Fingerprint and job id of the request that an owner sent with an `Idempotency-Key`."""
    return f"llmis:owner:{owner}:once:{digest}"


def failed_keys_key(network: str) -> str:
    """Number of invalid keys and tokens that a client network has sent recently."""
    return f"llmis:guesses:{network}"


def turns_key(model: str) -> str:
    """Hash: how the owners take turns in the model's queue."""
    return f"llmis:model:{model}:turns"


def tags_key(model: str, place: int) -> str:
    """Hash: owner → its last turn in one list of the model's queue."""
    return f"llmis:model:{model}:tags:{place}"


def hub_channel(web_id: str) -> str:
    """Pub/sub channel of one web process, with the events of all jobs that it reads."""
    return f"llmis:hub:{web_id}"


def counters_key(master_id: str) -> str:
    """Hash: key of a metric's series → what the web processes of a gunicorn master counted."""
    return f"llmis:web:{master_id}:counters"


def counter_reports_key(master_id: str) -> str:
    """Hash: web process → number and time of its last batch of counters, and its gauges."""
    return f"llmis:web:{master_id}:reports"


def replica_key(replica_id: str) -> str:
    return f"llmis:replica:{replica_id}"


def held_key(replica_id: str) -> str:
    """Set of the job ids that a replica has taken from the queue."""
    return f"llmis:replica:{replica_id}:jobs"


def node_queue(node: str) -> str:
    """Celery queue of a node's agent."""
    return f"node.{node}"


def node_key(node: str) -> str:
    return f"llmis:node:{node}"


def poison_key(model: str) -> str:
    """Hash of poison requests: fingerprint → failures of the model's replicas that it was in."""
    return f"llmis:model:{model}:suspects"


def assignments_key(node: str) -> str:
    """Hash of a node: assignment id → `Assignment`, the replicas that its agent keeps running."""
    return f"llmis:node:{node}:assignments"


def stop_key(replica_id: str) -> str:
    """The `StopOrder` of a replica, written before it is signalled."""
    return f"llmis:replica:{replica_id}:stop"


def command_key(operation_id: str) -> str:
    """The `LoadCommand` or `UnloadCommand` of an operation."""
    return f"llmis:operation:{operation_id}"


def stopped_nodes_key(operation_id: str) -> str:
    """How many nodes have carried out an unload."""
    return f"{command_key(operation_id)}:done"


def progress_key(operation_id: str) -> str:
    """List of the operation's `OperationProgress` events; the last one is its current state."""
    return f"llmis:operation:{operation_id}:progress"


def operation_lock_key(kind: str, model: str) -> str:
    """Id of the operation of that kind under way; it expires unless its agent renews it."""
    return f"llmis:operation:{kind}:{model}"
