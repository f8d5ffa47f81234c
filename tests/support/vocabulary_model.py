"""A tiny model with any vocabulary: its answers mean nothing, its tokenizing is llama.cpp's own."""

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np

_WIDTH = 64
_KINDS = gguf.TokenType
BYTES = [(b"<0x%02X>" % byte, _KINDS.BYTE) for byte in range(256)]
SPECIALS = [(b"<unk>", _KINDS.UNKNOWN), (b"<s>", _KINDS.CONTROL), (b"</s>", _KINDS.CONTROL)]

Entries = list[tuple[bytes, gguf.TokenType]]
"""Text and kind of each token, by id."""


def letters(text: str) -> Entries:
    """A token for each character."""
    return [(letter.encode(), _KINDS.NORMAL) for letter in text]


def write(
    path: Path,
    entries: Entries,
    tokenizer: str = "llama",
    more: Callable[[gguf.GGUFWriter], object] = lambda writer: None,
) -> None:
    """Write the model as GGUF. `tokenizer` is one of llama.cpp's (`llama` = SentencePiece, `t5` =
    unigram); `more` adds what the file says of it besides."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(1024)
    writer.add_embedding_length(_WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(_WIDTH)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(_WIDTH)
    writer.add_tokenizer_model(tokenizer)
    writer.add_token_list([text for text, _ in entries])
    writer.add_token_scores([-float(len(text)) for text, _ in entries])
    writer.add_token_types([int(kind) for _, kind in entries])
    writer.add_chat_template("{{ messages[-1].content }}")
    more(writer)
    rng = np.random.default_rng(0)
    vectors = rng.choice(np.array([-1, 1], np.float32), (len(entries), _WIDTH))
    ones, zeros = np.ones(_WIDTH, np.float32), np.zeros((_WIDTH, _WIDTH), np.float32)
    writer.add_tensor("token_embd.weight", vectors)
    writer.add_tensor("output.weight", vectors)
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", ones)
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        writer.add_tensor(f"blk.0.{name}.weight", zeros)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
