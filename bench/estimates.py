"""`python -m bench.estimates`: what the estimate of an agent says, and what replicas then take.

Each configuration is measured in a process of its own, which holds what a replica holds: the
replica's modules, the engine, the model. It reads one long input, then generates in all slots at
the same time, drawing from the whole vocabulary, or embeds; then its resident set is read from
/proc. Inputs are random token ids. Prints a table in Markdown.

python -m bench.estimates                 all configurations (10 minutes on two cores)
python -m bench.estimates counter llama   those whose model's name begins so
"""

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench import random_model
from bench.processes import ROOT
from shared.model_spec import ModelSpec
from shared.settings.model_settings import DEMO_MODEL
from tests.support import counter_model, embedding_model
from worker.agent.estimate.estimate import estimate
from worker.agent.model_files import packaged

_MIB = 1 << 20
_NEW_TOKENS = 4
_SHORT_INPUT_TOKENS = 32
_REPLICA_EXTRA_BYTES = 8 * _MIB
"""What a replica has and the measured process has not: Celery's consumer, Redis connections,
task threads. A replica of a running service had 6 MiB more on the counter model."""


def _counter_file() -> Path:
    path = random_model.FOLDER / "counter.gguf"
    path.parent.mkdir(parents=True, exist_ok=True)
    counter_model.write(path)
    return path


def _demo_file() -> Path:
    path = ROOT / "var" / "models" / DEMO_MODEL.path
    packaged.assemble(path, DEMO_MODEL.package)
    return path


def _bert_file(name: str, tokenizer: str = "bert", **shape: int) -> Path:
    path = random_model.FOLDER / f"{name}.gguf"
    path.parent.mkdir(parents=True, exist_ok=True)
    embedding_model.Bert(**shape).write(path, tokenizer=tokenizer)
    return path


_BERT = {"width": 384, "layers": 6, "vocabulary": 30_522}
_MODELS: dict[str, Callable[[], Path]] = {
    "counter": _counter_file,
    "gemma-3-270m q4_k_m": _demo_file,
    "llama 290M f16": partial(random_model.write, "llama-f16"),
    "llama 290M q8_0": partial(random_model.write, "llama-q8_0"),
    "llama 290M q4_0": partial(random_model.write, "llama-q4_0"),
    "mixture of 8 140M q8_0": partial(random_model.write, "mixture-q8_0"),
    "bert 22M f32": partial(_bert_file, "bert", **_BERT),
    "bert 25M f32, 8,192 positions": partial(_bert_file, "bert-long", **_BERT, context=8192),
    "bert 100M f32, 250,000 of Unigram": partial(
        _bert_file, "bert-unigram", "t5", width=384, layers=3, vocabulary=250_000
    ),
}


@dataclass(frozen=True, slots=True)
class Configuration:
    model: str
    context_length: int
    slots: int
    quant: str = "f16"
    input_tokens: int = 1024
    """Of the long input, at most; reading fills the context where it is shorter."""
    task: str = "generate"


_CONFIGURATIONS = (
    Configuration("counter", 4096, 4, input_tokens=4096),
    Configuration("counter", 32768, 64, input_tokens=8192),
    Configuration("gemma-3-270m q4_k_m", 512, 1),
    Configuration("gemma-3-270m q4_k_m", 4096, 1, input_tokens=4096),
    Configuration("gemma-3-270m q4_k_m", 4096, 4),
    Configuration("gemma-3-270m q4_k_m", 1000, 16),
    Configuration("gemma-3-270m q4_k_m", 32768, 2),
    Configuration("gemma-3-270m q4_k_m", 8192, 4, "q8_0"),
    Configuration("llama 290M f16", 4096, 4),
    Configuration("llama 290M q8_0", 2048, 8),
    Configuration("llama 290M q8_0", 16384, 2, "q8_0"),
    Configuration("llama 290M q8_0", 16384, 2, "q4_0"),
    Configuration("llama 290M q4_0", 4096, 4),
    Configuration("mixture of 8 140M q8_0", 4096, 2),
    Configuration("bert 22M f32", 512, 8, task="embed"),
    Configuration("bert 22M f32", 512, 64, task="embed"),
    Configuration("bert 25M f32, 8,192 positions", 2048, 4, input_tokens=2048, task="embed"),
    Configuration("bert 25M f32, 8,192 positions", 8192, 4, input_tokens=8192, task="embed"),
    Configuration("bert 100M f32, 250,000 of Unigram", 512, 4, task="embed"),
    Configuration("counter", 4096, 8, input_tokens=4096, task="embed"),
    Configuration("llama 290M q8_0", 4096, 4, input_tokens=4096, task="embed"),
    Configuration("llama 290M q8_0", 16384, 4, "q8_0", task="embed"),
    Configuration("gemma-3-270m q4_k_m", 4096, 4, task="embed"),
)


def main(prefixes: list[str]) -> int:
    print("| model | task | context | slots | KV | estimated MiB | measured MiB | ratio |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for asked in _CONFIGURATIONS:
        if prefixes and not asked.model.startswith(tuple(prefixes)):
            continue
        path = _MODELS[asked.model]()
        spec = ModelSpec(
            name="model",
            path=path.name,
            engine="llamacpp",
            task=asked.task,
            context_length=asked.context_length,
            slots=asked.slots,
            quant=asked.quant,
        )
        expected = estimate(path, spec).total_bytes
        measured = measure(path, asked)
        row = (asked.model, asked.task, f"{asked.context_length:,}", asked.slots, asked.quant)
        numbers = (
            f"{expected / _MIB:,.0f}", f"{measured / _MIB:,.0f}", f"{expected / measured:.2f}"
        )  # fmt: skip
        print("| " + " | ".join(map(str, (*row, *numbers))) + " |", flush=True)
    return 0


def measure(path: Path, asked: Configuration) -> int:
    """Resident bytes of a replica. Raises RuntimeError with what the process said."""
    question = {
        "path": str(path),
        "context_length": asked.context_length,
        "slots": asked.slots,
        "quant": asked.quant,
        "task": asked.task,
        "input_tokens": min(asked.input_tokens, asked.context_length - _NEW_TOKENS - 1),
    }
    # A process that compiles its modules takes 4 MiB more: the first one leaves them compiled.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    for arguments in (["--import"], ["--measure", json.dumps(question)]):
        done = subprocess.run(
            [sys.executable, "-m", "bench.estimates", *arguments],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{asked} failed:\n{done.stderr[-3000:]}")
    return int(done.stdout.split()[-1]) + _REPLICA_EXTRA_BYTES


def _load_and_generate(question: dict[str, object]) -> int:
    """Runs in the measured process; returns its resident bytes."""
    import worker.replica.__main__  # noqa: F401  # for its memory
    from shared.wire.job import Sampling
    from worker.engines import registry
    from worker.engines.base import EngineSettings
    from worker.sequence import Sequence

    settings = EngineSettings(
        path=Path(str(question["path"])),
        context_length=int(str(question["context_length"])),
        slots=int(str(question["slots"])),
        threads=2,
        quant=str(question["quant"]),
        task=str(question["task"]),
    )
    engine = registry.load("llamacpp", settings)
    new_tokens = 0 if engine.embeds else _NEW_TOKENS
    rng = random.Random(0)

    def submit(name: str, num_tokens: int) -> None:
        tokens = [rng.randrange(3, engine.vocab_size) for _ in range(num_tokens)]
        engine.submit(Sequence((name, 0), tokens, new_tokens, Sampling(temperature=1.0, seed=1)))

    submit("long", int(str(question["input_tokens"])))
    while engine.has_work:
        engine.step()
    for i in range(settings.slots):
        submit(f"short {i}", min(_SHORT_INPUT_TOKENS, settings.context_length // 2))
    while engine.has_work:
        engine.step()
    status = Path("/proc/self/status").read_text()
    resident = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(resident.split()[1]) * 1024


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(_load_and_generate(json.loads(sys.argv[2])))
    elif sys.argv[1:2] == ["--import"]:
        import worker.engines.llamacpp.embedding_engine
        import worker.engines.llamacpp.engine
        import worker.replica.__main__  # noqa: F401
    else:
        sys.exit(main(sys.argv[1:]))
