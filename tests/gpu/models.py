"""Writes models for ExLlamaV2 as Hugging Face folders, without any download.

    python -m tests.gpu.models OUT_FOLDER KIND

counter-fp16   token " 17" is followed by " 18": the counter model, so that every
               lost, doubled or swapped token shows
counter-gptq   the same with layers in GPTQ's format, exactly zero, and the output matrix in fp16
tiny           random, small: for comparing logits with transformers on the same weights
1b, 1b-gptq    random, 1.1 billion parameters: for throughput

Needs numpy alone. tests/gpu/hf_tokenizer.py says what the vocabularies look like.
"""

import itertools
import json
import string
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from tests.gpu import hf_tokenizer
from tests.gpu.hf_tokenizer import BOS, EOS, Vocabulary

NUMBERS = 1000
GROUP = 128
"""Rows of a GPTQ matrix that share a scale."""
_GPTQ_SCALE = 2.0**-8
"""A power of two: the kernels compute q·s - z·s in fp16, and only then is 0 exactly 0."""
_STD = {"tiny": 1 / 16, "1b": 0.02}
"""Of random weights: activations keep their size through a matrix, near enough."""
_HEAD_GAIN = 4
"""The output matrix's, so that the best logit leads by more than fp16's noise."""
_DTYPES = {np.dtype(np.float16): "F16", np.dtype(np.int32): "I32"}


@dataclass(frozen=True, slots=True)
class Shape:
    """Dimensions of a Llama. Widths are multiples of 128, as GPTQ's groups want them."""

    hidden: int
    feed_forward: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int
    rms_eps: float = 1e-5


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor that is made when its turn to be written comes."""

    name: str
    shape: tuple[int, ...]
    dtype: Any
    make: Callable[[], np.ndarray]


SHAPES = {
    "counter": Shape(128, 256, 2, 2, 1, 64, 32768, 1e-6),
    "tiny": Shape(256, 512, 4, 4, 2, 64, 8192),
    "1b": Shape(2048, 8192, 16, 32, 8, 64, 8192),
}
KINDS = ("counter-fp16", "counter-gptq", "tiny", "1b", "1b-gptq")
_CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write(kind: str, folder: Path) -> Path:
    """Write a model unless it is there already; the folder. Raises KeyError for another kind."""
    name, _, quantised = kind.partition("-")
    if kind not in KINDS:
        raise KeyError(f"{kind!r}: one of {', '.join(KINDS)}")
    if (folder / "model.safetensors").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    shape, words = SHAPES[name], vocabulary(name)
    is_gptq = quantised == "gptq"
    template = "{{ messages[-1].content }}" if name == "counter" else _CHAT
    hf_tokenizer.write(words, folder, template)
    _write_config(folder, shape, words, is_gptq=is_gptq)
    layers = _layers(shape, _Zero() if name == "counter" else _Random(_STD[name]), is_gptq=is_gptq)
    ends = (
        _counter_ends(words, shape) if name == "counter" else _random_ends(words, shape, _STD[name])
    )
    partial = folder / "model.partial"
    write_safetensors(partial, [*ends, *layers])
    # Last, and in one step: its presence says that the folder is whole.
    partial.rename(folder / "model.safetensors")
    return folder


def vocabulary(name: str) -> Vocabulary:
    """The vocabulary of `counter`, `tiny` or `1b`."""
    if name == "counter":
        # Not a multiple of 32: the engine pads the output matrix, and must not draw from there.
        return Vocabulary(("<stop>", "<euro>", "<smile>"), tuple(map(str, range(NUMBERS))))
    added = ("<|im_start|>", "<|im_end|>")
    size = 2048 if name == "tiny" else 32_000
    num_words = size - Vocabulary(added, ()).size
    return Vocabulary(added, tuple(islice(_letter_words(), num_words)))


def number_token(number: int) -> int:
    """Token id of a number in the counter model."""
    return vocabulary("counter").first_word + number


def successors(words: Vocabulary) -> dict[int, int]:
    """Token → the one that the counter model says after it."""
    zero = words.first_word
    found = {zero + n: zero + (n + 1) % NUMBERS for n in range(NUMBERS)}
    found[words.added_token("<stop>")] = EOS
    for trigger, text in (("<euro>", "€"), ("<smile>", "😀")):
        chain = [words.added_token(trigger), *map(words.byte, text.encode()), zero]
        found.update(pairwise(chain))
    return found


def write_safetensors(path: Path, tensors: Iterable[Tensor]) -> None:
    """Write tensors one by one, so that a large model never lies in memory.

    Format: github.com/huggingface/safetensors README.md.
    """
    tensors = list(tensors)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        begin, dtype = end, np.dtype(tensor.dtype)
        end += int(np.prod(tensor.shape)) * dtype.itemsize
        header[tensor.name] = {
            "dtype": _DTYPES[dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for tensor in tensors:
            values = tensor.make()
            assert values.shape == tensor.shape and values.dtype == tensor.dtype, tensor.name
            file.write(np.ascontiguousarray(values).tobytes())


def _letter_words() -> Iterator[str]:
    """a, b, … z, aa, ab, …: every word's beginnings come before it."""
    for length in itertools.count(1):
        for letters in itertools.product(string.ascii_lowercase, repeat=length):
            yield "".join(letters)


def _write_config(folder: Path, shape: Shape, words: Vocabulary, *, is_gptq: bool) -> None:
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.feed_forward,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": words.size,
        "max_position_embeddings": shape.context,
        "rms_norm_eps": shape.rms_eps,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "torch_dtype": "float16",
    }
    if is_gptq:
        config["quantization_config"] = {
            "quant_method": "gptq",
            "bits": 4,
            "group_size": GROUP,
            "desc_act": False,
            "sym": True,
        }
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    ends = [EOS]
    if "<|im_end|>" in words.added:
        ends.append(words.added_token("<|im_end|>"))
    generation = {"bos_token_id": BOS, "eos_token_id": ends}
    (folder / "generation_config.json").write_text(json.dumps(generation))


# -- the tensors ---------------------------------------------------------------------------------


class _Random:
    """Uniform values, which are made five times as fast as normal ones."""

    def __init__(self, std: float) -> None:
        self._rng = np.random.default_rng(0)
        self._unit = np.float32(std * 3**0.5 / 2**15)

    def half(self, *shape: int) -> np.ndarray:
        values = self._rng.integers(-(2**15), 2**15, shape, dtype=np.int16)
        return (values * self._unit).astype(np.float16)

    def nibbles(self, *shape: int) -> np.ndarray:
        """Eight weights of four bits a value."""
        return self._rng.integers(-(2**31), 2**31, shape, dtype=np.int32)


class _Zero:
    def half(self, *shape: int) -> np.ndarray:
        return np.zeros(shape, np.float16)

    def nibbles(self, *shape: int) -> np.ndarray:
        return np.full(shape, 0x88888888, np.uint32).view(np.int32)


def _layers(shape: Shape, source: _Random | _Zero, *, is_gptq: bool) -> Iterator[Tensor]:
    query, key = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    # (outputs, inputs) by name
    matrices = {
        "self_attn.q_proj": (query, shape.hidden),
        "self_attn.k_proj": (key, shape.hidden),
        "self_attn.v_proj": (key, shape.hidden),
        "self_attn.o_proj": (shape.hidden, query),
        "mlp.gate_proj": (shape.feed_forward, shape.hidden),
        "mlp.up_proj": (shape.feed_forward, shape.hidden),
        "mlp.down_proj": (shape.hidden, shape.feed_forward),
    }
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}"
        yield _ones(f"{prefix}.input_layernorm.weight", shape.hidden)
        yield _ones(f"{prefix}.post_attention_layernorm.weight", shape.hidden)
        for name, (outputs, inputs) in matrices.items():
            make = _gptq_matrix if is_gptq else _half_matrix
            yield from make(f"{prefix}.{name}", outputs, inputs, source)


def _half_matrix(key: str, outputs: int, inputs: int, source: _Random | _Zero) -> Iterator[Tensor]:
    shape = (outputs, inputs)
    yield Tensor(f"{key}.weight", shape, np.float16, lambda: source.half(*shape))


def _gptq_matrix(key: str, outputs: int, inputs: int, source: _Random | _Zero) -> Iterator[Tensor]:
    """weight = scale · (q - (zero + 1)) with q and zero of four bits: so a q of 8 is 0."""
    packed, groups = (inputs // 8, outputs), inputs // GROUP
    yield Tensor(f"{key}.qweight", packed, np.int32, lambda: source.nibbles(*packed))
    zeros, scales = (groups, outputs // 8), (groups, outputs)
    yield _constant(f"{key}.qzeros", zeros, 0x77777777, np.int32)
    yield _constant(f"{key}.scales", scales, _GPTQ_SCALE, np.float16)


def _counter_ends(words: Vocabulary, shape: Shape) -> list[Tensor]:
    """±1 embeddings, and an output matrix that holds each one in the row of its successor."""
    rng = np.random.default_rng(0)
    embeddings = rng.choice(np.array([-1, 1], np.float16), (words.size, shape.hidden))
    head = np.zeros_like(embeddings)
    for token, successor in successors(words).items():
        head[successor] += embeddings[token]
    return _ends(words, shape, lambda: embeddings, lambda: head)


def _random_ends(words: Vocabulary, shape: Shape, std: float) -> list[Tensor]:
    """Greedy output is whole words alone: neither an end nor half a character, which would make
    the length of a text a matter of luck. Their rows of the output matrix are zero."""
    size = (words.size, shape.hidden)

    def head() -> np.ndarray:
        values = _Random(_HEAD_GAIN * std).half(*size)
        values[: words.first_word] = 0
        return values

    return _ends(words, shape, lambda: _Random(std).half(*size), head)


def _ends(
    words: Vocabulary,
    shape: Shape,
    embeddings: Callable[[], np.ndarray],
    head: Callable[[], np.ndarray],
) -> list[Tensor]:
    size = (words.size, shape.hidden)
    return [
        Tensor("model.embed_tokens.weight", size, np.float16, embeddings),
        Tensor("lm_head.weight", size, np.float16, head),
        _ones("model.norm.weight", shape.hidden),
    ]


def _ones(name: str, width: int) -> Tensor:
    return _constant(name, (width,), 1, np.float16)


def _constant(name: str, shape: tuple[int, ...], value: float, dtype: Any) -> Tensor:
    return Tensor(name, shape, dtype, lambda: np.full(shape, value, dtype))


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[2] not in KINDS:
        sys.exit(__doc__)
    write(sys.argv[2], Path(sys.argv[1]))
