"""ExLlamaV2: what is loaded where, and how large."""

import logging
import math
import os
import sys
from pathlib import Path

import pytest
import torch

from shared.errors import EngineError, SettingsError
from tests.support import exl2_folder
from tests.support.exl2_engine import make_engine, run_all
from tests.support.exl2_folder import ids
from tests.support.fake_exllamav2 import CacheQ4, Generator, World
from tests.support.loop_sink import make_run
from worker.engines.base import EngineSettings
from worker.engines.exllamav2 import warm_up as warm_up_module
from worker.engines.exllamav2.load_plan import make_plan
from worker.replica.process import warm_up
from worker.sequence import Speculation


def _settings(path: Path = Path("m"), **options: object) -> EngineSettings:
    values = {"path": path, "context_length": 4096, "slots": 4, "threads": 1} | options
    return EngineSettings(**values)  # type: ignore[arg-type]


def test_the_engine_says_what_it_is(exl2: World, tmp_path: Path) -> None:
    done: list[float] = []
    engine = make_engine(tmp_path, on_progress=done.append)
    assert engine.name == "exllamav2"
    assert engine.device == "cuda:0"
    assert engine.context_length == 2048
    assert engine.chat_template == "T"
    words = engine.vocabulary
    assert words.adds_bos and words.bos_text == "<s>" and words.eos_text == "</s>"
    assert engine.free_slots == 4
    assert done == sorted(done) and done[-1] == 1.0
    assert exl2.attached == 1
    assert exl2.generators[0].num_warmups == 1
    assert exl2.caches[0].max_seq_len == 4 * 2048
    assert exl2.configs[0].max_output_len == 16


def test_the_warm_up_of_a_replica_runs(exl2: World, tmp_path: Path) -> None:
    engine = make_engine(tmp_path)
    warm_up(engine)
    assert engine.free_slots == 4


def test_a_model_whose_logits_are_nan_is_refused(exl2: World, tmp_path: Path) -> None:
    exl2.logits = lambda job: torch.full((64,), math.nan)
    with pytest.raises(EngineError, match="failed to run it: The model computed no valid numbers"):
        make_engine(tmp_path)
    assert exl2.generators[0].num_warmups == 0, "it would draw from them"


def test_nor_does_one_pass_that_only_the_warm_up_of_the_replica_meets(
    exl2: World, tmp_path: Path
) -> None:
    engine = make_engine(tmp_path)
    exl2.logits = lambda job: torch.full((64,), math.nan)
    with pytest.raises(EngineError, match="NaN"):
        warm_up(engine)


@pytest.mark.parametrize(("quant", "is_quantised"), [("f16", 0), ("fp16", 0), ("q8", 1), ("q4", 1)])
def test_the_precision_of_the_cache(
    exl2: World, tmp_path: Path, quant: str, is_quantised: int
) -> None:
    make_engine(tmp_path, quant=quant)
    assert isinstance(exl2.caches[0], CacheQ4) == bool(is_quantised)


def test_heads_that_cannot_be_quantised(exl2: World, tmp_path: Path) -> None:
    exl2.head_dim = 80
    with pytest.raises(SettingsError, match="multiples of 32"):
        make_engine(tmp_path, quant="q4")


def test_several_devices_share_the_layers(
    exl2: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    engine = make_engine(tmp_path)
    assert exl2.loads == ["split"]
    assert exl2.caches[0].lazy
    assert engine.device == "cuda:0,cuda:1"


def test_a_chosen_device_is_the_only_one_that_is_seen(exl2: World, tmp_path: Path) -> None:
    engine = make_engine(tmp_path, device="cuda:3")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"
    assert os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID", "as the agent counts"
    assert engine.device == "cuda:3"
    assert exl2.loads == ["one"]


def test_what_the_plan_comes_to() -> None:
    plan = make_plan(_settings(context_length=1000, slots=3), is_quantised=False)
    assert (plan.context_length, plan.rope_tokens) == (1000, 1000)
    assert plan.cache_tokens == 3 * 1024
    assert plan.max_input_tokens == 768
    plan = make_plan(_settings(context_length=64, slots=16), is_quantised=False)
    assert (plan.rope_tokens, plan.max_input_tokens, plan.cache_tokens) == (256, 256, 4096)
    assert make_plan(_settings(slots=64, cache_tokens=9000), is_quantised=False).num_pages == 36


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"quant": "q5"}, "q5"),
        ({"slots": 300, "context_length": 256}, "at most 256"),
        ({"slots": 256, "speculation": Speculation(num_tokens=8)}, "at most 227"),
        ({"speculation": Speculation(num_tokens=0)}, "1 to 15"),
        ({"cache_tokens": 1024}, "needs 4096"),
        ({"context_length": 4, "speculation": Speculation(num_tokens=4)}, "at least 6"),
        ({"context_length": 1}, "at least 2"),
    ],
)
def test_what_cannot_be_is_said(options: dict[str, object], reason: str) -> None:
    with pytest.raises(SettingsError, match=reason):
        make_plan(_settings(**options), is_quantised=False)


def test_the_cliff_of_quantised_weights_is_mentioned(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        make_plan(_settings(slots=32), is_quantised=True)
        make_plan(_settings(slots=64), is_quantised=False)
        assert not caplog.text
        make_plan(_settings(slots=33), is_quantised=True)
    assert "more than 32 rows" in caplog.text


def test_longrope_keeps_the_length_that_it_was_trained_for(exl2: World, tmp_path: Path) -> None:
    """ExLlamaV2 scales by `max_seq_len`, which is the context everywhere else."""
    exl2.alt_rope_method = "su"
    exl2_folder.write(
        tmp_path, max_position_embeddings=131072, original_max_position_embeddings=4096
    )
    make_engine(tmp_path, context_length=8192)
    assert exl2.configs[0].max_seq_len == 131072
    assert exl2.configs[0].scale_long_factor == [4.0]
    make_engine(tmp_path, context_length=4096)
    assert exl2.configs[1].scale_long_factor == [1.0], "short texts have factors of their own"


def test_a_draft_model(exl2: World, tmp_path: Path) -> None:
    exl2.texts["j"] = ids("abcdefgh")
    draft = exl2_folder.write(tmp_path / "draft")
    done: list[float] = []
    engine = make_engine(
        tmp_path / "main", speculation=Speculation(draft, 3), on_progress=done.append
    )
    assert len(exl2.caches) == 2
    assert exl2.caches[0].max_seq_len == exl2.caches[1].max_seq_len
    assert exl2.generators[0].num_draft_tokens == 3
    assert done == sorted(done) and done[-1] == 1.0
    assert run_all(engine, make_run("j", max_tokens=8)).text("j") == "abcdefgh"


def test_a_draft_model_has_as_many_positions_as_the_main_one(exl2: World, tmp_path: Path) -> None:
    draft = exl2_folder.write(tmp_path / "draft")
    exl2_folder.write(tmp_path / "main", max_position_embeddings=131072)
    exl2.alt_rope_method = "su"
    make_engine(tmp_path / "main", context_length=8192, speculation=Speculation(draft, 3))
    assert [config.max_seq_len for config in exl2.configs] == [131072, 131072]


def test_several_devices_leave_room_for_the_draft_model_on_the_first(
    exl2: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    draft = exl2_folder.write(tmp_path / "draft")
    (draft / "model.safetensors").write_bytes(b"x" * 1000)
    make_engine(tmp_path / "main", speculation=Speculation(draft, 3))
    cache_bytes = 4 * 2048 * (2 * 2 * 64 * 4)
    main, other = exl2.reserved
    assert main == [(192 << 20) + 1000 + cache_bytes + (1 << 30), 64 << 20, 64 << 20]
    assert other == [192 << 20, 64 << 20, 64 << 20], "the draft model takes that room"


def test_a_model_that_loads_and_does_not_run(
    exl2: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Generator) -> None:
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(Generator, "warmup", fail)
    with pytest.raises(EngineError, match="no kernel image"):
        make_engine(tmp_path)


def test_a_draft_model_with_another_vocabulary(exl2: World, tmp_path: Path) -> None:
    draft = exl2_folder.write(tmp_path / "draft")
    text = (draft / "tokenizer.json").read_text().replace('"Hello"', '"Howdy"')
    (draft / "tokenizer.json").write_text(text)
    with pytest.raises(SettingsError, match="not the vocabulary of"):
        make_engine(tmp_path / "main", speculation=Speculation(draft, 3))


@pytest.mark.parametrize(
    ("error", "expected", "reason"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), EngineError, "too little GPU memory"),
        (RuntimeError("Insufficient VRAM"), EngineError, "Insufficient VRAM"),
        (ValueError(" ## Could not find lm_head.* in model"), SettingsError, "lm_head"),
    ],
)
def test_a_load_that_fails_says_why(
    exl2: World, tmp_path: Path, error: Exception, expected: type[Exception], reason: str
) -> None:
    exl2.load_error = error
    with pytest.raises(expected, match=reason):
        make_engine(tmp_path)


def test_without_exllamav2_the_engine_says_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "exllamav2", None)
    with pytest.raises(EngineError, match="needs torch with CUDA"):
        make_engine(tmp_path)


def test_the_largest_piece_of_a_prompt_is_read_before_the_first_request(
    exl2: World, tmp_path: Path
) -> None:
    make_engine(tmp_path, context_length=8192)
    assert exl2.generators[0].first_chunks == [("first-steps", 2048)]
    assert not exl2.generators[0].known_pages, "no request finds it in the cache"
    make_engine(tmp_path, context_length=1024, speculation=Speculation(num_tokens=3))
    assert exl2.generators[1].first_chunks == [("first-steps", 1019)]
    make_engine(tmp_path, context_length=3)
    assert exl2.generators[2].first_chunks == []


def test_memory_that_does_not_do_for_a_prompt_is_said_at_load(exl2: World, tmp_path: Path) -> None:
    exl2.poisons["first-steps"] = torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(EngineError, match="Lower cache_tokens, slots or context_length"):
        make_engine(tmp_path)


@pytest.mark.parametrize("error", [NotImplementedError("odd"), ZeroDivisionError("odd")])
def test_whatever_is_raised_at_load_is_an_error_with_a_reason(
    exl2: World, tmp_path: Path, error: Exception
) -> None:
    exl2.poisons["first-steps"] = error
    with pytest.raises(EngineError, match="failed to run it: odd"):
        make_engine(tmp_path)
    exl2.poisons.clear()
    exl2.load_error = error
    with pytest.raises((EngineError, SettingsError), match="odd"):
        make_engine(tmp_path)


def test_the_attention_is_compiled_for_every_kind_of_layer(
    exl2: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[object, ...]] = []

    def warm_up(*shape: object, **options: object) -> int:
        calls.append((*shape, options))
        return 1

    monkeypatch.setattr(warm_up_module, "warm_up", warm_up)
    make_engine(tmp_path)
    assert not calls, "torch's needs none"
    exl2.attention = "triton"
    make_engine(tmp_path, speculation=Speculation(tmp_path, 3))
    options = {"windows": {-1}, "softcap": 0.0, "page_size": 256, "device": torch.device("cpu")}
    assert calls == [("triton", 8, 2, 64, options)] * 2


def test_yarn_scales_as_the_model_was_trained_whatever_the_context(
    exl2: World, tmp_path: Path
) -> None:
    exl2.alt_rope_method = "yarn"
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}
    exl2_folder.write(tmp_path, rope_scaling=scaling)
    found = []
    for context_length in (1024, 4096):
        make_engine(tmp_path, context_length=context_length)
        rope = sys.modules["exllamav2.rope"]
        found.append(rope.get_rope_params_yarn(torch.device("cpu"), exl2.configs[-1], 5e5))
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1] == pytest.approx(0.1 * math.log(4) + 1)
