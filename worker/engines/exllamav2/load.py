"""Loads a model with exllamav2: devices, weights, KV cache, draft model, generator.

Runs once, in the main thread of the process. Importing exllamav2 builds its extension if
necessary (minutes) and initialises CUDA, so no other module may import it.
"""

import gc
import importlib
import logging
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.errors import EngineError, SettingsError
from worker import cuda_devices
from worker.engines.base import EngineSettings
from worker.engines.exllamav2.failures import StepFailure, classify
from worker.engines.exllamav2.load_plan import Plan, make_plan
from worker.engines.exllamav2.model import yarn
from worker.engines.exllamav2.model.config import is_quantised, loadable_folder, rope_scaling
from worker.engines.exllamav2.model.folder import ModelFolder, read_folder
from worker.foreign import foreign_errors

_log = logging.getLogger(__name__)
_MIN_OUTPUT_ROWS = 16
_MAX_NGRAM = 4
MIN_NGRAM_CONTEXT = _MAX_NGRAM - 1
"""Tokens that n-gram speculation looks at: on a shorter sequence it raises IndexError
(exllamav2@v0.3.2:generator/dynamic.py, iterate_ngram_gen)."""
_MAIN_RESERVE_BYTES, _OTHER_RESERVE_BYTES = 192 << 20, 64 << 20
"""What `load_autosplit` leaves free by default on the first device, and on each other."""
_WORKING_BYTES = 1 << 30
ATTACH = "worker.engines.exllamav2.attention.attach"


@dataclass(slots=True)
class ModelOnDevice:
    """A model on its devices with its KV cache."""

    config: Any
    model: Any
    cache: Any
    tokenizer: Any


@dataclass(slots=True)
class Loaded:
    library: Any
    """The module exllamav2."""
    generators: Any
    """The module exllamav2.generator."""
    filters: Any
    """The module exllamav2.generator.filters."""
    plan: Plan
    main: ModelOnDevice
    draft: ModelOnDevice | None
    uses_ngrams: bool
    device: str
    attention: str
    """Name of the implementation in use."""

    @property
    def vocab_size(self) -> int:
        """Tokens that can be drawn and have an embedding."""
        return int(min(self.main.tokenizer.get_vocab_size(), self.main.config.vocab_size))

    @property
    def padded_vocab_size(self) -> int:
        return -(-int(self.main.config.vocab_size) // 32) * 32

    def new_generator(self, max_batch_size: int, max_chunk_tokens: int) -> Any:
        """Make a generator with an empty page table on the loaded model."""
        draft, num_draft_tokens = self.draft, self.plan.num_draft_tokens
        return self.generators.ExLlamaV2DynamicGenerator(
            model=self.main.model,
            cache=self.main.cache,
            tokenizer=self.main.tokenizer,
            max_batch_size=max_batch_size,
            max_chunk_size=max_chunk_tokens,
            # Rows of logits per sequence: one token and the drafts. The generator's own check of
            # num_draft_tokens against it is off by one.
            max_q_size=num_draft_tokens + 1,
            draft_model=draft.model if draft else None,
            draft_cache=draft.cache if draft else None,
            num_draft_tokens=num_draft_tokens,
            use_ngram_draft=self.uses_ngrams,
            max_ngram=_MAX_NGRAM,
            paged=True,
        )

    def device_bytes(self) -> dict[str, int]:
        """GPU → memory that torch has reserved there."""
        import torch

        # CUDA_VISIBLE_DEVICES hides the others: torch numbers the visible ones from 0.
        return {
            name: torch.cuda.memory_reserved(number)
            for number, name in enumerate(self.device.split(","))
        }

    def unload(self) -> None:
        """Free the weights. Some hundred MiB stay with the process until it ends."""
        for part in (self.main, self.draft):
            if part is not None:
                part.model.unload()
                part.cache = part.model = None
        gc.collect()


def load(settings: EngineSettings, folder: ModelFolder) -> Loaded:
    """Raises SettingsError for what the user can fix, EngineError for the rest."""
    plan = make_plan(settings, is_quantised=is_quantised(folder.config))
    cuda_devices.restrict(os.environ, plan.devices)
    library, generators, filters = _import()
    choice = os.environ.get("LLMIS_EXL2_ATTENTION", "auto")
    attention = importlib.import_module(ATTACH).attach(choice)
    speculation = settings.speculation
    draft_folder = None
    if speculation is not None and speculation.draft_path is not None:
        draft_folder = _draft_folder(folder, speculation.draft_path)
    num_parts = 2 if draft_folder else 1
    with foreign_errors(lambda exc: _explain(exc, folder.path)):
        on_progress = _progress(settings, 0, num_parts)
        reserved_bytes = _draft_bytes(library, draft_folder, plan) if draft_folder else 0
        main = _load_model(library, folder, plan, 0, on_progress, reserved_bytes)
        draft = None
        if draft_folder is not None:
            # The generator needs as many positions as of the main model.
            num_positions = main.config.max_seq_len
            on_progress = _progress(settings, 1, num_parts)
            draft = _load_model(library, draft_folder, plan, num_positions, on_progress)
    device = _device_name(plan)
    _log.info(
        "exllamav2 %s: %d tokens of KV cache, attention: %s",
        library.__version__,
        plan.cache_tokens,
        attention.name,
        extra={"device": device},
    )
    return Loaded(
        library=library,
        generators=generators,
        filters=filters,
        plan=plan,
        main=main,
        draft=draft,
        uses_ngrams=speculation is not None and draft is None,
        device=device,
        attention=attention.name,
    )


def _import() -> tuple[Any, Any, Any]:
    """The modules exllamav2, exllamav2.generator and exllamav2.generator.filters."""
    hint = "It needs torch with CUDA, and nvcc or a built extension (docs/operations.md)."
    with foreign_errors(lambda exc: EngineError(f"exllamav2 cannot be imported: {exc}. {hint}")):
        library = importlib.import_module("exllamav2")
        generators = importlib.import_module("exllamav2.generator")
        filters = importlib.import_module("exllamav2.generator.filters")
    return library, generators, filters


def _load_model(
    library: Any,
    folder: ModelFolder,
    plan: Plan,
    min_positions: int,
    on_progress: Callable[[int, int], None],
    reserved_bytes: int = 0,
) -> ModelOnDevice:
    """`reserved_bytes`: memory of the first of several devices to leave to another model."""
    import torch

    with ExitStack() as stack:
        config = library.ExLlamaV2Config()
        config.model_dir = str(stack.enter_context(loadable_folder(folder)))
        config.prepare()
        config.arch_compat_overrides()
        _set_positions(config, plan, min_positions)
        if config.alt_rope_method == "yarn":
            yarn.attach(config, rope_scaling(folder))
        config.max_input_len = plan.max_input_tokens
        # Logits are needed for the last positions only; without a limit they are computed for all.
        config.max_output_len = max(_MIN_OUTPUT_ROWS, plan.num_draft_tokens + 1)
        _check_cache(config, plan)
        model = library.ExLlamaV2(config)
        cache_class = getattr(library, plan.cache_class)
        num_devices = torch.cuda.device_count()
        if num_devices > 1:
            # Fills one device after the other with layers and their part of the cache.
            cache = cache_class(model, max_seq_len=plan.cache_tokens, lazy=True)
            reserved = [_MAIN_RESERVE_BYTES + reserved_bytes]
            reserved += [_OTHER_RESERVE_BYTES] * (num_devices - 1)
            model.load_autosplit(
                cache, reserve_vram=reserved, last_id_only=True, callback=on_progress
            )
        else:
            model.load(callback=on_progress)
            cache = cache_class(model, max_seq_len=plan.cache_tokens)
        tokenizer = library.ExLlamaV2Tokenizer(config, lazy_init=True)
        never_decode(tokenizer, config.vocab_size)
    return ModelOnDevice(config, model, cache, tokenizer)


def never_decode(tokenizer: Any, vocab_size: int) -> None:
    """Give every token an empty text: `SequenceCompletion` makes the text. With texts
    the generator would hold tokens back while their bytes are not UTF-8
    (exllamav2@v0.3.2:generator/dynamic.py, receive_sample), and decode the vocabulary twice, which
    takes seconds."""
    size = max(-(-int(vocab_size) // 32) * 32, int(tokenizer.get_vocab_size()))
    tokenizer.id_to_piece = tokenizer.id_to_piece_with_special = [""] * size


def _set_positions(config: Any, plan: Plan, min_positions: int) -> None:
    """Set the number of prepared positions, and their scaling.

    With longrope ("su") ExLlamaV2 takes `max_seq_len` for the trained length and scales by it,
    and not at all if it is short. transformers and vLLM scale by the config's length for every
    context, so that length is kept and the factors are chosen here.
    Source: exllamav2@v0.3.2:exllamav2/rope.py, get_rope_params_su.
    """
    if config.alt_rope_method == "su":
        if plan.rope_tokens <= config.original_max_seq_len:
            config.scale_long_factor = config.scale_short_factor
        config.max_seq_len = max(config.max_seq_len, plan.rope_tokens, min_positions)
    else:
        config.max_seq_len = max(plan.rope_tokens, min_positions)


def _check_cache(config: Any, plan: Plan) -> None:
    if plan.cache_class != "ExLlamaV2Cache" and config.head_dim % 32:
        raise SettingsError(
            f"quant: heads of {config.head_dim} values cannot be quantised; only multiples of 32 "
            "can. Use f16."
        )


def _draft_bytes(library: Any, folder: ModelFolder, plan: Plan) -> int:
    """Upper estimate of a draft model's memory on the first of several devices: its files, its
    cache in 16 bits, and working memory."""
    import torch

    if torch.cuda.device_count() < 2:
        return 0
    config = library.ExLlamaV2Config()
    with loadable_folder(folder) as view:
        config.model_dir = str(view)
        config.prepare()
        weights_bytes = sum(file.stat().st_size for file in view.glob("*.safetensors"))
    token_bytes = 4 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    return weights_bytes + int(plan.cache_tokens * token_bytes) + _WORKING_BYTES


def _draft_folder(folder: ModelFolder, path: Path) -> ModelFolder:
    """Raises SettingsError if the two vocabularies differ."""
    draft = read_folder(path)
    if draft.tokenizer.get("model") != folder.tokenizer.get("model"):
        raise SettingsError(f"draft: {path.name} has not the vocabulary of {folder.path.name}")
    return draft


def _progress(settings: EngineSettings, part: int, num_parts: int) -> Callable[[int, int], None]:
    return lambda done, total: settings.on_progress((part + done / max(1, total)) / num_parts)


def _explain(exc: Exception, path: Path) -> Exception:
    if isinstance(exc, SettingsError):
        return exc
    if classify(exc) is StepFailure.OUT_OF_MEMORY:
        return EngineError(f"There is too little GPU memory for {path.name}: {exc}")
    if isinstance(exc, RuntimeError):
        return EngineError(f"exllamav2 could not load {path.name}: {exc}")
    return SettingsError(f"models: exllamav2 cannot load {path}: {type(exc).__name__}: {exc}")


def _device_name(plan: Plan) -> str:
    import torch

    numbers = plan.devices or range(max(1, torch.cuda.device_count()))
    return ",".join(f"cuda:{number}" for number in numbers)
