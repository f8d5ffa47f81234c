"""ExLlamaV2: config.json normalised, what cannot be run refused, the model's folder untouched."""

import json
from pathlib import Path
from typing import Any

import pytest

from shared.errors import SettingsError
from tests.support import exl2_folder
from worker.engines.exllamav2.model.config import loadable_folder, normalise
from worker.engines.exllamav2.model.folder import ModelFolder, read_folder
from worker.engines.exllamav2.model.stop_tokens import stop_tokens


def _folder(config: dict[str, Any]) -> ModelFolder:
    config = {"architectures": ["LlamaForCausalLM"]} | config
    return ModelFolder(Path("m"), config, {}, {}, {}, None)


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def test_rope_parameters_become_what_the_loader_reads() -> None:
    config = normalise(_folder({"rope_parameters": {"rope_theta": 5e5} | LLAMA3}))
    assert config["rope_theta"] == 5e5
    assert config["rope_scaling"] == LLAMA3
    assert "rope_parameters" not in config


def test_nulls_beside_rope_parameters_do_not_count() -> None:
    given = {"rope_theta": None, "rope_scaling": None}
    config = normalise(_folder(given | {"rope_parameters": {"rope_theta": 5e5} | LLAMA3}))
    assert config["rope_theta"] == 5e5
    assert config["rope_scaling"] == LLAMA3


def test_plain_rope_parameters_scale_nothing() -> None:
    config = normalise(_folder({"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}))
    assert config["rope_theta"] == 1e6
    assert "rope_scaling" not in config


def test_a_part_of_the_head_that_is_turned_is_kept() -> None:
    parameters = {"rope_theta": 1e4, "rope_type": "default", "partial_rotary_factor": 0.5}
    assert normalise(_folder({"rope_parameters": parameters}))["partial_rotary_factor"] == 0.5


def test_the_text_part_of_a_model_that_sees_is_normalised_too() -> None:
    part = {"rope_parameters": {"rope_theta": 1e6} | LLAMA3}
    config = normalise(_folder({"text_config": part}))
    assert config["text_config"]["rope_theta"] == 1e6
    assert config["text_config"]["rope_scaling"]["rope_type"] == "llama3"


def test_of_parameters_by_kind_of_layer_those_of_full_attention_count() -> None:
    parameters = {
        "full_attention": {"rope_theta": 1e6, "rope_type": "linear", "factor": 8.0},
        "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
    }
    config = normalise(_folder({"rope_parameters": parameters}))
    assert config["rope_theta"] == 1e6
    assert config["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}
    parameters["sliding_attention"]["rope_theta"] = 5e4
    with pytest.raises(SettingsError, match="sliding"):
        normalise(_folder({"rope_parameters": parameters}))


def test_a_type_with_both_names_is_given_one() -> None:
    scaling = {"type": "linear", "rope_type": "linear", "factor": 2.0}
    config = normalise(_folder({"rope_scaling": scaling}))
    assert config["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}


def test_longrope_gets_its_original_length_where_it_is_looked_for() -> None:
    scaling = {
        "rope_type": "longrope",
        "long_factor": [1.0],
        "short_factor": [1.0],
        "original_max_position_embeddings": 4096,
    }
    config = normalise(_folder({"rope_parameters": {"rope_theta": 1e4} | scaling}))
    assert config["original_max_position_embeddings"] == 4096


def test_yarn_gets_the_defaults_of_transformers() -> None:
    given = {"rope_scaling": {"type": "yarn", "factor": 4.0}, "max_position_embeddings": 131072}
    scaling = normalise(_folder(given))["rope_scaling"]
    assert scaling["original_max_position_embeddings"] == 131072
    given["rope_scaling"] = {"type": "yarn", "original_max_position_embeddings": 32768}
    assert normalise(_folder(given))["rope_scaling"]["factor"] == 4.0
    given = {"rope_scaling": {"type": "yarn", "factor": 4.0}}
    with pytest.raises(SettingsError, match="original_max_position_embeddings"):
        normalise(_folder(given))


@pytest.mark.parametrize(
    ("declared", "reason"),
    [
        ({"quant_method": "awq", "bits": 4}, "'awq'"),
        ({"quant_method": "fp8"}, "'fp8'"),
        ({"quant_method": "gptq", "bits": 8}, "8 bits"),
    ],
)
def test_weights_that_are_quantised_otherwise_are_refused(
    declared: dict[str, Any], reason: str
) -> None:
    with pytest.raises(SettingsError, match=reason):
        normalise(_folder({"quantization_config": declared}))


@pytest.mark.parametrize(
    "declared", [{"quant_method": "exl2", "bits": 4.25}, {"quant_method": "gptq", "bits": 4}]
)
def test_weights_that_are_quantised_for_it(declared: dict[str, Any]) -> None:
    assert normalise(_folder({"quantization_config": declared}))


_S, _F = "sliding_attention", "full_attention"


@pytest.mark.parametrize(
    ("architecture", "kinds", "pattern"),
    [
        ("Cohere2ForCausalLM", [_S, _S, _S, _F] * 3, 4),
        ("Gemma2ForCausalLM", [_S, _F] * 3, 2),
        ("Gemma2ForCausalLM", [_S] * 3, 4),
    ],
)
def test_which_layers_see_a_window_becomes_a_pattern(
    architecture: str, kinds: list[str], pattern: int
) -> None:
    config = normalise(_folder({"architectures": [architecture], "layer_types": kinds}))
    assert config["sliding_window_pattern"] == pattern


def test_the_pattern_of_the_text_part_is_lifted_to_where_it_is_read() -> None:
    given = {"architectures": ["Gemma3ForConditionalGeneration"]}
    kinds = [_S, _S, _F, _S]
    assert (
        normalise(_folder(given | {"text_config": {"layer_types": kinds}}))[
            "sliding_window_pattern"
        ]
        == 3
    )
    config = normalise(_folder(given | {"text_config": {"sliding_window_pattern": 6}}))
    assert config["sliding_window_pattern"] == 6


@pytest.mark.parametrize("kinds", [[_F, _S, _F], [_S, _F, _F], [_F, _F]])
def test_layers_without_a_period_are_refused(kinds: list[str]) -> None:
    with pytest.raises(SettingsError, match="no period"):
        normalise(_folder({"architectures": ["Cohere2ForCausalLM"], "layer_types": kinds}))


def test_scaling_that_would_be_left_out_is_refused() -> None:
    with pytest.raises(SettingsError, match="'dynamic'"):
        normalise(_folder({"rope_scaling": {"type": "dynamic", "factor": 2.0}}))


@pytest.mark.parametrize(
    "architectures",
    [
        ["Gemma3ForCausalLM"],
        ["DbrxForCausalLM"],
        ["GPTBigCodeForCausalLM"],
        ["DeepseekV3ForCausalLM"],
        [],
        None,
        ["LlamaForCausalLM"] * 2,
        "x",
    ],
)
def test_what_would_be_loaded_as_llama_is_refused(architectures: Any) -> None:
    with pytest.raises(SettingsError, match=r"architectures|does not support"):
        normalise(_folder({"architectures": architectures}))


def test_the_folder_to_load_from_links_to_the_files_and_leaves_them_alone(tmp_path: Path) -> None:
    exl2_folder.write(tmp_path, rope_parameters={"rope_theta": 1e6}, rope_theta=None)
    (tmp_path / "consolidated.safetensors").write_bytes(b"a copy in one piece")
    index = {"weight_map": {"a": "model.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with loadable_folder(read_folder(tmp_path)) as view:
        assert [p.name for p in view.glob("*.safetensors")] == ["model.safetensors"]
        assert (view / "tokenizer.json").read_bytes() == before["tokenizer.json"]
        assert "rope_parameters" not in json.loads((view / "config.json").read_text())
    assert not view.exists()
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_an_index_that_a_converter_left_behind_is_not_believed(tmp_path: Path) -> None:
    exl2_folder.write(tmp_path)
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with loadable_folder(read_folder(tmp_path)) as view:
        assert (view / "model.safetensors").exists()


@pytest.mark.parametrize("broken", ["config.json", "tokenizer.json"])
def test_files_that_are_missing_or_broken(tmp_path: Path, broken: str) -> None:
    exl2_folder.write(tmp_path)
    (tmp_path / broken).write_text("[1")
    with pytest.raises(SettingsError, match=broken):
        read_folder(tmp_path)
    (tmp_path / broken).unlink()
    with pytest.raises(SettingsError, match=broken):
        read_folder(tmp_path)


def test_a_folder_without_weights(tmp_path: Path) -> None:
    exl2_folder.write(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(SettingsError, match="safetensors"):
        read_folder(tmp_path)


# -- chat templates and end tokens -----------------------------------------------------------


def test_the_chat_template_is_found_where_it_is(tmp_path: Path) -> None:
    exl2_folder.write(tmp_path)
    assert read_folder(tmp_path).chat_template == "T"
    named = [{"name": "tool_use", "template": "U"}, {"name": "default", "template": "D"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert read_folder(tmp_path).chat_template == "D"
    (tmp_path / "tokenizer_config.json").unlink()
    assert read_folder(tmp_path).chat_template is None
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "J"}))
    assert read_folder(tmp_path).chat_template == "J"
    (tmp_path / "chat_template.jinja").write_text("F")
    assert read_folder(tmp_path).chat_template == "F"


def test_the_template_for_tools_is_found_where_it_is(tmp_path: Path) -> None:
    exl2_folder.write(tmp_path)
    assert read_folder(tmp_path).tool_use_template is None
    named = [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "U"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    folder = read_folder(tmp_path)
    assert (folder.chat_template, folder.tool_use_template) == ("D", "U")
    (tmp_path / "chat_template.jinja").write_text("F")
    folder = read_folder(tmp_path)
    assert (folder.chat_template, folder.tool_use_template) == ("F", None)
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("G")
    folder = read_folder(tmp_path)
    assert (folder.chat_template, folder.tool_use_template) == ("F", "G")


def test_files_with_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    exl2_folder.write(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("\ufeff" + json.dumps({"chat_template": "B"}))
    assert read_folder(tmp_path).chat_template == "B"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"generation_config": {"eos_token_id": [3, 4]}}, [3, 4]),
        ({"generation_config": {"eos_token_id": 3}}, [3]),
        ({"config": {"eos_token_id": 2}}, [2]),
        ({"config": {"eos_token_id": [2, 3]}}, [2, 3]),
        ({"config": {"text_config": {"eos_token_id": 4}}}, [4]),
        ({"tokenizer_config": {"eos_token": "</s>"}}, [2]),
        ({"tokenizer_config": {"eos_token": {"content": "</s>"}}}, [2]),
        ({"tokenizer": {"added_tokens": [_added := {"id": 4, "content": "<|im_end|>",
                                                    "special": True}]}}, [4]),
        ({"tokenizer": {"added_tokens": [_added | {"special": False}]}}, []),
        ({"tokenizer_config": {"added_tokens_decoder": {"4": _added}}}, [4]),
        ({"generation_config": {"eos_token_id": [2]}, "config": {"eos_token_id": 3},
          "tokenizer": {"added_tokens": [_added]}}, [2, 3, 4]),
        ({"config": {"eos_token_id": 99}, "generation_config": {"eos_token_id": [True, -1]}}, []),
        ({}, []),
    ],
)  # fmt: skip
def test_end_tokens_from_every_place(files: dict[str, Any], expected: list[int]) -> None:
    empty: dict[str, Any] = {
        "config": {}, "generation_config": {}, "tokenizer_config": {}, "tokenizer": {},
    }  # fmt: skip
    folder = ModelFolder(path=Path("m"), chat_template=None, **(empty | files))
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, "<|im_start|>": 3, "<|im_end|>": 4}
    assert stop_tokens(folder, vocabulary) == expected
