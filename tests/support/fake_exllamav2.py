"""A scripted exllamav2: its names, signatures and result dicts without a GPU.

Written from the source of 0.3.2 (generator/dynamic.py, generator/sampler.py,
generator/filters/base.py): the order inside `iterate`, which keys a result has and when they
are absent, what is held back, in-place logits, keyword names. The "model" gives the token that
the script has next. `World` is what a test writes and reads.
"""

import random
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from tokenizers import Tokenizer

from tests.support.fake_exllamav2_sampler import Filter, Sampler, Settings

PAGE = 256
NAMES = ("exllamav2", "exllamav2.generator", "exllamav2.generator.filters",
         "worker.engines.exllamav2.attention.attach", "exllamav2.rope")  # fmt: skip


@dataclass
class World:
    """The script: what the model says, and what goes wrong."""

    texts: dict[str, list[int]] = field(default_factory=dict)
    """Job id → the tokens that come, then `after`, an end token."""
    after: int = 4
    logits: Callable[[Any], torch.Tensor] | None = None
    """Job → row of logits, instead of the script."""
    errors: dict[int, Exception] = field(default_factory=dict)
    """Number of the iteration, from 1 → what it raises."""
    poisons: dict[str, Exception] = field(default_factory=dict)
    """Job id → what every iteration raises in which it is active."""
    enqueue_errors: dict[str, Exception] = field(default_factory=dict)
    cancel_error: Exception | None = None
    """What the next `cancel` raises."""
    load_error: Exception | None = None
    attention: str = "sdpa"
    head_dim: int = 64
    alt_rope_method: str | None = None
    # seen
    num_iterations: int = 0
    generators: list["Generator"] = field(default_factory=list)
    jobs: list["Job"] = field(default_factory=list)
    configs: list["Config"] = field(default_factory=list)
    caches: list["Cache"] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)
    reserved: list[list[int]] = field(default_factory=list)
    folders: list[list[str]] = field(default_factory=list)
    attached: int = 0


_world = World()


class Config:
    def __init__(self) -> None:
        self.model_dir: str = ""
        self.max_batch_size = 1
        self.max_input_len = 2048
        self.max_output_len: int | None = None

    def prepare(self) -> None:
        import json

        folder = Path(self.model_dir)
        self.read = json.loads((folder / "config.json").read_text())
        _world.folders.append(sorted(p.name for p in folder.iterdir()))
        _world.configs.append(self)
        self.vocab_size = self.read["vocab_size"]
        self.max_seq_len = self.read["max_position_embeddings"]
        self.original_max_seq_len = self.read.get("original_max_position_embeddings", 0)
        self.alt_rope_method = _world.alt_rope_method
        self.scale_long_factor, self.scale_short_factor = [4.0], [1.0]
        self.head_dim, self.partial_rotary_factor = _world.head_dim, 1.0
        self.num_hidden_layers, self.num_attention_heads, self.num_key_value_heads = 2, 8, 2
        self.sliding_window, self.attn_logit_softcapping = 0, None

    def arch_compat_overrides(self) -> None:
        assert _world.attached, "attention is attached before the flags are read"


class Model:
    def __init__(self, config: Config) -> None:
        self.config = config
        self.is_loaded = False

    def load(self, callback: Any = None) -> None:
        if _world.load_error:
            raise _world.load_error
        _world.loads.append("one")
        for i in range(5):
            callback(i, 4)
        self.is_loaded = True

    def load_autosplit(
        self, cache: "Cache", reserve_vram: list[int] | None = None, last_id_only: bool = False,
        callback: Any = None,
    ) -> None:  # fmt: skip
        assert cache.lazy and last_id_only
        assert reserve_vram is not None
        _world.reserved.append(reserve_vram)
        _world.loads.append("split")
        callback(4, 4)
        self.is_loaded = True

    def unload(self) -> None:
        self.is_loaded = False


class Cache:
    def __init__(self, model: Model, max_seq_len: int = -1, lazy: bool = False) -> None:
        assert lazy or model.is_loaded
        self.model, self.max_seq_len, self.lazy, self.batch_size = model, max_seq_len, lazy, 1
        _world.caches.append(self)

    def all_tensors(self) -> list[torch.Tensor]:
        return [torch.empty(1)] * 4


class CacheQ4(Cache):
    pass


class FakeTokenizer:
    def __init__(self, config: Config, lazy_init: bool = True) -> None:
        self.hf = Tokenizer.from_file(str(Path(config.model_dir) / "tokenizer.json"))

    def get_vocab_size(self) -> int:
        return self.hf.get_vocab_size()

    id_to_piece: list[str] | None = None
    id_to_piece_with_special: list[str] | None = None

    def get_id_to_piece_list(self, include_special_tokens: bool = False) -> list[str]:
        if include_special_tokens and self.id_to_piece_with_special is not None:
            return self.id_to_piece_with_special
        if self.id_to_piece is None:
            self.id_to_piece = [self.hf.decode([i]) for i in range(self.get_vocab_size())]
        return self.id_to_piece


class Job:
    def __init__(
        self, input_ids: torch.Tensor, max_new_tokens: int, min_new_tokens: int = 0,
        gen_settings: Settings | None = None, seed: int | None = None,
        stop_conditions: list[int] | None = None, decode_special_tokens: bool = False,
        filters: list[Any] | None = None, identifier: Any = None,
    ) -> None:  # fmt: skip
        assert input_ids.shape[0] == 1 and input_ids.shape[1] > 0
        self.prompt: list[int] = input_ids[0].tolist()
        self.ids = list(self.prompt)
        self.max_new_tokens, self.min_new_tokens, self.new_tokens = (
            max_new_tokens, min_new_tokens, 0,
        )  # fmt: skip
        self.gen_settings, self.seed = gen_settings or Settings(), seed
        self.rng = random.Random(seed)
        assert all(isinstance(t, int) for t in stop_conditions or [])
        self.stop_tokens = set(stop_conditions or [])
        self.filters, self.identifier = filters or [], identifier
        self.kv_position = self.cached_pages = self.cached_tokens = 0
        self.held: list[int] = []
        self.held_text = ""
        self.generator: Any = None
        _world.jobs.append(self)

    @property
    def job_id(self) -> str:
        return str(self.identifier[0])

    def pages(self) -> tuple[set[tuple[int, ...]], int]:
        full = (len(self.prompt) - 1) // PAGE
        total = -(-(len(self.prompt) + self.max_new_tokens) // PAGE)
        return {tuple(self.prompt[: (i + 1) * PAGE]) for i in range(full)}, total - full

    @property
    def is_prefill_done(self) -> bool:
        return self.kv_position == len(self.ids) - 1

    def receive_logits(self, logits: torch.Tensor) -> tuple[Any, None, None, None, bool]:
        if self.new_tokens == 0:
            for f in self.filters:
                f.background_result = None
                f.begin("")
        blocked = list(self.stop_tokens) if self.new_tokens < self.min_new_tokens else []
        token = Sampler.sample(
            logits,
            self.gen_settings,
            self.ids,
            self.rng.random(),
            blocked,
            self.filters,
            self.generator.tokenizer.get_vocab_size(),
        )
        return torch.tensor([[token]]), None, None, None, False

    def receive_sample(self, drawn: torch.Tensor) -> dict[str, Any]:
        for f in self.filters:
            f.feed(drawn)
            if f not in self.generator.filter_queue:
                self.generator.filter_queue.append(f)
        token = int(drawn.item())
        self.new_tokens += 1
        self.ids.append(token)
        self.kv_position += 1
        self.held.append(token)
        result: dict[str, Any] = {
            "job": self, "stage": "streaming", "eos": False, "serial": 0,
            "identifier": self.identifier,
        }  # fmt: skip
        tokenizer = self.generator.tokenizer
        self.held_text += tokenizer.get_id_to_piece_list(False)[token]
        if token in self.stop_tokens:
            assert tokenizer.get_id_to_piece_list(True)[token] is not None
            return self.end(result, "stop_token")
        if self.new_tokens >= self.max_new_tokens - self.generator.num_draft_tokens:
            return self.end(self.emit(result), "max_new_tokens")
        if 1 <= self.held_text.count("�") < 5:
            decoded = tokenizer.hf.decode(self.held)
            if "�" in decoded:
                return result
            self.held_text = decoded
        return self.emit(result)

    def emit(self, result: dict[str, Any]) -> dict[str, Any]:
        if self.held_text:
            result["text"] = self.held_text
        result["token_ids"] = torch.tensor([self.held])
        self.held, self.held_text = [], ""
        return result

    def end(self, result: dict[str, Any], reason: str) -> dict[str, Any]:
        result |= {
            "eos": True, "eos_reason": reason, "new_tokens": self.new_tokens,
            "prompt_tokens": len(self.prompt), "cached_pages": self.cached_pages,
            "cached_tokens": self.cached_pages * PAGE + self.cached_tokens,
        }  # fmt: skip
        if self.held:
            result["held"] = {"token_ids": torch.tensor([self.held])}
            if self.held_text:
                result["held"]["text"] = self.held_text
        return result


class Generator:
    def __init__(
        self, model: Model, cache: Cache, tokenizer: FakeTokenizer, max_batch_size: int,
        max_chunk_size: int, max_q_size: int = 8, draft_model: Model | None = None,
        draft_cache: Cache | None = None, num_draft_tokens: int = 4,
        use_ngram_draft: bool = False, max_ngram: int = 4, paged: bool = True,
    ) -> None:  # fmt: skip
        config = model.config
        assert cache.max_seq_len % PAGE == 0 and max_chunk_size % PAGE == 0
        assert max_chunk_size <= config.max_input_len
        assert max_batch_size * max_q_size <= config.max_batch_size * config.max_input_len
        speculates = draft_model is not None or use_ngram_draft
        self.num_draft_tokens = num_draft_tokens if speculates else 0
        assert self.num_draft_tokens < max_q_size
        assert config.max_output_len is None or config.max_output_len > self.num_draft_tokens
        if draft_model is not None:
            assert draft_cache is not None and draft_cache.max_seq_len == cache.max_seq_len
            assert draft_model.config.max_seq_len >= config.max_seq_len
        self.model, self.tokenizer = model, tokenizer
        self.draft_model, self.use_ngram_draft, self.max_ngram = (
            draft_model, use_ngram_draft, max_ngram,
        )  # fmt: skip
        self.max_batch_size, self.max_chunk_size = max_batch_size, max_chunk_size
        self.num_pages = cache.max_seq_len // PAGE
        self.padded_vocab = -(-config.vocab_size // 32) * 32
        self.pending_jobs: list[Job] = []
        self.active_jobs: list[Job] = []
        self.filter_queue: list[Any] = []
        self.sampling_pool = ThreadPoolExecutor(2)
        self.filter_pool: ThreadPoolExecutor | None = ThreadPoolExecutor(2)
        self.num_warmups = 0
        self.known_pages: set[tuple[int, ...]] = set()
        self.chunks: list[tuple[str, int]] = []
        """(job id, prompt tokens) of every piece of prefill."""
        self.first_chunks: list[tuple[str, int]] = []
        _world.generators.append(self)

    def warmup(self) -> None:
        self.num_warmups += 1

    def num_remaining_jobs(self) -> int:
        return len(self.pending_jobs) + len(self.active_jobs)

    def reset_page_table(self) -> None:
        """Comes at the end of the first steps: what a test sees begins after them."""
        self.known_pages.clear()
        self.first_chunks, self.chunks = self.chunks, []
        _world.num_iterations = 0
        _world.jobs.clear()

    def used_pages(self) -> int:
        shared: set[tuple[int, ...]] = set()
        own = 0
        for job in self.active_jobs:
            pages, rest = job.pages()
            shared |= pages
            own += rest
        return len(shared) + own

    def enqueue(self, job: Job) -> int:
        if job.job_id in _world.enqueue_errors:
            raise _world.enqueue_errors[job.job_id]
        shared, own = job.pages()
        assert len(shared) + own <= self.num_pages, "Job requires too many pages"
        job.generator = self
        self.pending_jobs.append(job)
        return 0

    def cancel(self, job: Job) -> None:
        if _world.cancel_error is not None:
            error, _world.cancel_error = _world.cancel_error, None
            raise error
        if job in self.pending_jobs:
            self.pending_jobs.remove(job)
        elif job in self.active_jobs:
            self.active_jobs.remove(job)

    def iterate(self) -> list[dict[str, Any]]:
        _world.num_iterations += 1
        results: list[dict[str, Any]] = []
        self._start(results)
        for job in self.active_jobs:
            self._prefill(job, results)
        is_first = any(job.job_id == "first-steps" for job in self.active_jobs)
        if not is_first and (error := _world.errors.pop(_world.num_iterations, None)):
            raise error
        for job in self.active_jobs:
            if job.job_id in _world.poisons:
                raise _world.poisons[job.job_id]
        decoding = [job for job in self.active_jobs if job.is_prefill_done]
        if self.use_ngram_draft and any(len(job.ids) < self.max_ngram - 1 for job in decoding):
            raise IndexError("list index out of range")
        speculates = self.draft_model is not None or self.use_ngram_draft
        num_guesses = self.num_draft_tokens if speculates else 0
        for f in self.filter_queue if decoding else []:
            assert self.filter_pool is not None
            f.background_prepare_logit_mask(self.filter_pool)
        if decoding:
            self.filter_queue.clear()
        firsts = [
            self.sampling_pool.submit(job.receive_logits, self._logits(job)) for job in decoding
        ]
        done = []
        for job, first in zip(decoding, firsts, strict=True):
            for i in range(num_guesses + 1):
                drawn = (first.result() if i == 0 else job.receive_logits(self._logits(job)))[0]
                results.append(job.receive_sample(drawn))
                if results[-1]["eos"]:
                    done.append(job)
                    break
        for job in done:
            self.active_jobs.remove(job)
        return results

    def _start(self, results: list[dict[str, Any]]) -> None:
        for job in self.pending_jobs.copy():
            self.active_jobs.append(job)
            if len(self.active_jobs) > self.max_batch_size or self.used_pages() > self.num_pages:
                self.active_jobs.pop()
                continue
            self.pending_jobs.remove(job)
            results.append(
                {"job": job, "stage": "started", "eos": False, "identifier": job.identifier}
            )

    def _prefill(self, job: Job, results: list[dict[str, Any]]) -> None:
        last = len(job.prompt) - 1
        if job.is_prefill_done or job.new_tokens:
            return
        while tuple(job.prompt[: job.kv_position + PAGE]) in self.known_pages and (
            job.kv_position + PAGE <= last
        ):
            job.kv_position += PAGE
            job.cached_pages += 1
        end = min((job.kv_position + self.max_chunk_size) // PAGE * PAGE, last)
        if end <= job.kv_position:
            return
        self.chunks.append((job.job_id, end - job.kv_position))
        job.kv_position = end
        self.known_pages |= {tuple(job.prompt[:n]) for n in range(PAGE, end + 1, PAGE)}
        results.append(
            {
                "job": job,
                "stage": "prefill",
                "eos": False,
                "identifier": job.identifier,
                "curr_progress": end,
                "max_progress": last,
            }
        )

    def _logits(self, job: Job) -> torch.Tensor:
        if _world.logits is not None:
            row = _world.logits(job).clone()
        else:
            script = _world.texts.get(job.job_id, [])
            row = torch.zeros(self.padded_vocab)
            row[script[job.new_tokens] if job.new_tokens < len(script) else _world.after] = 30.0
        return row.view(1, 1, -1)


@contextmanager
def installed() -> Iterator[World]:
    """Put the package where an import finds it, with a fresh world."""
    global _world
    _world = World()
    library, generator, filters, attach, rope = (ModuleType(name) for name in NAMES)
    library.__version__ = "0.3.2-fake"  # type: ignore[attr-defined]
    parts = {
        "ExLlamaV2Config": Config, "ExLlamaV2": Model, "ExLlamaV2Cache": Cache,
        "ExLlamaV2Cache_Q8": CacheQ4, "ExLlamaV2Cache_Q6": CacheQ4, "ExLlamaV2Cache_Q4": CacheQ4,
        "ExLlamaV2Tokenizer": FakeTokenizer,
    }  # fmt: skip
    for name, part in parts.items():
        setattr(library, name, part)
    generator.ExLlamaV2DynamicGenerator = Generator  # type: ignore[attr-defined]
    generator.ExLlamaV2DynamicJob = Job  # type: ignore[attr-defined]
    generator.ExLlamaV2Sampler = Sampler  # type: ignore[attr-defined]
    filters.ExLlamaV2Filter = Filter  # type: ignore[attr-defined]

    def attach_attention(_choice: str) -> SimpleNamespace:
        _world.attached += 1
        return SimpleNamespace(name=_world.attention)

    attach.attach = attach_attention  # type: ignore[attr-defined]
    attach.new_attention = lambda name: name  # type: ignore[attr-defined]
    before = {name: sys.modules.get(name) for name in NAMES}
    sys.modules.update(zip(NAMES, (library, generator, filters, attach, rope), strict=True))
    try:
        yield _world
    finally:
        for made in _world.generators:
            made.sampling_pool.shutdown(wait=True)
            if made.filter_pool:
                made.filter_pool.shutdown(wait=True)
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
