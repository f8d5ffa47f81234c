"""What a model takes: the formulas, what they refuse, and one comparison with a real engine."""

import json
import math
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import structs

from bench.estimates import Configuration, measure
from shared.errors import InvalidModel
from shared.model_spec import ModelSpec
from shared.settings.fields import Settings
from tests.support import counter_model
from worker.agent.estimate import llamacpp
from worker.agent.estimate.estimate import (
    Estimate,
    FittingSizes,
    advice,
    estimate,
    estimate_of,
    what_fits,
)
from worker.agent.model_files.errors import ModelFileError

_MIB = 1 << 20
_TYPES = gguf.GGMLQuantizationType
_CELL_BYTES = 48


def _write_gguf(
    path: Path,
    architecture: str = "llama",
    *,
    tensors: dict[str, tuple[int, ...]] | None = None,
    type_: gguf.GGMLQuantizationType = _TYPES.F16,
    tokens: int = 100,
    **keys: Any,
) -> Path:
    """A GGUF file with these keys below the architecture's name; None leaves a key out."""
    shape = {"block_count": 4, "embedding_length": 256, "feed_forward_length": 512,
             "attention.head_count": 8, "attention.head_count_kv": 2,
             "context_length": 8192}  # fmt: skip
    writer = gguf.GGUFWriter(path, architecture)
    for name, value in {**shape, **{k.replace("__", "."): v for k, v in keys.items()}}.items():
        if isinstance(value, list):
            writer.add_array(f"{architecture}.{name}", value)
        elif value is not None:
            writer.add_uint32(f"{architecture}.{name}", value)
    if tokens:
        writer.add_array("tokenizer.ggml.tokens", [f"t{i}" for i in range(tokens)])
    for name, size in (tensors or {"token_embd.weight": (tokens or 1, 256)}).items():
        values = gguf.quantize(np.zeros(size, np.float32), type_)
        writer.add_tensor(name, values, raw_dtype=type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _spec(engine: str, context_length: int, slots: int, quant: str, **more: Any) -> ModelSpec:
    return ModelSpec(
        name="m",
        path="m",
        engine=engine,
        task="generate",
        context_length=context_length,
        slots=slots,
        quant=quant,
        **more,
    )


def _llamacpp(
    path: Path, context_length: int = 1024, slots: int = 1, quant: str = "f16"
) -> Estimate:
    return estimate(path, _spec("llamacpp", context_length, slots, quant))


@pytest.fixture(scope="module")
def counter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "counter.gguf"
    counter_model.write(path)
    return path


# -- llama.cpp ---------------------------------------------------------------------------------


def test_the_total_is_the_sum() -> None:
    assert Estimate(1, 20, 300, 4000).total_bytes == 4321


def test_the_kv_cache_of_grouped_heads(tmp_path: Path) -> None:
    path = _write_gguf(tmp_path / "m.gguf")
    row = 4 * 2 * (2 * 32)  # layers, K and V, KV heads of 32 values
    for quant, bits in {"f16": 16, "q8_0": 8.5, "q4_0": 4.5}.items():
        expected = 3 * 1024 * (row * bits / 8 + _CELL_BYTES)
        assert _llamacpp(path, 1024, 3, quant).kv_cache_bytes == expected


def test_cells_are_rounded_up_to_256_for_each_slot(tmp_path: Path) -> None:
    path = _write_gguf(tmp_path / "m.gguf")
    assert _llamacpp(path, 1000, 3) == _llamacpp(path, 1024, 3)
    assert _llamacpp(path, 1025).kv_cache_bytes == _llamacpp(path, 1280).kv_cache_bytes


def test_heads_of_their_own_size_by_layer(tmp_path: Path) -> None:
    keys = {"attention__head_count_kv": [1, 2, 0, 4], "attention__key_length": 64}
    path = _write_gguf(tmp_path / "m.gguf", attention__value_length=96, **keys)
    row = 7 * (64 + 96) * 2 + _CELL_BYTES
    assert _llamacpp(path, 256).kv_cache_bytes == 256 * row


def test_a_sliding_window_saves_nothing_and_has_a_mask_of_its_own(tmp_path: Path) -> None:
    without = _llamacpp(_write_gguf(tmp_path / "a.gguf"))
    with_window = _llamacpp(_write_gguf(tmp_path / "b.gguf", attention__sliding_window=512))
    assert with_window.kv_cache_bytes == without.kv_cache_bytes + 1024 * _CELL_BYTES
    assert with_window.scratch_bytes == without.scratch_bytes + 1024 * 512 * 2


def test_a_recurrent_model_keeps_a_state_and_no_cache(tmp_path: Path) -> None:
    keys = {"attention__head_count": 0, "attention__head_count_kv": 0, "ssm__conv_kernel": 4}
    keys |= {"ssm__inner_size": 512, "ssm__state_size": 16, "ssm__time_step_rank": 16}
    path = _write_gguf(tmp_path / "m.gguf", "mamba", **keys)
    state_bytes = 4 * (3 * 512 + 16 * 512) * 4
    assert _llamacpp(path, 256, 5).kv_cache_bytes == 5 * state_bytes
    assert _llamacpp(path, 8192, 5).kv_cache_bytes == 5 * state_bytes


def test_rwkv_and_hybrid_states(tmp_path: Path) -> None:
    keys = {"attention__head_count": 0, "attention__head_count_kv": 0, "wkv__head_size": 64}
    rwkv = _llamacpp(_write_gguf(tmp_path / "r.gguf", "rwkv7", **keys))
    assert rwkv.kv_cache_bytes == 4 * (2 * 256 + 256 * 64) * 4
    keys = {"full_attention_interval": 4, "ssm__inner_size": 512, "ssm__state_size": 16}
    hybrid = _llamacpp(_write_gguf(tmp_path / "h.gguf", "qwen3next", **keys), 256)
    assert hybrid.kv_cache_bytes == 256 * (2 * 64 * 2 + _CELL_BYTES) + 3 * 16 * 512 * 4


def test_experts_that_work_together_need_room(tmp_path: Path) -> None:
    dense = _llamacpp(_write_gguf(tmp_path / "a.gguf"))
    mixture = _write_gguf(tmp_path / "b.gguf", expert_count=8, expert_used_count=4)
    assert _llamacpp(mixture).scratch_bytes > dense.scratch_bytes + 3 * 3 * 512 * 512 * 4


@pytest.mark.parametrize("tied", [False, True])
def test_repacked_matrices_are_there_in_their_new_order(
    tmp_path: Path, tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llamacpp.platform, "machine", lambda: "x86_64")
    tensors = {"token_embd.weight": (100, 256), "blk.0.attn_q.weight": (256, 256)}
    tensors |= {"blk.0.attn_k.weight": (100, 256)}  # 100 rows are no multiple of 8
    if not tied:
        tensors["output.weight"] = (1000, 256)
    plain = _write_gguf(tmp_path / "a.gguf", tensors=tensors, type_=_TYPES.Q5_0)
    packed = _write_gguf(tmp_path / "b.gguf", tensors=tensors, type_=_TYPES.Q4_0)
    vocabulary = 100 * 240
    sizes = {name: math.prod(size) for name, size in tensors.items()}
    q5_bytes = sum(sizes.values()) * 22 // 32
    assert _llamacpp(plain).weights_bytes == pytest.approx(q5_bytes + vocabulary, abs=128)
    # The mapping reaches from the embeddings to attn_k; attn_q is in both.
    mapped = (
        sizes["token_embd.weight"] + sizes["blk.0.attn_q.weight"] + sizes["blk.0.attn_k.weight"]
    )
    copied = sizes["blk.0.attn_q.weight"] + sizes.get("output.weight", 0)
    expected = (mapped + copied) * 18 // 32 + vocabulary
    assert _llamacpp(packed).weights_bytes == pytest.approx(expected, abs=128)
    monkeypatch.setattr(llamacpp.platform, "machine", lambda: "aarch64")
    assert _llamacpp(packed).weights_bytes == pytest.approx(expected, abs=128)


@pytest.mark.parametrize("architecture", ["clip", "bert", "nomic-bert", "t5encoder"])
def test_what_writes_no_text_is_refused(tmp_path: Path, architecture: str) -> None:
    with pytest.raises(ModelFileError, match=f"{architecture!r} generates no text"):
        _llamacpp(_write_gguf(tmp_path / "m.gguf", architecture))


@pytest.mark.parametrize(
    "keys",
    [
        {"block_count": None},
        {"embedding_length": None},
        {"block_count": 0},
        {"block_count": 1 << 30},
        {"embedding_length": 1 << 31},
        {"attention__head_count_kv": [1, 2]},
        {"tokens": 0},
    ],
)
def test_a_header_without_a_shape_is_refused(tmp_path: Path, keys: dict[str, Any]) -> None:
    with pytest.raises(ModelFileError):
        _llamacpp(_write_gguf(tmp_path / "m.gguf", **keys))


def test_adapters_and_other_kinds_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "adapter.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelFileError, match="'adapter'"):
        _llamacpp(path)


def test_heads_that_a_quantised_cache_cannot_hold(tmp_path: Path) -> None:
    path = _write_gguf(tmp_path / "m.gguf", attention__key_length=80)
    assert _llamacpp(path).kv_cache_bytes
    with pytest.raises(ModelFileError, match="80 values"):
        _llamacpp(path, quant="q8_0")


def test_what_does_not_exist(counter: Path) -> None:
    with pytest.raises(ValueError, match="q4_0"):
        _llamacpp(counter, quant="q8")
    with pytest.raises(ValueError, match="exllamav2"):
        estimate(counter, _spec("vllm", 1, 1, "f16"))
    for context_length, slots in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match="at least 1"):
            _llamacpp(counter, context_length, slots)


@pytest.mark.timeout(60)
def test_a_real_replica_takes_no_more_than_estimated(counter: Path) -> None:
    asked = Configuration("counter", 2048, 4)
    measured = measure(counter, asked)
    expected = _llamacpp(counter, 2048, 4).total_bytes
    assert measured <= expected <= 1.35 * measured


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_flipped_bytes_of_a_real_file_raise_nothing_else(
    tmp_path: Path, counter: Path, data: st.DataObject
) -> None:
    path = tmp_path / "flipped.gguf"
    changed = bytearray(counter.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, 600))] = data.draw(st.integers(0, 255))
    path.write_bytes(changed)
    try:
        # Not through `estimate`: it keeps what it read, and two examples may share a clock tick.
        model = llamacpp.read_memory_model(path)
        assert model.estimate(context_length=1024, slots=1, quant="f16").total_bytes > 0
    except ModelFileError as exc:
        assert exc.reason


# -- what fits ---------------------------------------------------------------------------------


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    context_length=st.integers(1, 40_000),
    slots=st.integers(1, 256),
    free_mib=st.integers(80, 3000),
    quant=st.sampled_from(["f16", "q8_0", "q4_0"]),
)
def test_what_fits_is_the_largest(
    counter: Path, context_length: int, slots: int, free_mib: int, quant: str
) -> None:
    spec = _spec("llamacpp", context_length, slots, quant)
    fit = what_fits(counter, spec, free_mib * _MIB)

    def fits(context: int, num_slots: int) -> bool:
        return _llamacpp(counter, context, num_slots, quant).total_bytes <= free_mib * _MIB

    longest = max(context_length, 32_768) // 256 * 256
    if fit.context_length is None:
        assert not fits(256, slots)
    else:
        assert fit.context_length % 256 == 0
        assert fits(fit.context_length, slots)
        assert fit.context_length == longest or not fits(fit.context_length + 256, slots)
    if fit.slots is None:
        assert not fits(context_length, 1)
    else:
        assert fits(context_length, fit.slots)
        assert fit.slots == 256 or not fits(context_length, fit.slots + 1)


def test_nothing_fits_into_nothing(counter: Path) -> None:
    spec = _spec("llamacpp", 256, 1, "f16")
    assert what_fits(counter, spec, 1000) == FittingSizes(None, None)
    needed = estimate(counter, spec)
    assert advice(spec, counter, needed, 1000).endswith("No smaller context fits.")


# -- ExLlamaV2 ---------------------------------------------------------------------------------

_CONFIG = {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32,
           "num_key_value_heads": 8, "intermediate_size": 8192, "vocab_size": 1000,
           "max_position_embeddings": 131072}  # fmt: skip


def _write_folder(
    folder: Path, config: dict[str, Any], tensors: dict[str, tuple[str, list[int], int]]
) -> Path:
    """A folder with `tensors`: name → dtype, shape, bytes. The data is a hole in the file."""
    header, end = {}, 0
    for name, (dtype, shape, num_bytes) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + num_bytes]}
        end += num_bytes
    raw = json.dumps(header).encode()
    (folder / "config.json").write_text(json.dumps(config))
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.truncate(8 + len(raw) + end)
    return folder


_EMBEDDINGS = {"model.embed_tokens.weight": ("F16", [1000, 2048], 4_096_000)}
_HEAD = {"lm_head.weight": ("F16", [1000, 2048], 4_096_000)}
_NORM = {"model.norm.weight": ("F32", [2048], 8192)}


def _exllamav2(
    folder: Path, quant: str = "fp16", context_length: int = 4096, slots: int = 2
) -> Estimate:
    return estimate(folder, _spec("exllamav2", context_length, slots, quant))


def test_a_draft_model_lives_in_the_same_process(tmp_path: Path) -> None:
    one = Estimate(1, 20, 300, 4000)
    assert one.with_draft(one) == Estimate(2, 40, 600, 4000)
    service = Settings(models_dir=str(tmp_path))
    (tmp_path / "m").mkdir()
    path = _write_folder(tmp_path / "m", _CONFIG, _EMBEDDINGS | _HEAD)
    plain = _spec("exllamav2", 4096, 4, "f16")
    alone = estimate_of(service, plain, path)
    assert estimate_of(service, structs.replace(plain, draft="ngram"), path) == alone
    assert estimate_of(service, structs.replace(plain, draft="m"), path) == alone.with_draft(alone)
    with pytest.raises(InvalidModel) as caught:
        estimate_of(service, structs.replace(plain, draft="../m"), path)
    assert caught.value.param == "draft"


def test_a_limited_cache_holds_fewer_contexts_than_slots(counter: Path) -> None:
    whole = [_llamacpp(counter, 1024, slots) for slots in (1, 3)]
    for cache_tokens, expected in ((1, whole[0]), (1024, whole[0]), (2049, whole[1])):
        spec = _spec("llamacpp", 1024, 3, "f16", cache_tokens=cache_tokens)
        assert estimate(counter, spec) == expected


@pytest.mark.parametrize(
    ("changes", "param"), [({"quant": "q5"}, "quant"), ({"path": "damaged.gguf"}, "path")]
)
def test_a_refused_model_names_the_field(
    tmp_path: Path, counter: Path, changes: dict[str, Any], param: str
) -> None:
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(b"GGUX")
    spec = structs.replace(_spec("llamacpp", 1024, 1, "f16"), **changes)
    with pytest.raises(InvalidModel, match="m: ") as caught:
        estimate_of(Settings(), spec, damaged if param == "path" else counter)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("quant", "kib"), [("f16", 32), ("fp16", 32), ("q8", 17), ("q6", 13), ("q4", 9)]
)
def test_the_cache_by_token(tmp_path: Path, quant: str, kib: int) -> None:
    folder = _write_folder(tmp_path, _CONFIG, _EMBEDDINGS | _HEAD)
    unpacked = 0 if quant in ("f16", "fp16") else 8 * 64 * 4
    expected = 2 * 4096 * (kib * 1024 + unpacked)
    assert _exllamav2(folder, quant).kv_cache_bytes == expected
    assert _exllamav2(folder, quant, 3841).kv_cache_bytes == expected


def test_weights_on_the_gpu(tmp_path: Path) -> None:
    folder = _write_folder(tmp_path, _CONFIG, _EMBEDDINGS | _HEAD | _NORM)
    assert _exllamav2(folder).weights_bytes == 4_096_000 + 4096


def test_tied_embeddings_have_a_copy_on_the_gpu(tmp_path: Path) -> None:
    folder = _write_folder(tmp_path, _CONFIG, _EMBEDDINGS | _NORM)
    assert _exllamav2(folder).weights_bytes == 1024 * 2048 * 2 + 4096


def test_quantised_weights_need_room_to_be_unpacked(tmp_path: Path) -> None:
    plain, packed = tmp_path / "a", tmp_path / "b"
    for folder, name in ((plain, "weight"), (packed, "q_weight")):
        folder.mkdir()
        tensors = {f"model.layers.0.mlp.up_proj.{name}": ("I32", [64, 64], 16384)}
        _write_folder(folder, _CONFIG, _EMBEDDINGS | _HEAD | tensors)
    mlp = 2048 * (2048 + 2 * 8192) * 2 + 2 * 2048 * 8192
    assert _exllamav2(packed).scratch_bytes == _exllamav2(plain).scratch_bytes + mlp


def test_the_text_part_of_a_larger_model(tmp_path: Path) -> None:
    config = {"architectures": ["X"], "text_config": _CONFIG}
    folder = _write_folder(tmp_path, config, _EMBEDDINGS | _HEAD)
    assert _exllamav2(folder).kv_cache_bytes == 2 * 4096 * 32 * 1024


def test_gemma_3_leaves_out_what_it_takes_for_granted(tmp_path: Path) -> None:
    text = {"model_type": "gemma3_text", "hidden_size": 2048, "num_hidden_layers": 16}
    folder = _write_folder(tmp_path, {"text_config": text}, _EMBEDDINGS | _HEAD)
    assert _exllamav2(folder).kv_cache_bytes == 2 * 4096 * 16 * 4 * 256 * 4


@pytest.mark.parametrize(
    "name", ["vision_tower.a.weight", "model.visual.b.weight", "multi_modal_projector.c"]
)
def test_what_sees_is_not_loaded(tmp_path: Path, name: str) -> None:
    seeing = {name: ("F16", [64, 64], 8192)}
    folder = _write_folder(tmp_path, _CONFIG, _EMBEDDINGS | _HEAD | seeing)
    assert _exllamav2(folder).weights_bytes == 4_096_000


@pytest.mark.parametrize(
    "changes", [{"hidden_size": 0}, {"hidden_size": "x"}, {"num_hidden_layers": None}]
)
def test_a_config_without_a_shape_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = _write_folder(tmp_path, _CONFIG | changes, _EMBEDDINGS | _HEAD)
    with pytest.raises(ModelFileError, match=r"config\.json"):
        _exllamav2(folder)


def test_the_right_files_for_the_engine(tmp_path: Path, counter: Path) -> None:
    with pytest.raises(ModelFileError):
        _exllamav2(counter)
    with pytest.raises(ModelFileError):
        _llamacpp(_write_folder(tmp_path, _CONFIG, _EMBEDDINGS))
    with pytest.raises(ValueError, match="q6"):
        _exllamav2(tmp_path, "q5")


def test_what_fits_on_a_gpu(tmp_path: Path) -> None:
    folder = _write_folder(tmp_path, _CONFIG, _EMBEDDINGS | _HEAD)
    free_bytes = _exllamav2(folder, "q4", 8192, 4).total_bytes
    fit = what_fits(folder, _spec("exllamav2", 8192, 1, "q4"), free_bytes)
    assert fit.slots == 4
    assert fit.context_length is not None
    # A little less than four times as long: the tables of positions grow with it.
    assert 4 * 8192 - 1024 <= fit.context_length <= 4 * 8192
