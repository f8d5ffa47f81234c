"""GPU memory of a replica that runs ExLlamaV2, from the headers of a Hugging Face folder.

The formulas come from the source of exllamav2 0.3.2 (model.py, cache.py, attn.py, mlp.py); they
have not been compared with a GPU yet. Weights may be EXL2, GPTQ or 16-bit.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec

from worker.agent.estimate.base import MIB, Estimate, round_up
from worker.agent.model_files.errors import ModelFileError
from worker.agent.model_files.safetensors import SafetensorsFolder, decode_json, read_headers

_PAGE_TOKENS = 256
_PREFILL_TOKENS = 2048
"""max_input_len and the largest prefill chunk."""
_MAX_BATCH = 256
_HALF_BYTES = 2
_KV_BYTES = {
    "f16": 4.0,
    "fp16": 4.0,
    "q8": 2.125,
    "q8_0": 2.125,
    "q6": 1.625,
    "q4": 1.125,
    "q4_0": 1.125,
}
"""Bytes of one value of K and one of V, with a scale for each 32 values."""
_MAX_HEAD_SCRATCH_BYTES = 2 * (512 << 20)
_PROCESS_BYTES = (1000 + 256) * MIB
"""CUDA context, cuBLAS, slack of the allocator, and a reserve."""
_WEIGHTS_SLACK = 0.05
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight")
_OTHER_PARTS = ("vision_tower.", "visual.", "multi_modal_projector.")
"""Tensors of multimodal models that are not loaded: only the text part is used."""
_GEMMA3 = {
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "vocab_size": 262208,
}
"""Defaults for keys that its config.json omits (exllamav2@v0.3.2:exllamav2/architecture.py)."""

Count = Annotated[int, msgspec.Meta(ge=1, le=1 << 24)]


class _Config(msgspec.Struct):
    """The keys of config.json that memory depends on."""

    hidden_size: Count
    num_hidden_layers: Count
    num_attention_heads: Count
    vocab_size: Count
    intermediate_size: Count | None = None
    num_key_value_heads: Count | None = None
    head_dim: Count | None = None
    max_position_embeddings: Count | None = None
    model_type: str = ""

    @property
    def kv_heads(self) -> int:
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def head_size(self) -> int:
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def feed_forward(self) -> int:
        return self.intermediate_size or 4 * self.hidden_size

    @property
    def padded_vocabulary(self) -> int:
        return round_up(self.vocab_size, 32)


@dataclass(frozen=True, slots=True)
class ExLlamaV2MemoryModel:
    """See `worker.agent.estimate.base.MemoryModel`."""

    config: _Config
    weights_bytes: int
    is_quantised: bool
    """Quantised weights are unpacked into scratch space to multiply long inputs."""
    trained_context_length: int
    max_slots: int = _MAX_BATCH

    def estimate(self, *, context_length: int, slots: int, quant: str) -> Estimate:
        if quant not in _KV_BYTES:
            raise ValueError(f"KV cache of {quant!r}: exllamav2 has {', '.join(_KV_BYTES)}")
        config = self.config
        tokens = round_up(context_length, _PAGE_TOKENS) * slots
        layer_values = tokens * config.kv_heads * config.head_size
        kv_cache_bytes = int(config.num_hidden_layers * layer_values * _KV_BYTES[quant])
        if quant not in ("f16", "fp16"):
            # K and V of one layer, unpacked for the attention kernel.
            kv_cache_bytes += layer_values * 2 * _HALF_BYTES
        scratch_bytes = int(_WEIGHTS_SLACK * self.weights_bytes)
        scratch_bytes += _activation_bytes(config, slots) + _table_bytes(config, context_length)
        if self.is_quantised:
            scratch_bytes += _unpacking_bytes(config)
        return Estimate(self.weights_bytes, kv_cache_bytes, scratch_bytes, _PROCESS_BYTES)


def read_memory_model(path: Path) -> ExLlamaV2MemoryModel:
    """Read the headers of a folder. Raises ModelFileError."""
    folder = read_headers(path)
    config = _read_config(folder.config)
    return ExLlamaV2MemoryModel(
        config=config,
        weights_bytes=_weights_bytes(folder, config),
        is_quantised=any(name.endswith((".q_weight", ".qweight")) for name in folder.tensors),
        trained_context_length=config.max_position_embeddings or 0,
    )


def _read_config(raw: bytes) -> _Config:
    """Decode the config; of a multimodal model, its text part."""
    config = decode_json(raw, dict[str, Any], "config.json")
    text = config.get("text_config")
    if isinstance(text, dict):
        config = text
    if str(config.get("model_type")).startswith("gemma3"):
        config = _GEMMA3 | config
    return decode_json(msgspec.json.encode(config), _Config, "config.json")


def _weights_bytes(folder: SafetensorsFolder, config: _Config) -> int:
    """Tensors on the GPU: embeddings stay in RAM, 32-bit tensors become 16-bit."""
    total = 0
    has_head = False
    for name, tensor in folder.tensors.items():
        if name.removeprefix("model.").startswith(_OTHER_PARTS):
            continue
        has_head = has_head or "lm_head." in name
        if not name.endswith(_EMBEDDINGS):
            total += tensor.num_bytes // 2 if tensor.dtype == "F32" else tensor.num_bytes
    if not has_head:
        # Tied embeddings: the GPU holds a copy as the output matrix.
        total += config.padded_vocabulary * config.hidden_size * _HALF_BYTES
    if not total:
        raise ModelFileError("the folder holds only embeddings")
    return total


def _activation_bytes(config: _Config, slots: int) -> int:
    """Activations of a prefill chunk, and the logits of a decode step."""
    attention = (config.num_attention_heads + 2 * config.kv_heads) * config.head_size
    width = 6 * config.hidden_size + 3 * config.feed_forward + attention
    logits = slots * config.padded_vocabulary
    return _HALF_BYTES * (_PREFILL_TOKENS * width + logits)


def _table_bytes(config: _Config, context_length: int) -> int:
    """Sines and cosines, and the buffer for defragmenting pages."""
    num_tables = 4 if config.model_type.startswith("gemma3") else 2
    rope = num_tables * context_length * config.head_size * _HALF_BYTES
    return rope + 2 * _PAGE_TOKENS * config.kv_heads * config.head_size * _HALF_BYTES


def _unpacking_bytes(config: _Config) -> int:
    """The largest scratch_space_fixed of all modules: the head's or the MLP's."""
    head = min(2 * config.hidden_size * config.vocab_size, _MAX_HEAD_SCRATCH_BYTES)
    wide = max(config.hidden_size, config.feed_forward)
    mlp = _PREFILL_TOKENS * (config.hidden_size + 2 * wide) * _HALF_BYTES
    return max(head, mlp + _HALF_BYTES * config.hidden_size * config.feed_forward)
