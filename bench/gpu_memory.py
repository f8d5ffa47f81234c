"""What worker/agent/estimate/estimate.py says of GPU memory, and what a replica then takes.

Each configuration is loaded over the admin API of one running service, gets as many prompts at
the same time as it has slots, and is measured with nvidia-smi against what was taken before.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bench import gpu_machine, gpu_served, gpu_servers, lifecycle, measure
from bench.gpu_served import TokenLoad
from bench.gpu_servers import GpuModel
from bench.report import table as text_table
from bench.servers import Server
from shared.model_spec import ModelSpec
from worker.agent.estimate.estimate import estimate

_MIB = 1 << 20
_TARGET = 0.10


@dataclass(frozen=True)
class Configuration:
    kind: str
    context_length: int
    slots: int
    quant: str = "fp16"


_CONFIGURATIONS = (
    Configuration("counter-gptq", 2048, 4),
    Configuration("1b", 1024, 64),
    Configuration("1b-gptq", 1024, 64),
    Configuration("1b-gptq", 8192, 32),
    Configuration("1b-gptq", 8192, 32, "q8"),
    Configuration("1b-gptq", 8192, 32, "q4"),
    Configuration("1b", 8192, 128, "q6"),
)


def run(is_quick: bool, rows: list[dict[str, object]], say: Callable[[str], None]) -> None:
    """Append one row a configuration; bytes."""
    chosen = _CONFIGURATIONS[:2] if is_quick else _CONFIGURATIONS
    for asked in chosen:
        # So that all folders are there: the service looks for them in one place.
        GpuModel(asked.kind).folder  # noqa: B018
    with gpu_servers.llmis(GpuModel("1b-gptq"), preload=False) as server:
        for asked in chosen:
            row = _measure(asked, server)
            rows.append(row)
            say(f"  {asked}: used / estimated = {row['used_over_estimated']:.2f}")


def table(rows: list[dict[str, Any]]) -> str:
    lines = [["model", "KV", "context", "slots", "estimated MiB", "used MiB", "used/estimated"]]
    for row in rows:
        counts = (f"{row['context_length']:,}", str(row["slots"]))
        sizes = (f"{row['estimated_bytes'] / _MIB:,.0f}", f"{row['used_bytes'] / _MIB:,.0f}")
        ratio = f"{row['used_over_estimated']:.2f}"
        lines.append([row["kind"], row["quant"], *counts, *sizes, ratio])
    return text_table(lines)


def _measure(asked: Configuration, server: Server) -> dict[str, Any]:
    model = GpuModel(asked.kind, asked.slots, asked.context_length, asked.quant)
    spec = ModelSpec(
        name=asked.kind,
        path=model.folder.name,
        engine="exllamav2",
        task="generate",
        context_length=asked.context_length,
        slots=asked.slots,
        quant=asked.quant,
    )
    expected = estimate(model.folder, spec)
    before = gpu_machine.used_bytes()
    name = f"memory-{asked.kind}"
    _admin(server, "load", {
        "name": name, "path": asked.kind, "engine": "exllamav2", "quant": asked.quant,
        "context_length": asked.context_length, "slots": asked.slots,
    })  # fmt: skip
    try:
        loaded = gpu_machine.used_bytes() - before
        _run_full(name, model, server)
        used = gpu_machine.used_bytes() - before
    finally:
        _admin(server, "unload", {"name": name})
    return {
        "kind": asked.kind,
        "quant": asked.quant,
        "context_length": asked.context_length,
        "slots": asked.slots,
        "estimated_bytes": expected.total_bytes,
        "loaded_bytes": loaded,
        "used_bytes": used,
        "used_over_estimated": used / expected.total_bytes,
        "meets_target": abs(1 - used / expected.total_bytes) <= _TARGET,
    }


def _run_full(name: str, model: GpuModel, server: Server) -> None:
    """All slots at once, and prompts that fill a prefill chunk where the context allows it."""
    prompt_tokens = min(2100, model.context_length - 64)
    load = TokenLoad("full", model.slots, 1, prompt_tokens, 16)
    plan = gpu_served.plan(load, model, server, name)
    measure.run_load(plan)


def _admin(server: Server, action: str, body: dict[str, object]) -> None:
    status, answer = lifecycle.post(server, f"/admin/models/{action}", {"wait": True, **body})
    if status != 200:
        raise RuntimeError(f"{action} failed: {answer}")
