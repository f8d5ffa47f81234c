"""Writes models with random weights, in shapes that the demo model does not have."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

from bench.processes import ROOT

FOLDER = ROOT / "var" / "bench" / "models"

_SPECIAL_TOKENS = 3
_BYTE_TOKENS = 256


@dataclass(frozen=True, slots=True)
class RandomModel:
    """A model of the architecture `llama`."""

    weights: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F16
    width: int = 768
    layers: int = 12
    heads: int = 12
    kv_heads: int = 4
    feed_forward: int = 2048
    vocabulary: int = 32_000
    experts: int = 0
    experts_used: int = 2
    context_length: int = 32_768


_TYPES = gguf.GGMLQuantizationType
_LLAMA = RandomModel(width=1024, layers=16, heads=16, kv_heads=8, feed_forward=3584)
MODELS = {
    "llama-f16": _LLAMA,
    "llama-q8_0": RandomModel(_TYPES.Q8_0, 1024, 16, 16, 8, 3584),
    "llama-q4_0": RandomModel(_TYPES.Q4_0, 1024, 16, 16, 8, 3584),
    "mixture-q8_0": RandomModel(_TYPES.Q8_0, 512, 8, 8, 2, 1024, experts=8),
    "tiny": RandomModel(_TYPES.F16, 64, 2, 4, 2, 128, 300),
}


def write(name: str, folder: Path = FOLDER) -> Path:
    """Write a model of MODELS unless it is there already; its path."""
    path = folder / f"random-{name}.gguf"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        _write(MODELS[name], partial)
        partial.rename(path)
    return path


def _write(model: RandomModel, path: Path) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(model.context_length)
    writer.add_embedding_length(model.width)
    writer.add_block_count(model.layers)
    writer.add_feed_forward_length(model.feed_forward)
    writer.add_head_count(model.heads)
    writer.add_head_count_kv(model.kv_heads)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(model.width // model.heads)
    if model.experts:
        writer.add_expert_count(model.experts)
        writer.add_expert_used_count(model.experts_used)
    _add_vocabulary(writer, model.vocabulary)
    rng = np.random.default_rng(0)
    for tensor_name, shape in _tensors(model):
        if len(shape) == 1:
            writer.add_tensor(tensor_name, np.ones(shape, np.float32))
            continue
        values = 0.02 * rng.standard_normal(shape, np.float32)
        # The router of a mixture stays in full precision, as llama-quantize leaves it.
        wanted = _TYPES.F32 if "ffn_gate_inp" in tensor_name else model.weights
        writer.add_tensor(tensor_name, gguf.quantize(values, wanted), raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_vocabulary(writer: gguf.GGUFWriter, size: int) -> None:
    kinds = gguf.TokenType
    tokens = [b"<unk>", b"<s>", b"</s>"] + [b"<0x%02X>" % byte for byte in range(_BYTE_TOKENS)]
    types = [kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL] + [kinds.BYTE] * _BYTE_TOKENS
    num_words = size - len(tokens)
    tokens += [b"\xe2\x96\x81word%d" % word for word in range(num_words)]
    writer.add_vocab_size(size)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([-1.0] * size)
    writer.add_token_types([int(kind) for kind in types + [kinds.NORMAL] * num_words])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def _tensors(model: RandomModel) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes, in the order of numpy."""
    width, wide = model.width, model.feed_forward
    kv = width // model.heads * model.kv_heads
    yield "token_embd.weight", (model.vocabulary, width)
    for layer in range(model.layers):
        blk = f"blk.{layer}"
        yield f"{blk}.attn_norm.weight", (width,)
        yield f"{blk}.attn_q.weight", (width, width)
        yield f"{blk}.attn_k.weight", (kv, width)
        yield f"{blk}.attn_v.weight", (kv, width)
        yield f"{blk}.attn_output.weight", (width, width)
        yield f"{blk}.ffn_norm.weight", (width,)
        if model.experts:
            yield f"{blk}.ffn_gate_inp.weight", (model.experts, width)
        suffix = "_exps" if model.experts else ""
        shape = (model.experts,) if model.experts else ()
        yield f"{blk}.ffn_gate{suffix}.weight", (*shape, wide, width)
        yield f"{blk}.ffn_up{suffix}.weight", (*shape, wide, width)
        yield f"{blk}.ffn_down{suffix}.weight", (*shape, width, wide)
    yield "output_norm.weight", (width,)
    yield "output.weight", (model.vocabulary, width)
