"""Examples of what the web tier and the agents send each other about models, and what lies in
Redis of nodes and assignments.

A name that ends with `-full` has a value in every field that differs from the field's default.
"""

from msgspec import Struct

from shared.model_spec import ModelSpec
from shared.settings.model_settings import SamplingDefaults
from shared.wire.operations import (
    Failure,
    LoadCommand,
    OperationKind,
    OperationProgress,
    OperationState,
    UnloadCommand,
)
from shared.wire.records import Assignment, Device, NodeRecord, StopOrder

_SPEC = ModelSpec(
    name="m",
    path="m.gguf",
    engine="llamacpp",
    task="generate",
    device="cuda:0",
    quant="q8_0",
    package="weights",
    context_length=8192,
    slots=8,
    cache_tokens=65_536,
    draft="ngram",
    draft_tokens=5,
    threads=3,
    chat_template="{{ messages }}",
    stop=["\nUser:"],
    strip_leading_space=True,
    sampling=SamplingDefaults(
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        min_p=0.05,
        presence_penalty=0.25,
        frequency_penalty=-0.5,
        repetition_penalty=1.125,
    ),
    pin=True,
    ttl_s=60.0,
    is_configured=True,
)
_PLAIN = ModelSpec(name="m", path="m.gguf")
_FAILURE = Failure(
    status=507,
    code="insufficient_memory",
    message="no room",
    param="name",
    at=1_700_000_000.25,
    retry_at=1_700_000_060.5,
)

MESSAGES: dict[str, Struct] = {
    "model-full": _SPEC,
    "model-minimal": _PLAIN,
    "assignment-full": Assignment(
        id="m@n-1", node="n", spec=_SPEC, memory_bytes=3_000_000_000, replica_id="m@n-1-2"
    ),
    "assignment-minimal": Assignment(id="m@n-1", node="n", spec=_PLAIN, memory_bytes=0),
    "stop-order-full": StopOrder(10.5, "The model was unloaded.", True),
    "stop-order-minimal": StopOrder(0.0, ""),
    "node-full": NodeRecord(
        id="n",
        pid=12,
        versions={"llmis": "0.1.0"},
        started_at=1_700_000_000.0,
        clock_ahead_s=1.5,
        cpus=8,
        devices=[Device("cpu", "Memory", 900, 400, 10), Device("cuda:0", "GPU", 800, 300)],
        promised_bytes=30,
        models=["m"],
    ),
    "node-minimal": NodeRecord(
        id="n", pid=1, versions={}, started_at=0.0, cpus=1, devices=[], promised_bytes=0, models=[]
    ),
    "load-full": LoadCommand(
        id="load-1",
        spec=_SPEC,
        replicas=2,
        nodes=["n", "o"],
        node="n",
        no_room_on=["p"],
        refusal=_FAILURE,
        replaces="m@n-1-2",
        is_on_demand=True,
        deadline_at=1_700_000_600.5,
    ),
    "load-minimal": LoadCommand(id="load-1", spec=_PLAIN, replicas=1, nodes=[], deadline_at=0.0),
    "unload-full": UnloadCommand(
        id="unload-1", model="m", grace_s=10.5, is_draining=True, is_forgotten=True, num_nodes=2
    ),
    "unload-minimal": UnloadCommand(
        id="unload-1", model="m", grace_s=0.0, is_draining=False, is_forgotten=False, num_nodes=1
    ),
    "failure-full": _FAILURE,
    "failure-minimal": Failure(status=500, code=None, message=""),
    "progress-full": OperationProgress(
        id="load-1",
        kind=OperationKind.LOAD,
        model="m",
        state=OperationState.FAILED,
        stage="failed",
        fraction=1.0,
        message="no room",
        failure=_FAILURE,
    ),
    **{
        f"progress-{state.value}": OperationProgress(
            id="unload-1", kind=OperationKind.UNLOAD, model="m", state=state, stage="", fraction=0.5
        )
        for state in OperationState
    },
}
"""File name → example."""
