"""Embedding models whose vectors are known: real GGUF files, and the same arithmetic in numpy.

`write_mean` is the counter model with a declared pooling: attention and MLP add nothing, so a
text's vector is the mean of its tokens' ±1 embeddings. `write_bert` is an encoder with random
weights, `Bert` its reference.

    python -m tests.embedding_model mean|bert OUT.gguf
"""

import os
import sys
from pathlib import Path
from typing import cast

import gguf
import numpy as np
from numpy.typing import NDArray

from tests.support import counter_model

Vector = NDArray[np.float32]
_WORDS = ("the", "a", "cat", "dog", "sat", "ran", "on", "under", "mat", "tree", "red", "not")


def normalized(vector: Vector) -> Vector:
    return cast(Vector, vector / np.linalg.norm(vector))


def write_mean(path: Path, pooling: gguf.PoolingType = gguf.PoolingType.MEAN) -> None:
    """Write the counter model as one that declares a pooling."""
    counter_model.write(path, pooling)


def mean_file(folder: Path) -> str:
    """Name of `write_mean`'s model in a folder, written if it is not there."""
    path = folder / "mean.gguf"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}")
        write_mean(partial)
        partial.rename(path)
    return path.name


def mean_vector(tokens: list[int]) -> Vector:
    """What `write_mean`'s model makes of token ids."""
    return normalized(counter_model.embeddings()[tokens].mean(axis=0))


def number_vector(*numbers: int) -> Vector:
    """What it makes of a text of numbers, such as "17 18"."""
    return mean_vector([1, *map(counter_model.number_token, numbers)])


class Bert:
    """A small BERT: post-norm layers, learned positions, WordPiece."""

    heads = 4
    cls, sep = 2, 3

    def __init__(
        self, *, width: int = 64, layers: int = 2, vocabulary: int = 0, context: int = 512
    ) -> None:
        """`vocabulary`: at least so many tokens."""
        self.width, self.layers, self.context = width, layers, context
        self.feed_forward = 4 * width
        self.tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        self.tokens += ["\u2581" + word for word in _WORDS] + ["ting", "s"]
        self.tokens += [f"\u2581w{i}" for i in range(vocabulary - len(self.tokens))]
        rng = np.random.default_rng(7)
        self.tensors: dict[str, Vector] = {}

        def add(name: str, *shape: int, around: float = 0.0) -> None:
            values = around + 0.3 * rng.standard_normal(shape)
            self.tensors[name] = values.astype(np.float32)

        def add_norm(name: str) -> None:
            add(f"{name}.weight", width, around=1.0)
            add(f"{name}.bias", width)

        add("token_embd.weight", len(self.tokens), width)
        add("token_types.weight", 2, width)
        add("position_embd.weight", self.context, width)
        add_norm("token_embd_norm")
        for i in range(layers):
            for name, rows, columns in (
                *((f"attn_{part}", width, width) for part in ("q", "k", "v", "output")),
                ("ffn_up", self.feed_forward, width),
                ("ffn_down", width, self.feed_forward),
            ):
                add(f"blk.{i}.{name}.weight", rows, columns)
                add(f"blk.{i}.{name}.bias", rows)
            add_norm(f"blk.{i}.attn_output_norm")
            add_norm(f"blk.{i}.layer_output_norm")

    def write(
        self,
        path: Path,
        pooling: gguf.PoolingType | None = gguf.PoolingType.MEAN,
        *,
        tokenizer: str = "bert",
    ) -> None:
        """`tokenizer`: WordPiece, or t5, which is Unigram."""
        writer = gguf.GGUFWriter(path, "bert")
        writer.add_context_length(self.context)
        writer.add_embedding_length(self.width)
        writer.add_block_count(self.layers)
        writer.add_feed_forward_length(self.feed_forward)
        writer.add_head_count(self.heads)
        writer.add_layer_norm_eps(1e-12)
        writer.add_causal_attention(False)
        if pooling is not None:
            writer.add_pooling_type(pooling)
        writer.add_tokenizer_model(tokenizer)
        writer.add_token_list(self.tokens)
        writer.add_token_scores([-1.0] * len(self.tokens))
        writer.add_token_types([3] * 5 + [1] * (len(self.tokens) - 5))
        writer.add_token_type_count(2)
        writer.add_pad_token_id(0)
        writer.add_unk_token_id(1)
        writer.add_bos_token_id(self.cls)
        writer.add_eos_token_id(self.sep)
        writer.add_sep_token_id(self.sep)
        writer.add_mask_token_id(4)
        for name, values in self.tensors.items():
            writer.add_tensor(name, values)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    def token_ids(self, text: str) -> list[int]:
        """Of known, whole words."""
        words = [self.tokens.index("\u2581" + word) for word in text.split()]
        return [self.cls, *words, self.sep]

    def vector(self, tokens: list[int], pooling: str = "mean") -> Vector:
        """The reference: attention is all you need, in numpy."""
        t, n = self.tensors, len(tokens)
        x = t["token_embd.weight"][tokens] + t["token_types.weight"][0]
        x = self._norm("token_embd_norm", x + t["position_embd.weight"][:n])
        for i in range(self.layers):
            x = self._norm(f"blk.{i}.attn_output_norm", x + self._attention(i, x))
            up = self._linear(f"blk.{i}.ffn_up", x)
            gelu = 0.5 * up * (1 + np.tanh(np.sqrt(2 / np.pi) * (up + 0.044715 * up**3)))
            x = self._norm(
                f"blk.{i}.layer_output_norm", x + self._linear(f"blk.{i}.ffn_down", gelu)
            )
        pooled = {"mean": x.mean(axis=0), "cls": x[0], "last": x[-1]}[pooling]
        return normalized(pooled)

    def _attention(self, i: int, x: Vector) -> Vector:
        def heads(part: str) -> Vector:
            rows = self._linear(f"blk.{i}.attn_{part}", x)
            return rows.reshape(len(x), self.heads, -1).transpose(1, 0, 2)

        q, k, v = heads("q"), heads("k"), heads("v")
        scores = q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        return self._linear(
            f"blk.{i}.attn_output", (weights @ v).transpose(1, 0, 2).reshape(x.shape)
        )

    def _linear(self, name: str, x: Vector) -> Vector:
        return cast(Vector, x @ self.tensors[f"{name}.weight"].T + self.tensors[f"{name}.bias"])

    def _norm(self, name: str, x: Vector) -> Vector:
        centred = x - x.mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-12)
        return cast(Vector, scaled * self.tensors[f"{name}.weight"] + self.tensors[f"{name}.bias"])


if __name__ == "__main__":
    kind, target = sys.argv[1:]
    if kind == "bert":
        Bert().write(Path(target))
    else:
        write_mean(Path(target))
