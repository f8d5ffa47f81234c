"""What the questions have in common: models, generators, and transformers to compare with."""

from pathlib import Path
from typing import Any

from tests.gpu import models
from tools.gpu.questions.asking import ROOT

FOLDER = ROOT / "var" / "test" / "gpu-models"


def folder_of(kind: str) -> Path:
    return models.write(kind, FOLDER / kind)


def config_of(kind: str, **fields: object) -> Any:
    from exllamav2 import ExLlamaV2Config

    config = ExLlamaV2Config(str(folder_of(kind)))
    config.arch_compat_overrides()
    config.max_seq_len = 4096
    for name, value in fields.items():
        setattr(config, name, value)
    return config


def generator_of(kind: str, cache_tokens: int = 8192, batch: int = 8) -> Any:
    """With the attention that is attached by then. Weights, cache, generator."""
    from exllamav2 import ExLlamaV2, ExLlamaV2Cache, ExLlamaV2Tokenizer
    from exllamav2.generator import ExLlamaV2DynamicGenerator

    config = config_of(kind)
    model = ExLlamaV2(config)
    model.load()
    cache = ExLlamaV2Cache(model, max_seq_len=cache_tokens)
    tokenizer = ExLlamaV2Tokenizer(config)
    return ExLlamaV2DynamicGenerator(model, cache, tokenizer, max_batch_size=batch)


def greedy(generator: Any, prompts: list[list[int]], num_tokens: int) -> tuple[Any, Any]:
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


def prompts_of(kind: str, lengths: tuple[int, ...]) -> list[list[int]]:
    import numpy as np

    words = models.vocabulary(kind)
    rng = np.random.default_rng(3)
    return [rng.integers(words.first_word, words.size, n).tolist() for n in lengths]


def reference(kind: str, ids: Any) -> Any:
    """Logits of transformers in float32: (positions, vocabulary), on the CPU."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder_of(kind), dtype=torch.float32).to("cuda")
    with torch.inference_mode():
        return model(ids.to("cuda").reshape(1, -1)).logits[0].cpu()


def distance(out: Any, expected: Any) -> float:
    out, expected = out.double(), expected.double()
    return float((out - expected).norm() / expected.norm())
