"""Asks the GPU what nobody could know without one: a JSON line an answer.

    python -m tools.gpu.questions ANSWERS.jsonl [NAME ...]
    python -m tools.gpu.questions --ask NAME        one question, in this process

Each runs in a process of its own with a time limit, so that one that hangs or poisons the
device costs nothing but its own answer. Needs .venv-gpu's python and the models of
tests/gpu/models.py, which are written when missing. What ExLlamaV2's source let expect stands
with each question.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
_FOLDER = ROOT / "var" / "test" / "gpu-models"
_LIMIT_S = 60.0
_LONGER_S = {"exl2_conversion": 150.0}
_QUESTIONS: dict[str, Callable[[], dict[str, Any]]] = {}


def _question(ask: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    _QUESTIONS[ask.__name__] = ask
    return ask


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["--ask"]:
        print("\nANSWER " + json.dumps(_QUESTIONS[arguments[1]](), default=str))
        return 0
    out = Path(arguments[0])
    for name in arguments[1:] or list(_QUESTIONS):
        line = json.dumps(_ask_apart(name))
        with out.open("a") as file:
            file.write(line + "\n")
        print(line[:400], flush=True)
    return 0


def _ask_apart(name: str) -> dict[str, Any]:
    started = time.monotonic()
    asked = (_QUESTIONS[name].__doc__ or "").split("\n\n")[0]
    line: dict[str, Any] = {"name": name, "question": " ".join(asked.split())}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "tools.gpu.questions", "--ask", name],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=_LONGER_S.get(name, _LIMIT_S),
        )
    except subprocess.TimeoutExpired:
        return {**line, "error": f"no answer within {_LONGER_S.get(name, _LIMIT_S):g} s"}
    said = [text for text in done.stdout.splitlines() if text.startswith("ANSWER ")]
    line["seconds"] = round(time.monotonic() - started, 1)
    if said:
        return {**line, "answer": json.loads(said[-1].removeprefix("ANSWER "))}
    # The last lines first: a terminal shows the beginning.
    told = [text.strip() for text in done.stderr.splitlines() if text.strip()][-12:]
    return {**line, "error": f"exit status {done.returncode}: " + " <- ".join(reversed(told))}


# -- what they have in common --------------------------------------------------------------------


def _folder(kind: str) -> Path:
    from tests.gpu import models

    return models.write(kind, _FOLDER / kind)


def _config(kind: str, **fields: object) -> Any:
    from exllamav2 import ExLlamaV2Config

    config = ExLlamaV2Config(str(_folder(kind)))
    config.arch_compat_overrides()
    config.max_seq_len = 4096
    for name, value in fields.items():
        setattr(config, name, value)
    return config


def _generator(kind: str, cache_tokens: int = 8192, batch: int = 8) -> Any:
    """With the attention that is attached by then. Weights, cache, generator."""
    from exllamav2 import ExLlamaV2, ExLlamaV2Cache, ExLlamaV2Tokenizer
    from exllamav2.generator import ExLlamaV2DynamicGenerator

    config = _config(kind)
    model = ExLlamaV2(config)
    model.load()
    cache = ExLlamaV2Cache(model, max_seq_len=cache_tokens)
    tokenizer = ExLlamaV2Tokenizer(config)
    return ExLlamaV2DynamicGenerator(model, cache, tokenizer, max_batch_size=batch)


def _greedy(generator: Any, prompts: list[list[int]], num_tokens: int) -> tuple[Any, Any]:
    """Token ids and logits of each, on the CPU: lists of (n,) and (n, vocabulary)."""
    import torch
    from exllamav2.generator import ExLlamaV2DynamicJob, ExLlamaV2Sampler

    for i, prompt in enumerate(prompts):
        generator.enqueue(
            ExLlamaV2DynamicJob(
                input_ids=torch.tensor([prompt]),
                max_new_tokens=num_tokens,
                gen_settings=ExLlamaV2Sampler.Settings.greedy(),
                return_logits=True,
                identifier=i,
            )
        )
    ids: list[list[Any]] = [[] for _ in prompts]
    logits: list[list[Any]] = [[] for _ in prompts]
    while generator.num_remaining_jobs():
        for result in generator.iterate():
            if result["stage"] == "streaming" and "token_ids" in result:
                ids[result["identifier"]].append(result["token_ids"][0].cpu())
                # The generator hands out a view of a buffer that the next step overwrites.
                logits[result["identifier"]].append(result["logits"][0].float().cpu().clone())
    return [torch.cat(of_job) for of_job in ids], [torch.cat(of_job) for of_job in logits]


def _prompts(kind: str, lengths: tuple[int, ...]) -> list[list[int]]:
    import numpy as np

    from tests.gpu.models import vocabulary

    words = vocabulary(kind)
    rng = np.random.default_rng(3)
    return [rng.integers(words.first_word, words.size, n).tolist() for n in lengths]


def _reference(kind: str, ids: Any) -> Any:
    """Logits of transformers in float32: (positions, vocabulary), on the CPU."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(_folder(kind), dtype=torch.float32).to("cuda")
    with torch.inference_mode():
        return model(ids.to("cuda").reshape(1, -1)).logits[0].cpu()


def _distance(out: Any, expected: Any) -> float:
    out, expected = out.double(), expected.double()
    return float((out - expected).norm() / expected.norm())


def _used_mib() -> int:
    import torch

    free, total = torch.cuda.mem_get_info()
    return int(total - free) >> 20


# -- the questions, in the order in which the answers matter -------------------------------------


@_question
def machine() -> dict[str, Any]:
    """What is this machine?"""
    import torch

    commands = {
        "smi": "nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader",
        "nvcc": "nvcc --version | tail -2 | head -1",
        "cxx": "c++ --version | head -1",
    }
    said = {
        name: subprocess.run(command, shell=True, capture_output=True, text=True).stdout.strip()
        for name, command in commands.items()
    }
    return {
        **said,
        "cores": os.cpu_count(),
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "capability": torch.cuda.get_device_capability(),
        "flash_attn": _is_installed("flash_attn"),
        "xformers": _is_installed("xformers"),
    }


def _is_installed(name: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(name) is not None


@_question
def arch_names() -> dict[str, Any]:
    """Does torch report architectures such as sm_90a, on which ext.py's int() would fail?"""
    import torch

    names = torch.cuda.get_arch_list()
    return {"arch_list": names, "would_fail": any(not n.split("_")[1].isdigit() for n in names)}


@_question
def import_time() -> dict[str, Any]:
    """Does the extension load, prebuilt, and how long do the imports take?"""
    started = time.monotonic()
    import torch

    torch_s = time.monotonic() - started
    import exllamav2
    from exllamav2 import ext

    return {
        "version": exllamav2.__version__,
        "is_jit": ext.build_jit,
        "path": ext.ext_c.__file__,
        "so_mib": Path(ext.ext_c.__file__).stat().st_size >> 20,
        "torch_s": round(torch_s, 2),
        "all_s": round(time.monotonic() - started, 2),
        "cuda": torch.cuda.is_available(),
    }


@_question
def paged_without_flash_attn() -> dict[str, Any]:
    """Without flash-attn, does the paged generator refuse, and accept after attach()?

    Expected: AssertionError, then yes (attn.py:84-90)."""
    try:
        _generator("tiny")
        refused = ""
    except AssertionError as exc:
        refused = str(exc)[:200]
    from worker.engines.exl2.attach import attach

    in_use = attach("sdpa")
    _generator("tiny")
    return {"refused_with": refused, "attached": str(in_use)}


def _attached(choice: str) -> dict[str, Any]:
    import torch

    from worker.engines.exl2.attach import attach

    in_use = attach(choice)
    prompts = _prompts("tiny", (1, 100, 255, 256, 257, 700, 2100))
    ids, logits = _greedy(_generator("tiny"), prompts, 24)
    found, same = {}, 0
    for prompt, said, out in zip(prompts, ids, logits, strict=True):
        whole = torch.cat([torch.tensor(prompt), said])
        expected = _reference("tiny", whole)[len(prompt) - 1 : -1]
        found[len(prompt)] = _distance(out[:, : expected.shape[1]], expected)
        same += int((expected.argmax(1) == said).sum())
    return {
        "in_use": str(in_use),
        "distance_by_prompt_length": found,
        "same_greedy_tokens": f"{same} of {24 * len(prompts)}",
    }


@_question
def logits_with_sdpa() -> dict[str, Any]:
    """Do logits through the SDPA shim agree with transformers, in a batch over pages?

    Expected: distance near 2e-3."""
    return _attached("sdpa")


@_question
def logits_with_triton() -> dict[str, Any]:
    """Do logits through the Triton kernels agree with transformers, in a batch over pages?"""
    return _attached("triton")


@_question
def sdpa_bug() -> dict[str, Any]:
    """Does ExLlamaV2's own SDPA path forget the causal mask in prefill (attn.py:889)?

    Expected: with SDPA wrong, with no_sdpa right. Neither is ours; it says why paged=False is
    no way out."""
    import torch
    from exllamav2 import ExLlamaV2, ExLlamaV2Cache

    ids = torch.tensor(_prompts("tiny", (300,)))
    expected = _reference("tiny", ids)
    found = {}
    for no_sdpa in (False, True):
        model = ExLlamaV2(_config("tiny", no_sdpa=no_sdpa, no_flash_attn=True))
        model.load()
        cache = ExLlamaV2Cache(model, max_seq_len=512)
        with torch.inference_mode():
            out = model.forward(ids, cache)[0].float().cpu()
        found[f"no_sdpa={no_sdpa}"] = _distance(out[:, : expected.shape[1]], expected)
    return {"distance": found}


@_question
def gptq_zeros() -> dict[str, Any]:
    """Are GPTQ weights of q = zero + 1 exactly 0, in the kernels for few and for many rows?"""
    import torch
    from exllamav2 import ExLlamaV2
    from exllamav2.linear import ExLlamaV2Linear

    model = ExLlamaV2(_config("counter-gptq"))
    model.load()
    found: dict[str, float] = {}
    for rows in (1, 8, 32, 33, 256):
        largest = 0.0
        for module in model.modules_dict.values():
            if isinstance(module, ExLlamaV2Linear) and module.q_handle is not None:
                x = torch.randn(rows, module.in_features, device="cuda").half()
                with torch.inference_mode():
                    largest = max(largest, float(module.forward(x).abs().max()))
        found[str(rows)] = largest
    return {"largest_output_by_rows": found}


@_question
def determinism() -> dict[str, Any]:
    """Are the logits of a GPTQ model the same bits in two runs, and alone as in a batch?

    Expected: no (half atomicAdd, q_gemm_kernel_gptq.cuh:243)."""
    import torch

    from worker.engines.exl2.attach import attach

    attach("auto")
    generator = _generator("1b-gptq", cache_tokens=8192)
    prompts = _prompts("1b", (300, 200, 100, 50))

    def run(of: list[list[int]]) -> Any:
        generator.reset_page_table()
        return _greedy(generator, of, 32)

    first_ids, first = run(prompts[:1])
    again_ids, again = run(prompts[:1])
    batch_ids, batch = run(prompts)
    return {
        "two_runs_same_bits": bool(torch.equal(first[0], again[0])),
        "two_runs_distance": _distance(again[0], first[0]),
        "two_runs_same_tokens": bool(torch.equal(first_ids[0], again_ids[0])),
        "in_batch_same_bits": bool(torch.equal(first[0][:1], batch[0][:1])),
        "in_batch_distance_first_token": _distance(batch[0][:1], first[0][:1]),
        "in_batch_same_tokens": bool(torch.equal(first_ids[0], batch_ids[0])),
    }


@_question
def memory_of_a_process() -> dict[str, Any]:
    """What do CUDA's context, cuBLAS and the extension take before any weights? In MiB.

    The estimate reckons with 1000, and 256 as a reserve (exllamav2_memory._PROCESS_BYTES)."""
    smi = "nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits --id=0"

    def used() -> int:
        return int(subprocess.check_output(smi.split(), text=True))

    steps = {"before": used()}
    import torch

    torch.zeros(1, device="cuda")
    steps["context"] = used()
    half = torch.randn(512, 512, device="cuda").half()
    (half @ half).sum().item()
    steps["cublas"] = used()
    from worker.engines.exl2.attach import attach

    attach("auto")
    generator = _generator("counter-gptq", cache_tokens=2048)
    _greedy(generator, _prompts("counter", (300,)), 20)
    steps["counter model"] = used()
    steps["of which allocated by torch"] = torch.cuda.memory_allocated() >> 20
    steps["reserved by torch"] = torch.cuda.memory_reserved() >> 20
    return steps


@_question
def unload() -> dict[str, Any]:
    """What stays taken after a model is unloaded in the same process? In MiB."""
    import gc

    import torch

    from worker.engines.exl2.attach import attach

    attach("auto")
    torch.zeros(1, device="cuda")
    before = _used_mib()
    generator = _generator("1b", cache_tokens=16384)
    _greedy(generator, _prompts("1b", (300,)), 8)
    loaded = _used_mib()
    generator.model.unload()
    generator.sampling_pool.shutdown(wait=False)
    generator.filter_pool.shutdown(wait=False)
    del generator
    gc.collect()
    torch.cuda.empty_cache()
    return {"before": before, "loaded": loaded, "after": _used_mib()}


@_question
def load_time() -> dict[str, Any]:
    """How long do models take to load, and to their first token (kernels, graphs)?"""
    from worker.engines.exl2.attach import attach

    attach("auto")
    found = {}
    for kind in ("tiny", "1b-gptq", "1b"):
        name = kind.partition("-")[0]
        started = time.monotonic()
        generator = _generator(kind)
        loaded_s = time.monotonic() - started
        _greedy(generator, _prompts(name, (300,)), 2)
        first_s = time.monotonic() - started - loaded_s
        found[kind] = {"load_s": round(loaded_s, 2), "two_tokens_s": round(first_s, 2)}
        generator.model.unload()
    return found


@_question
def logits_copy() -> dict[str, Any]:
    """What does the copy of a batch's logits to the CPU cost, pageable as it is, and pinned?

    64 rows of 128,256 values in float32: 33 MB. Expected: several ms against 0.6."""
    import torch

    logits = torch.randn(64, 1, 128_256, device="cuda")
    found = {}
    for name, is_pinned in (("pageable_ms", False), ("pinned_ms", True)):
        target = torch.empty(logits.shape, pin_memory=is_pinned)
        times = []
        for _ in range(20):
            torch.cuda.synchronize()
            started = time.perf_counter()
            target.copy_(logits, non_blocking=True)
            torch.cuda.synchronize()
            times.append(time.perf_counter() - started)
        found[name] = round(1000 * sorted(times)[10], 3)
    return found


@_question
def cpu_share_of_a_step() -> dict[str, Any]:
    """How much of a decode step is Python and sampling on the CPU, by batch?"""
    import torch
    from exllamav2.generator import ExLlamaV2DynamicJob, ExLlamaV2Sampler

    from worker.engines.exl2.attach import attach

    attach("auto")
    generator = _generator("1b-gptq", cache_tokens=65536, batch=64)
    found = {}
    for batch in (1, 32, 33, 64):
        for prompt in _prompts("1b", (100,) * batch):
            generator.enqueue(
                ExLlamaV2DynamicJob(
                    input_ids=torch.tensor([prompt]),
                    max_new_tokens=400,
                    gen_settings=ExLlamaV2Sampler.Settings.greedy(),
                )
            )
        for _ in range(250):  # graphs are captured at the 205th call of a shape
            generator.iterate()
        torch.cuda.synchronize()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        wall, cpu = time.perf_counter(), time.process_time()
        begin.record()
        for _ in range(100):
            generator.iterate()
        end.record()
        torch.cuda.synchronize()
        found[str(batch)] = {
            "step_ms": round(10 * (time.perf_counter() - wall), 3),
            "cpu_ms": round(10 * (time.process_time() - cpu), 3),
            "events_ms": round(begin.elapsed_time(end) / 100, 3),
        }
        generator.clear_queue()
    return found


@_question
def truncated_file() -> dict[str, Any]:
    """Does the loader hang on a weights file that is cut short (ext_stloader.cpp)?

    Expected: it hangs, so this question gives no answer; the agent checks headers before."""
    import shutil
    import tempfile

    from exllamav2 import ExLlamaV2

    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "cut"
        shutil.copytree(_folder("tiny"), folder)
        weights = folder / "model.safetensors"
        with weights.open("r+b") as file:
            file.truncate(weights.stat().st_size // 2)
        config = _config("tiny")
        config.model_dir = str(folder)
        config.prepare()
        try:
            ExLlamaV2(config).load()
        except Exception as exc:
            return {"raised": repr(exc)[:300]}
    return {"raised": None}


@_question
def exl2_conversion() -> dict[str, Any]:
    """Does ExLlamaV2's converter work on a random model, and does the result load and count as
    the original does?

    Expected: distance of some percent at 6 bits. The only EXL2 weights that need no download."""
    import shutil

    work, made = _FOLDER / "tiny-exl2-work", _FOLDER / "tiny-exl2"
    shutil.rmtree(work, ignore_errors=True)
    shutil.rmtree(made, ignore_errors=True)
    work.mkdir(parents=True)
    # fastparquet reads other calibration texts than the package's own; nothing here needs it.
    code = (
        "import sys, types, runpy\n"
        "sys.modules.setdefault('fastparquet', types.ModuleType('fastparquet'))\n"
        "runpy.run_module('exllamav2.conversion.convert_exl2', run_name='__main__')"
    )
    arguments = ["-i", str(_folder("tiny")), "-o", str(work), "-cf", str(made), "-b", "6.0"]
    arguments += ["-hb", "8", "-r", "8", "-mr", "4", "-l", "512", "-ml", "512", "-nr"]
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    seconds = round(time.monotonic() - started, 1)
    if not (made / "config.json").exists():
        return {"exit": done.returncode, "seconds": seconds, "said": done.stderr[-1500:]}
    import torch
    from exllamav2 import ExLlamaV2, ExLlamaV2Cache

    from worker.engines.exl2.attach import attach

    attach("sdpa")
    ids = torch.tensor(_prompts("tiny", (300,)))
    expected = _reference("tiny", ids)
    config = _config("tiny")
    config.model_dir = str(made)
    config.prepare()
    model = ExLlamaV2(config)
    model.load()
    with torch.inference_mode():
        out = model.forward(ids, ExLlamaV2Cache(model, max_seq_len=512))[0].float().cpu()
    same = (out[:, : expected.shape[1]].argmax(1) == expected.argmax(1)).float().mean()
    return {
        "seconds": seconds,
        "files_mib": round(sum(f.stat().st_size for f in made.iterdir()) / 2**20, 2),
        "distance": _distance(out[:, : expected.shape[1]], expected),
        "same_best_token": round(float(same), 3),
    }


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1:]))
