"""A tiny Hugging Face folder: byte-level tokenizer, config, no weights worth the name."""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

END, IM_START, IM_END = 2, 3, 4
WORDS = ["Hello", "Ġworld", "ST", "OP", "xS"]
"""Tokens of several bytes, which no text is split into but a model may say."""
VOCAB = 352
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": VOCAB,
    "max_position_embeddings": 8192,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "rope_theta": 500000.0,
}


def write(path: Path, **config: Any) -> Path:
    """Write the folder; `config` replaces fields of config.json."""
    path.mkdir(parents=True, exist_ok=True)
    make_tokenizer().save(str(path / "tokenizer.json"))
    _dump(path / "config.json", CONFIG | config)
    _dump(path / "generation_config.json", {"eos_token_id": [2, 4]})
    _dump(
        path / "tokenizer_config.json",
        {"bos_token": "<s>", "eos_token": "</s>", "chat_template": "T", "add_bos_token": True},
    )
    (path / "model.safetensors").write_bytes(b"")
    return path


def make_tokenizer() -> Tokenizer:
    special = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {text: i for i, text in enumerate([*special, *alphabet, *WORDS])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in special])
    return tokenizer


def ids(text: str) -> list[int]:
    """One token a byte."""
    found: list[int] = make_tokenizer().encode(text, add_special_tokens=False).ids
    return found


def word(text: str) -> int:
    """A token of several bytes."""
    token: int | None = make_tokenizer().token_to_id(text)
    assert token is not None
    return token


def _dump(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value))
