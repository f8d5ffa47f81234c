"""Examples of what the web tier and the replicas send each other: jobs, events, claims, keys.

A name that ends with `-full` has a value in every field that differs from the field's default.
"""

from msgspec.structs import replace

from shared.api_keys import ApiKey, Scope
from shared.queue.lease import Lease
from shared.wire.events import (
    Delta,
    Echo,
    Embedding,
    Event,
    Failed,
    Filtered,
    FilterMatch,
    Finished,
    FinishReason,
    JobEvent,
    Logprob,
    PrefillProgress,
    Started,
    Timings,
    TokenLogprobs,
    ToolCallDelta,
    Usage,
)
from shared.wire.job import (
    AnswerOptions,
    ChatMessage,
    Grammar,
    GrammarKind,
    Job,
    JobKind,
    Priority,
    Sampling,
    Tool,
    ToolCall,
    ToolChoice,
)
from shared.wire.records import Capability, ReplicaRecord, ReplicaState

_SAMPLING = Sampling(
    temperature=0.5,
    top_p=0.9,
    top_k=40,
    min_p=0.05,
    presence_penalty=0.25,
    frequency_penalty=-0.5,
    repetition_penalty=1.125,
    seed=7,
    logit_bias={5: -100.0, 6: 1.5},
)
_ANSWER = AnswerOptions(
    wants_usage=True, wants_logprobs=True, num_wanted=2, tier="default", metadata={"topic": "Grüße"}
)
_ASKED = Job(
    id="req-1",
    model="m",
    kind=JobKind.CHAT,
    num_choices=3,
    max_tokens=16,
    min_tokens=2,
    ignore_eos=True,
    logprobs=4,
    grammar=Grammar(GrammarKind.JSON_SCHEMA, '{"type": "object"}', "tools"),
    stop=["\nUser:", "€"],
    sampling=_SAMPLING,
    priority=Priority.BACKGROUND,
    owner="key-1",
    charged_tokens=20,
    answer=_ANSWER,
    created_at=1_700_000_000.25,
    deadline_at=1_700_000_600.5,
)
_MESSAGES = [
    ChatMessage("system", "Be brief."),
    ChatMessage("user", "Grüße 😀", name="ann"),
    ChatMessage("assistant", "", tool_calls=[ToolCall("call_1", "f", '{"a": 1}')], reasoning="hm"),
    ChatMessage("tool", "12", tool_call_id="call_1"),
]
_CHAT = {
    "messages": _MESSAGES,
    "tools": [Tool("f", "Adds.", {"type": "object", "properties": {"a": {}}}, True), Tool("g")],
    "tool_choice": ToolChoice.REQUIRED,
    "tool_name": "f",
    "parallel_tool_calls": False,
    "template_arguments": {"enable_thinking": False},
}
_COMPLETION = {
    "prompts": ["once upon", [1, 2, 70_000]],
    "suffix": " the end",
    "echo": True,
    "prompt_logprobs": True,
}
_TOKENIZE = {"token_texts": True, "add_special": False}


def _minimal(kind: JobKind) -> Job:
    return Job(id="req-1", model="m", kind=kind, created_at=0.0, deadline_at=0.0)


JOBS = {
    "job-full": replace(
        _ASKED,
        **_CHAT,
        **_COMPLETION,
        **_TOKENIZE,
        continues=True,
        reply_channel="llmis:hub:1",
        is_over=True,
    ),
    "job-chat": replace(_ASKED, **_CHAT),
    "job-completion": replace(
        _ASKED, kind=JobKind.COMPLETION, priority=Priority.BATCH, **_COMPLETION
    ),
    "job-embedding": replace(
        _minimal(JobKind.EMBEDDING), prompts=["a", [1]], owner="key-1", charged_tokens=2
    ),
    "job-tokenize": replace(_minimal(JobKind.TOKENIZE), prompts=["a"], **_TOKENIZE),
    "job-detokenize": replace(_minimal(JobKind.DETOKENIZE), prompts=[[5, 6]]),
    **{f"job-{kind.value}-minimal": _minimal(kind) for kind in JobKind},
}
"""File name → example."""

_CHOSEN = Logprob(5, -0.5, b"\xf0\x9f", b"<end>")
_LOGPROBS = TokenLogprobs(_CHOSEN, [_CHOSEN, Logprob(6, -1.5, b"b")], True)
_FILTERED = Filtered(12, [FilterMatch("no-moon", "mask", 3, 7)])

EVENTS: dict[str, Event] = {
    "event-start": Started(0, 1, 7),
    "event-prefill": PrefillProgress(1, 2, 3, 7),
    "event-delta-full": Delta(
        seq=2,
        attempt=1,
        index=3,
        text="€",
        token_ids=[5, 70_000],
        finish_reason=FinishReason.TOOL_CALLS,
        reasoning="hm",
        tool_calls=[ToolCallDelta(1, "call_1", "f", '{"a"'), ToolCallDelta(1)],
        logprobs=[_LOGPROBS, TokenLogprobs(Logprob(7, -2.0, b"c"), [])],
        filtered=_FILTERED,
    ),
    "event-delta-minimal": Delta(2, 0, 0, "", []),
    "event-echo-full": Echo(3, 1, 2, "once", [_LOGPROBS]),
    "event-echo-minimal": Echo(3, 0, 0, ""),
    "event-embedding": Embedding(4, 1, 2, b"\x00\x00\x80\x3f"),
    "event-end-full": Finished(5, 1, Usage(7, 2, 1, 1), Timings(0.125, 0.25, 0.5)),
    "event-end-minimal": Finished(5, 0, Usage(0, 0), Timings(0.0, 0.0, 0.0)),
    "event-fail-full": Failed(6, 1, 400, "content_filter", "no", "prompt"),
    "event-fail-minimal": Failed(6, 0, 500, None, ""),
}

PUBLISHED_AT = 1_700_000_001.5
HUB_EVENTS = [
    JobEvent("req-1", EVENTS["event-start"], PUBLISHED_AT),
    JobEvent("req-2", EVENTS["event-delta-full"], PUBLISHED_AT),
]

REPLICAS = {
    "replica-full": ReplicaRecord(
        id="m@n-1-2",
        model="m",
        engine="llamacpp",
        device="cuda:0",
        node="n",
        assignment_id="m@n-1",
        pid=12,
        versions={"llmis": "0.1.0"},
        state=ReplicaState.READY,
        stage="ready",
        fraction=1.0,
        slots=4,
        busy_slots=3,
        waiting_sequences=2,
        context_length=4096,
        capabilities=list(Capability),
        chat_error="unexpected '.'",
        steps=70_000,
        step_age_s=0.25,
        publish_age_s=0.5,
        generated_tokens=9,
        tokens_per_s=12.5,
        slot_s=1.5,
        memory_bytes=3_000_000_000,
        mapped_bytes=50,
        estimated_bytes=120,
        device_bytes={"cuda:0": 5000},
        kv_usage=0.75,
        started_at=1_700_000_000.0,
    ),
    "replica-minimal": ReplicaRecord(
        id="r",
        model="m",
        engine="e",
        device="cpu",
        node="n",
        assignment_id="a",
        pid=1,
        versions={},
        state=ReplicaState.LOADING,
        stage="",
        fraction=0.0,
        slots=0,
        busy_slots=0,
        waiting_sequences=0,
        context_length=0,
        capabilities=[],
        steps=0,
        step_age_s=0.0,
        generated_tokens=0,
        tokens_per_s=0.0,
        memory_bytes=0,
        mapped_bytes=0,
        estimated_bytes=0,
        started_at=0.0,
    ),
}

CLAIMS = {"claim-full": Lease("m@n-1-2", 3, 20, 18, 1), "claim-minimal": Lease("")}

KEYS = {
    "key-full": ApiKey(
        id="key-1",
        name="ann",
        scope=Scope.ADMIN,
        shown="sk-llmis-abcd",
        created_at=1_700_000_000.25,
        expires_at=1_800_000_000.5,
        limits={"requests_per_minute": 60},
    ),
    "key-minimal": ApiKey(id="k", name="", scope=Scope.USER, shown="", created_at=0.0),
    "key-metrics": ApiKey(id="k", name="", scope=Scope.METRICS, shown="", created_at=0.0),
}
