"""What a process takes, and gives back."""

import subprocess
from typing import Any

from tools.gpu.questions.parts import generator_of, greedy, prompts_of


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
    from worker.engines.exllamav2.attention.attach import attach

    attach("auto")
    generator = generator_of("counter-gptq", cache_tokens=2048)
    greedy(generator, prompts_of("counter", (300,)), 20)
    steps["counter model"] = used()
    steps["of which allocated by torch"] = torch.cuda.memory_allocated() >> 20
    steps["reserved by torch"] = torch.cuda.memory_reserved() >> 20
    return steps


def unload() -> dict[str, Any]:
    """What stays taken after a model is unloaded in the same process? In MiB."""
    import gc

    import torch

    from worker.engines.exllamav2.attention.attach import attach

    attach("auto")
    torch.zeros(1, device="cuda")
    before = used_mib()
    generator = generator_of("1b-gptq", cache_tokens=16384)
    greedy(generator, prompts_of("1b", (300,)), 8)
    loaded = used_mib()
    generator.model.unload()
    generator.sampling_pool.shutdown(wait=False)
    generator.filter_pool.shutdown(wait=False)
    del generator
    gc.collect()
    torch.cuda.empty_cache()
    return {"before": before, "loaded": loaded, "after": used_mib()}


def used_mib() -> int:
    import torch

    free, total = torch.cuda.mem_get_info()
    return int(total - free) >> 20
