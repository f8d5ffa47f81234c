"""The engine's logits are those of transformers on the same weights.

Through the engine's own protocol: log probabilities of a batch whose prompts end in the middle
of pages, at their ends, and beyond a prefill chunk. transformers computes in float32.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.gpu.driving import GREEDY, run
from tests.gpu.models import vocabulary
from worker.engines import registry
from worker.engines.base import Engine, EngineSettings
from worker.sequence import Sequence

_LENGTHS = (1, 17, 255, 256, 257, 512, 700, 2100)
_NEW_TOKENS = 24
_TOP = 8
_TOLERANCES = {"fp16": 0.06, "q8": 0.3}
"""Largest difference of a log probability. The logits' standard deviation is 3.7; fp16 has 11
bits, and its error grows through four layers. Not yet seen on a GPU: correct what is measured."""


@pytest.fixture(scope="module")
def reference(model_folder: Callable[[str], Path]) -> Any:
    transformers = pytest.importorskip("transformers")
    import torch

    model = transformers.AutoModelForCausalLM.from_pretrained(
        model_folder("tiny"), dtype=torch.float32
    )
    return model.to("cuda").eval()


@pytest.fixture(scope="module", params=["fp16", "q8"])
def engine(
    request: pytest.FixtureRequest, model_folder: Callable[[str], Path]
) -> Iterator[tuple[Engine, str]]:
    settings = EngineSettings(
        path=model_folder("tiny"), context_length=4096, slots=16, threads=1, quant=request.param
    )
    loaded = registry.load("exllamav2", settings)
    yield loaded, request.param
    loaded.close()


def _prompts() -> list[list[int]]:
    import numpy as np

    words = vocabulary("tiny")
    rng = np.random.default_rng(1)
    return [rng.integers(words.first_word, words.size, n).tolist() for n in _LENGTHS]


def test_log_probabilities_agree_with_transformers(
    engine: tuple[Engine, str], reference: Any
) -> None:
    """At each position of what the engine said: its token, and the best others."""
    import torch

    loaded, quant = engine
    tolerance = _TOLERANCES[quant]
    prompts = _prompts()
    found = run(
        loaded,
        [
            Sequence((str(i), 0), prompt, _NEW_TOKENS, GREEDY, logprobs=_TOP)
            for i, prompt in enumerate(prompts)
        ],
    )
    worst, same = 0.0, 0
    for i, prompt in enumerate(prompts):
        outcome = found[str(i), 0]
        assert len(outcome.token_ids) == len(outcome.logprobs) == _NEW_TOKENS
        with torch.inference_mode():
            ids = torch.tensor([prompt + outcome.token_ids], device="cuda")
            logits = reference(ids).logits[0, len(prompt) - 1 : -1].double()
        expected = logits.log_softmax(-1).cpu()
        for position, said in enumerate(outcome.logprobs):
            row = expected[position]
            # Greedy: no other token is better by more than the noise.
            assert float(row.max() - row[said.chosen.token_id]) <= 2 * tolerance, (i, position)
            same += int(row.argmax()) == said.chosen.token_id
            for token in (said.chosen, *said.top):
                worst = max(worst, abs(token.logprob - float(row[token.token_id])))
    print(f"KV {quant}: largest difference {worst:.4f}, same greedy token {same} times")
    assert worst <= tolerance
    assert same >= 0.95 * len(prompts) * _NEW_TOKENS


def test_a_sequence_says_the_same_alone_and_in_a_batch(engine: tuple[Engine, str]) -> None:
    """Up to near ties: bits may differ with the batch, the text of so short a run hardly."""
    loaded, _ = engine
    prompts = _prompts()[:6]
    together = run(
        loaded,
        [Sequence((f"b{i}", 0), prompt, _NEW_TOKENS, GREEDY) for i, prompt in enumerate(prompts)],
    )
    same = 0
    for i, prompt in enumerate(prompts):
        (alone,) = run(loaded, [Sequence((f"a{i}", 0), prompt, _NEW_TOKENS, GREEDY)]).values()
        same += alone.token_ids == together[f"b{i}", 0].token_ids
    assert same >= len(prompts) - 1
