"""What the tests of the command `llmis` share: the API's objects, and a way to run a command."""

import time
from typing import Any

from click.testing import CliRunner, Result

from cli.main import cli


def api_error(message: str) -> dict[str, Any]:
    """Why a model failed to load."""
    return {"message": message, "type": "x", "param": None, "code": None, "at": time.time()}


REPLICA = {
    "id": "counter-abc123",
    "node": "node-1",
    "pid": 4711,
    "device": "cpu",
    "state": "ready",
    "stage": "ready",
    "fraction": 1.0,
    "slots": 4,
    "busy_slots": 3,
    "memory_estimated_bytes": 1 << 30,
    "memory_bytes": 3 << 29,
    "tokens_per_s": 41.26,
    "started_at": time.time() - 97_800,
    "uptime_s": 97_800,
    "step_age_s": 0.1,
}
LOADING = {
    **REPLICA,
    "id": "counter-def456",
    "state": "loading",
    "stage": "reading weights",
    "fraction": 0.42,
    "busy_slots": 0,
    "memory_bytes": 0,
    "tokens_per_s": 0.0,
}
MODEL: dict[str, Any] = {
    "id": "counter",
    "state": "ready",
    "is_configured": True,
    "path": "counter.gguf",
    "engine": "llamacpp",
    "device": "cpu",
    "quant": "Q4_K_M",
    "context_length": 2048,
    "slots": 8,
    "busy_slots": 3,
    "queue_length": 5,
    "tokens_per_s": 41.26,
    "last_used_at": None,
    "pin": True,
    "ttl_s": 0,
    "error": None,
    "load": None,
    "replicas": [REPLICA, LOADING],
}
FAILED = {
    **MODEL,
    "id": "broken",
    "state": "failed",
    "pin": False,
    "ttl_s": 600,
    "error": api_error("is not a GGUF file"),
    "replicas": [],
}
NODE = {
    "id": "node-1",
    "pid": 99,
    "version": "0.1.0",
    "started_at": time.time() - 97_800,
    "uptime_s": 97_800,
    "cpus": 16,
    "memory_total_bytes": 64 << 30,
    "memory_free_bytes": 48 << 30,
    "memory_promised_bytes": 2 << 30,
    "devices": [{"id": "cpu", "name": "EPYC", "total_bytes": 64 << 30, "free_bytes": 48 << 30}],
    "replicas": 2,
    "models": ["counter"],
}
HOSTILE = "[red]x[/red] \x1b]0;owned\x07 \x9b2J \u202eexe.txt"


def chat_events(*texts: str) -> list[Any]:
    """The events of a chat answer; `[DONE]` last."""
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    deltas += [{"content": text} for text in texts]
    chunks = [
        {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta}]}
        for delta in [*deltas, {}]
    ]
    return [*chunks, "[DONE]"]


def completion_events(*texts: str) -> list[Any]:
    chunks = [
        {"object": "text_completion", "choices": [{"index": 0, "text": text}]} for text in texts
    ]
    return [*chunks, "[DONE]"]


def run(*arguments: str, given: str | None = None) -> Result:
    """Run a command in this process; its output goes where no terminal is."""
    return CliRunner().invoke(cli, arguments, input=given)
