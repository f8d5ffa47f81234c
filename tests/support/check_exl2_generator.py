"""The real generator of exllamav2 under our adapter, without a GPU.

    pip download --no-deps exllamav2==0.3.2 -d D && unzip D/exllamav2-*.whl -d D
    python -m tests.check_exl2_generator D

Real are generator/dynamic.py, generator/sampler.py, the tokenizer, pages, jobs, filters. Not
real are the model (it counts a … j in a circle), attention, and the compiled extension, whose
few CPU functions the stub below does in torch. What passes here holds for the scripted
`tests.support.fake_exllamav2`; a difference is a mistake in the fake. Needs torch, tokenizers and
llguidance; pillow, rich and safetensors are stubbed where they are not.
"""

import importlib
import importlib.util
import os
import random
import re
import sys
import tempfile
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import torch

from shared.wire.events import FinishReason
from shared.wire.job import Grammar, GrammarKind, Sampling
from tests.support import exl2_folder
from tests.support.exl2_engine import make_engine, run_all
from tests.support.exl2_folder import END, VOCAB, ids
from tests.support.loop_sink import make_run
from worker.engines.base import EngineSettings
from worker.engines.exllamav2 import load
from worker.engines.exllamav2.load_plan import make_plan
from worker.sequence import Sequence, Speculation

CIRCLE = ids("abcdefghij")
GREEDY = Sampling(temperature=0.0)


_SUBMODULES = {
    "PIL": ("PIL.Image",),
    "rich": ("rich.prompt", "rich.progress"),
    "safetensors": ("safetensors.torch",),
}
"""What exllamav2 imports and the generator does not use."""


class _Extension(ModuleType):
    """What the generator calls of exllamav2_ext on the CPU; anything else says its name."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*_: Any) -> None:
            raise NotImplementedError(name)

        return missing

    def count_match(self, a: torch.Tensor, b: torch.Tensor, limit: int) -> int:
        limit = min(int(limit), b.shape[-1])
        differ = (a[0, :limit] != b[0, :limit]).nonzero()
        return int(differ[0]) if len(differ) else limit

    def apply_rep_penalty(
        self, ids: torch.Tensor, repetition: float, sustain: int, __: int, frequency: float,
        presence: float, logits: torch.Tensor,
    ) -> None:  # fmt: skip
        seen = ids[0].tolist()
        seen = seen[len(seen) - (len(seen) if sustain == -1 else sustain) :]
        for token in set(seen):
            logits[0, 0, token] *= 1 / repetition if logits[0, 0, token] > 0 else repetition
            logits[0, 0, token] -= presence + frequency * seen.count(token)

    def fast_fadd_cpu(self, a: torch.Tensor, b: torch.Tensor) -> None:
        assert a.numel() % b.numel() == 0
        a += b

    def sample_basic(self, logits: torch.Tensor, *settings: Any) -> list[float]:
        temperature, top_k, point, out_tokens = (settings[i] for i in (0, 1, 7, 8))
        row = logits[0, 0]
        if temperature < 0.01 or top_k == 1:
            out_tokens[0, 0] = int(row.argmax())
        else:
            edges = torch.softmax(row / temperature, -1).cumsum(0)
            out_tokens[0, 0] = int((edges < point * 0.9998).sum())
        return []


class _Model:
    """Counts in a circle; `detours` replace single steps of it."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self.detours: dict[int, int] = {}
        self.error: Exception | None = None

    def forward_chunk(
        self, input_ids: torch.Tensor, preprocess_only: bool = False, **_: Any
    ) -> dict[str, torch.Tensor] | None:
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        if preprocess_only:
            return None
        logits = torch.full((*input_ids.shape, VOCAB), -20.0)
        for row, tokens in zip(logits, input_ids.tolist(), strict=True):
            for position, token in zip(row, tokens, strict=True):
                position[self._after(token)] = 10.0
        return {"logits": logits}

    def _after(self, token: int) -> int:
        following = dict(zip(CIRCLE, CIRCLE[1:] + CIRCLE[:1], strict=True)) | self.detours
        return following.get(token, CIRCLE[0])

    def unload(self) -> None:
        pass


class _Cache:
    batch_size, current_seq_len = 1, 0

    def __init__(self, num_tokens: int) -> None:
        self.max_seq_len = num_tokens

    def all_tensors(self) -> list[torch.Tensor]:
        return []

    def copy_states(self, *_: Any) -> None:
        pass


def _load(settings: EngineSettings, folder: Any) -> load.Loaded:
    plan = make_plan(settings, is_quantised=False)
    library = importlib.import_module("exllamav2")
    arch = SimpleNamespace(lm=SimpleNamespace(mrope=False))
    config = SimpleNamespace(
        vocab_size=VOCAB, max_input_len=plan.max_input_tokens, max_batch_size=1,
        max_seq_len=plan.rope_tokens, no_flash_attn=False, arch=arch,
        model_dir=str(folder.path), eos_token_id=2, bos_token_id=1, pad_token_id=None,
    )  # fmt: skip
    tokenizer = library.ExLlamaV2Tokenizer(config, lazy_init=True)
    load.never_decode(tokenizer, VOCAB)
    made = [
        load.ModelOnDevice(config, _Model(config), _Cache(plan.cache_tokens), tokenizer)
        for _ in range(2)
    ]
    speculation = settings.speculation
    has_draft = speculation is not None and speculation.draft_path is not None
    return load.Loaded(
        library,
        importlib.import_module("exllamav2.generator"),
        importlib.import_module("exllamav2.generator.filters"),
        plan,
        made[0],
        made[1] if has_draft else None,
        speculation is not None and not has_draft,
        "cpu",
        "sdpa",
    )


def _check_texts(engine: Any) -> None:
    model = engine._loaded.main.model
    for n in (1, 2, 5, 17, 40):
        sink = run_all(engine, make_run("j", prompt=ids("a"), max_tokens=n, sampling=GREEDY))
        assert sink.text("j") == ("bcdefghija" * 4)[:n]
        assert sink.finish_reason("j") is FinishReason.LENGTH
    options: dict[str, Any] = {"prompt": ids("a"), "max_tokens": 60, "sampling": GREEDY}
    sink = run_all(engine, make_run("j", stop=["hij"], **options))
    assert sink.text("j") == "bcdefg"
    assert not engine._generator.active_jobs
    smile = ids("🙂")
    model.detours = dict(zip([CIRCLE[5], *smile], [*smile, END], strict=True))
    sink = run_all(engine, make_run("j", logprobs=2, **options))
    assert sink.text("j") == "bcdef🙂"
    for step in sink.steps("j"):
        assert step.token_ids == [entry.chosen.token_id for entry in step.logprobs]
    assert run_all(engine, make_run("j", **options | {"max_tokens": 7})).text("j") == "bcdef�"
    model.detours = {CIRCLE[5]: smile[1], smile[1]: CIRCLE[6]}
    sink = run_all(engine, make_run("j", **options))
    assert len(sink.steps("j")) >= 12, "a byte that is no character holds nothing back"
    sink = run_all(engine, make_run("j", stop=["hij"], **options))
    assert sink.text("j") == "bcdef�g"
    model.detours = dict(zip([CIRCLE[5], *smile], [*smile, END], strict=True))
    model.detours[smile[1]] = END
    sink = run_all(engine, make_run("j", **options))
    assert (sink.text("j"), len(sink.tokens("j"))) == ("bcdef�", 8), "held text is not lost"
    assert len(run_all(engine, make_run("j", ignore_eos=True, **options)).tokens("j")) == 60
    sink = run_all(engine, make_run("j", min_tokens=10, **options))
    assert END not in sink.tokens("j")[:10]
    model.detours = {}


def _check_sampling(engine: Any) -> None:
    penal = Sampling(temperature=0.0, presence_penalty=40.0)
    sink = run_all(engine, make_run("j", prompt=ids("bbbba"), max_tokens=3, sampling=penal))
    assert sink.text("j") == "bcd", "the prompt is not penalised"
    penal = Sampling(temperature=0.0, repetition_penalty=40.0)
    sink = run_all(engine, make_run("j", prompt=ids("bbbba"), max_tokens=11, sampling=penal))
    assert sink.text("j") == "bcdefghijab", "unlikely words stay so, the prompt is not penalised"
    bias = Sampling(temperature=0.0, logit_bias={ids("z")[0]: 50.0})
    sink = run_all(engine, make_run("j", prompt=ids("a"), max_tokens=5, sampling=bias))
    assert sink.text("j") == "zzzzz"
    grammar = Grammar(GrammarKind.REGEX, r"[x-z]{3,9}-[0-9]{2}")
    bound = [make_run(f"c{i}", grammar=grammar, max_tokens=60) for i in range(8)]
    free = [make_run(f"f{i}", max_tokens=40) for i in range(4)]
    sink = run_all(engine, *bound, *free)
    for i in range(8):
        assert re.fullmatch(grammar.source, sink.text(f"c{i}")), sink.text(f"c{i}")


def _check_cache_and_failure(engine: Any) -> None:
    prompt = ids("q" * 1000)
    assert run_all(engine, make_run("a", prompt=prompt)).end("a").usage.cached_tokens == 0
    assert run_all(engine, make_run("b", prompt=prompt)).end("b").usage.cached_tokens >= 768
    engine._loaded.main.model.error = IndexError("boom")
    assert "boom" in run_all(engine, make_run("x", max_tokens=50)).error("x").message
    sink = run_all(engine, make_run("y", prompt=ids("a"), sampling=GREEDY))
    assert sink.text("y") == "bcdef"


def _check_pages(engine: Any) -> None:
    """At random: what the ledger lets in starts at once, and it never counts too few pages."""
    chance = random.Random(3)
    prompts = [ids("mnop" * n)[:n] for n in (1, 255, 256, 257, 300, 513, 700, 900)]
    ledger, num_jobs = engine._ledger, 0
    for _ in range(500):
        max_tokens = chance.choice([1, 3, 50, 200, 400])
        sequence = Sequence(
            (f"r{num_jobs}", 0), chance.choice(prompts), max_tokens, GREEDY, ignore_eos=True
        )
        if chance.random() < 0.5 and engine.can_admit(sequence):
            engine.submit(sequence)
            num_jobs += 1
        if chance.random() < 0.03 and engine.has_work:
            engine.cancel(chance.choice(list(engine._running)))
        if engine.has_work:
            engine.step()
            generator = engine._generator
            used = generator.max_pages - len(generator.unreferenced_pages)
            assert not generator.pending_jobs
            assert used <= ledger.num_pages - ledger.free_pages
    while engine.has_work:
        engine.step()
    assert ledger.free_pages == ledger.num_pages
    assert len(engine._generator.unreferenced_pages) == ledger.num_pages


def main(folder: str) -> None:
    stubs: dict[str, Any] = {"exllamav2_ext": _Extension("exllamav2_ext")}
    for package in ("PIL", "rich", "safetensors"):
        if importlib.util.find_spec(package) is None:
            stubs |= {name: mock.MagicMock() for name in (package, *_SUBMODULES[package])}
    sys.path.insert(0, folder)
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "9.0")
    with (
        mock.patch.dict(sys.modules, stubs),
        mock.patch.object(load, "load", _load),
        tempfile.TemporaryDirectory() as made,
    ):
        # What `attach` does: the generator asks for this flag alone.
        importlib.import_module("exllamav2.attn").has_flash_attn_with_paged = True  # type: ignore[attr-defined]
        model = exl2_folder.write(Path(made))
        for speculation in (None, Speculation(num_tokens=3), Speculation(model, 4)):
            engine = make_engine(model, speculation=speculation)
            for check in (_check_texts, _check_sampling, _check_cache_and_failure):
                check(engine)
            engine.close()
            _check_pages(make_engine(model, speculation=speculation, cache_tokens=4096, slots=8))
            print(f"fine with {speculation or 'no speculation'}")


if __name__ == "__main__":
    main(sys.argv[1])
