"""The shape of a model from a GGUF file's metadata, as far as memory depends on it. Keys:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md and llama-hparams.cpp."""

from dataclasses import dataclass

from worker.agent.model_files.errors import ModelFileError
from worker.agent.model_files.gguf import GgufHeader, Skipped

_MAX_LAYERS = 1024
_MAX_SIZE = 1 << 30
_ENCODERS = (
    "bert modern-bert nomic-bert nomic-bert-moe neo-bert jina-bert-v2 jina-bert-v3 eurobert "
    "gemma-embedding gemma-embedding2 llama-embed"
)
ENCODERS = frozenset(_ENCODERS.split())
"""Architectures that can only embed."""
_OTHERS = (
    "clip t5 t5encoder wavtokenizer-dec dream llada llada-moe rnd1 gemma4-assistant qwen3tts "
    "pockettts"
)
_NEITHER = frozenset(_OTHERS.split())
"""Architectures that llama.cpp loads but that neither embed nor write text token by token."""


@dataclass(frozen=True, slots=True)
class GgufShape:
    architecture: str
    context_length: int
    """Tokens that the model was trained on; 0 if the header has no such key."""
    embedding: int
    vocabulary: int
    merges: int
    """Merges of a BPE vocabulary; 0 for others."""
    key_sizes: tuple[int, ...]
    """Values that a token adds to each layer's K cache; 0 = a layer without attention."""
    value_sizes: tuple[int, ...]
    head_size: int
    """Values of K in one head; a quantised cache needs a multiple of 32."""
    has_window: bool
    """It has sliding-window layers, which need a mask of their own."""
    feed_forward: int
    """Values between the matrices of the widest feed-forward layer, for one token."""
    query: int
    """Values of all query heads of the widest layer, for one token."""
    inner: int
    """Values inside a recurrent layer, for one token; 0 without such layers."""
    state: int
    """Values of all recurrent states of one sequence."""


class _Metadata:
    """The metadata of one architecture. All methods raise ModelFileError."""

    def __init__(self, header: GgufHeader, architecture: str) -> None:
        self._header = header
        self._architecture = architecture

    def integer(self, name: str, default: int | None = None) -> int:
        key = f"{self._architecture}.{name}"
        value = self._header.integer(key)
        if value is None:
            if default is None:
                raise ModelFileError(f"the header lacks {key}")
            return default
        return _bounded(key, value)

    def per_layer(self, name: str, num_layers: int, default: int | None) -> tuple[int, ...]:
        """A value for each layer; the key holds an array, or one value for all."""
        key = f"{self._architecture}.{name}"
        value = self._header.metadata.get(key)
        if not isinstance(value, tuple):
            return (self.integer(name, default),) * num_layers
        if len(value) < num_layers:
            raise ModelFileError(f"{key} has {len(value)} values for {num_layers} layers")
        return tuple(_bounded(key, item) for item in value[:num_layers])

    def array_length(self, key: str) -> int:
        value = self._header.metadata.get(key)
        if isinstance(value, Skipped):
            return value.length
        return len(value) if isinstance(value, tuple) else 0


def read_shape(header: GgufHeader, *, embeds: bool = False) -> GgufShape:
    """Read the shape of a model that generates text, or with `embeds` of one that can embed.
    Raises ModelFileError, also for a model of another kind."""
    architecture = _architecture(header, embeds)
    metadata = _Metadata(header, architecture)
    layers = metadata.integer("block_count")
    if not 0 < layers <= _MAX_LAYERS:
        raise ModelFileError(f"{architecture}.block_count is {layers}, not 1 to {_MAX_LAYERS}")
    embedding = metadata.integer("embedding_length")
    heads = metadata.per_layer("attention.head_count", layers, 0)
    kv_heads = _kv_heads(metadata, layers, heads)
    default_size = embedding // max(1, *heads)
    key_size = _head_size(metadata, "key_length", default_size)
    value_size = _head_size(metadata, "value_length", default_size)
    inner = metadata.integer("ssm.inner_size", 0)
    recurrent = metadata.integer("wkv.head_size", 0)
    return GgufShape(
        architecture=architecture,
        context_length=metadata.integer("context_length", 0),
        embedding=embedding,
        vocabulary=metadata.array_length("tokenizer.ggml.tokens") or metadata.integer("vocab_size"),
        merges=metadata.array_length("tokenizer.ggml.merges"),
        key_sizes=tuple(n * key_size for n in kv_heads),
        value_sizes=tuple(n * value_size for n in kv_heads),
        head_size=key_size,
        has_window=metadata.integer("attention.sliding_window", 0) > 0,
        feed_forward=_feed_forward(metadata, layers),
        query=max(heads) * max(key_size, value_size),
        inner=inner or (embedding if recurrent else 0),
        # Layers with a recurrent state: those without attention, or all if all attend.
        state=_state(metadata, embedding) * (kv_heads.count(0) or layers),
    )


def _architecture(header: GgufHeader, embeds: bool) -> str:
    kind = header.metadata.get("general.type", "model")
    if kind != "model":
        raise ModelFileError(f"this file holds no model, but the type {kind!r}")
    architecture = header.metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise ModelFileError("the header lacks general.architecture")
    if architecture in _NEITHER or (architecture in ENCODERS and not embeds):
        raise ModelFileError(f"a model of the architecture {architecture!r} generates no text")
    if not header.tensors:
        raise ModelFileError("the file holds no tensors, only a vocabulary")
    return architecture


def _kv_heads(metadata: _Metadata, layers: int, heads: tuple[int, ...]) -> tuple[int, ...]:
    """KV heads of each layer; 0 if the layer has a recurrent state instead."""
    # -1 stands for a missing key: then there are as many KV heads as heads.
    found = metadata.per_layer("attention.head_count_kv", layers, -1)
    kv_heads = tuple(h if kv < 0 else kv for h, kv in zip(heads, found, strict=True))
    interval = metadata.integer("full_attention_interval", 0)
    if interval > 1:
        # Qwen3-Next: every interval-th layer attends (the last of each group), others recur.
        return tuple(kv if (i + 1) % interval == 0 else 0 for i, kv in enumerate(kv_heads))
    return kv_heads


def _head_size(metadata: _Metadata, name: str, default: int) -> int:
    """The larger of the sizes in full-attention and in sliding-window layers."""
    size = metadata.integer(f"attention.{name}", default)
    return max(size, metadata.integer(f"attention.{name}_swa", 0))


def _feed_forward(metadata: _Metadata, layers: int) -> int:
    """The widest layer: dense, or the experts that a token uses with the shared ones."""
    dense = max(metadata.per_layer("feed_forward_length", layers, 0))
    expert = metadata.integer("expert_feed_forward_length", dense)
    routed = expert * metadata.integer("expert_used_count", 0)
    shared = metadata.integer(
        "expert_shared_feed_forward_length", expert * metadata.integer("expert_shared_count", 0)
    )
    return max(dense, routed + shared)


def _state(metadata: _Metadata, embedding: int) -> int:
    """Values of a layer's recurrent state of a sequence: llama_hparams::n_embd_r + n_embd_s."""
    wkv_head = metadata.integer("wkv.head_size", 0)
    if wkv_head:
        return metadata.integer("token_shift_count", 2) * embedding + embedding * wkv_head
    short_conv = metadata.integer("shortconv.l_cache", 0)
    if short_conv:
        return embedding * (short_conv - 1)
    inner, state = metadata.integer("ssm.inner_size", 0), metadata.integer("ssm.state_size", 0)
    groups = metadata.integer("ssm.group_count", 0)
    conv = max(0, metadata.integer("ssm.conv_kernel", 0) - 1) * (inner + 2 * groups * state)
    return conv + state * inner


def _bounded(key: str, value: object) -> int:
    if not isinstance(value, int) or not 0 <= value <= _MAX_SIZE:
        raise ModelFileError(f"{key} is {value!r}, which is not a count up to {_MAX_SIZE:,}")
    return value
