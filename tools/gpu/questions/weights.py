"""Are the numbers right: logits, quantised weights, the converter."""

import shutil
import subprocess
import sys
import time
from typing import Any

from tools.gpu.questions.parts import (
    FOLDER,
    config_of,
    distance,
    folder_of,
    generator_of,
    greedy,
    prompts_of,
    reference,
)


def _attached(choice: str) -> dict[str, Any]:
    import torch

    from worker.engines.exllamav2.attention.attach import attach

    in_use = attach(choice)
    prompts = prompts_of("tiny", (1, 100, 255, 256, 257, 700, 2100))
    ids, logits = greedy(generator_of("tiny"), prompts, 24)
    found, same = {}, 0
    for prompt, said, out in zip(prompts, ids, logits, strict=True):
        whole = torch.cat([torch.tensor(prompt), said])
        expected = reference("tiny", whole)[len(prompt) - 1 : -1]
        found[len(prompt)] = distance(out[:, : expected.shape[1]], expected)
        same += int((expected.argmax(1) == said).sum())
    return {
        "in_use": str(in_use),
        "distance_by_prompt_length": found,
        "same_greedy_tokens": f"{same} of {24 * len(prompts)}",
    }


def logits_with_triton() -> dict[str, Any]:
    """Do logits through the Triton kernels agree with transformers, in a batch over pages?"""
    return _attached("triton")


def gptq_zeros() -> dict[str, Any]:
    """Are GPTQ weights of q = zero + 1 exactly 0, in the kernels for few and for many rows?"""
    import torch
    from exllamav2 import ExLlamaV2
    from exllamav2.linear import ExLlamaV2Linear

    model = ExLlamaV2(config_of("counter-gptq"))
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


def determinism() -> dict[str, Any]:
    """Are the logits of a GPTQ model the same bits in two runs, and alone as in a batch?

    Expected: no (half atomicAdd, q_gemm_kernel_gptq.cuh:243)."""
    import torch

    from worker.engines.exllamav2.attention.attach import attach

    attach("auto")
    generator = generator_of("1b-gptq", cache_tokens=8192)
    prompts = prompts_of("1b", (300, 200, 100, 50))

    def run(of: list[list[int]]) -> Any:
        generator.reset_page_table()
        return greedy(generator, of, 32)

    first_ids, first = run(prompts[:1])
    again_ids, again = run(prompts[:1])
    batch_ids, batch = run(prompts)
    return {
        "two_runs_same_bits": bool(torch.equal(first[0], again[0])),
        "two_runs_distance": distance(again[0], first[0]),
        "two_runs_same_tokens": bool(torch.equal(first_ids[0], again_ids[0])),
        "in_batch_same_bits": bool(torch.equal(first[0][:1], batch[0][:1])),
        "in_batch_distance_first_token": distance(batch[0][:1], first[0][:1]),
        "in_batch_same_tokens": bool(torch.equal(first_ids[0], batch_ids[0])),
    }


def logits_with_sdpa() -> dict[str, Any]:
    """Do logits through the SDPA shim agree with transformers, in a batch over pages?

    Expected: distance near 2e-3."""
    return _attached("sdpa")


def sdpa_bug() -> dict[str, Any]:
    """Does ExLlamaV2's own SDPA path forget the causal mask in prefill (attn.py:889)?

    Expected: with SDPA wrong, with no_sdpa right. Neither is ours; it says why paged=False is
    no way out."""
    import torch
    from exllamav2 import ExLlamaV2, ExLlamaV2Cache

    ids = torch.tensor(prompts_of("tiny", (300,)))
    expected = reference("tiny", ids)
    found = {}
    for no_sdpa in (False, True):
        model = ExLlamaV2(config_of("tiny", no_sdpa=no_sdpa, no_flash_attn=True))
        model.load()
        cache = ExLlamaV2Cache(model, max_seq_len=512)
        with torch.inference_mode():
            out = model.forward(ids, cache)[0].float().cpu()
        found[f"no_sdpa={no_sdpa}"] = distance(out[:, : expected.shape[1]], expected)
    return {"distance": found}


def exl2_conversion() -> dict[str, Any]:
    """Does ExLlamaV2's converter work on a random model, and does the result load and count as
    the original does?

    Expected: distance of some percent at 6 bits. The only EXL2 weights that need no download."""
    work, made = FOLDER / "tiny-exl2-work", FOLDER / "tiny-exl2"
    shutil.rmtree(work, ignore_errors=True)
    shutil.rmtree(made, ignore_errors=True)
    work.mkdir(parents=True)
    # fastparquet reads other calibration texts than the package's own; nothing here needs it.
    code = (
        "import sys, types, runpy\n"
        "sys.modules.setdefault('fastparquet', types.ModuleType('fastparquet'))\n"
        "runpy.run_module('exllamav2.conversion.convert_exl2', run_name='__main__')"
    )
    arguments = ["-i", str(folder_of("tiny")), "-o", str(work), "-cf", str(made), "-b", "6.0"]
    arguments += ["-hb", "8", "-r", "8", "-mr", "4", "-l", "512", "-ml", "512", "-nr"]
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    seconds = round(time.monotonic() - started, 1)
    if not (made / "config.json").exists():
        return {"exit": done.returncode, "seconds": seconds, "said": done.stderr[-1500:]}
    import torch
    from exllamav2 import ExLlamaV2, ExLlamaV2Cache

    from worker.engines.exllamav2.attention.attach import attach

    attach("sdpa")
    ids = torch.tensor(prompts_of("tiny", (300,)))
    expected = reference("tiny", ids)
    config = config_of("tiny")
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
        "distance": distance(out[:, : expected.shape[1]], expected),
        "same_best_token": round(float(same), 3),
    }
