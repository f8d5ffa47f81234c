"""The counter model: a real model file whose greedy output is known in advance.

Token " 17" is followed by " 18", " 999" by " 0": random ±1 embeddings, attention and MLP that
add nothing, and an output matrix that holds each token's embedding in the row of its successor.
Through the real engine every lost, doubled or swapped token shows. Three triggers besides:
`<stop>` ends the text, `<euro>` and `<smile>` continue with the bytes of € and 😀, one a token,
and then count from 0.

    python -m tests.counter_model OUT.gguf
"""

import sys
from itertools import pairwise
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

NUMBERS = 1000
_WIDTH = 64
_CONTEXT = 32768
_EOS = 2
_BYTE_0 = 3
_TEMPLATE = "{{ messages[-1].content }}"


def expected_text(start: int, num_tokens: int) -> str:
    """What the model says after a prompt that ends in the number `start`."""
    return "".join(f" {(start + 1 + i) % NUMBERS}" for i in range(num_tokens))


def number_token(number: int) -> int:
    """Token id of a number."""
    return _vocabulary()[0].index(f"\u2581{number}".encode())


def trigger_token(text: str) -> int:
    """Token id of `<stop>`, `<euro>` or `<smile>`."""
    return _vocabulary()[0].index(text.encode())


def embeddings() -> NDArray[np.float32]:
    """The vectors of all tokens, by id."""
    return _vectors(len(_vocabulary()[0]))


def _vectors(number: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(0)
    return rng.choice(np.array([-1, 1], np.float32), (number, _WIDTH))


def write(
    path: Path,
    pooling: gguf.PoolingType | None = None,
    *,
    template: str | list[dict[str, str]] = _TEMPLATE,
    norm: float = 1.0,
    nan_token: int | None = None,
) -> None:
    """Write the model as GGUF; with a pooling type it declares itself one that embeds. `template`:
    its chat template, or several with their names. `norm` is the weight of the last norm: with NaN
    no logits are valid. The vector of `nan_token` is NaN."""
    vocabulary = _vocabulary()
    write_chains(
        path,
        vocabulary,
        _successors(vocabulary[0]),
        template,
        pooling,
        norm=norm,
        nan_token=nan_token,
    )


def write_chains(
    path: Path,
    vocabulary: tuple[list[bytes], list[int], list[float]],
    successors: dict[int, int],
    template: str | list[dict[str, str]],
    pooling: gguf.PoolingType | None = None,
    *,
    norm: float = 1.0,
    nan_token: int | None = None,
) -> None:
    """Write a model in which each token is followed by its successor. `vocabulary`: texts, types
    and scores, of which the first three are `<unk>`, `<s>` and `</s>`."""
    tokens, types, scores = vocabulary
    vectors = _vectors(len(tokens))
    output = np.zeros_like(vectors)
    for token, successor in successors.items():
        output[successor] += vectors[token]
    _check(vectors, output, successors)

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("counter")
    writer.add_context_length(_CONTEXT)
    writer.add_embedding_length(_WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(_WIDTH)
    writer.add_head_count(1)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(_WIDTH)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(_EOS)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(True)
    writer.add_chat_template(template)
    if pooling is not None:
        writer.add_pooling_type(pooling)
    if nan_token is not None:
        vectors[nan_token] = np.nan
    ones, zeros = np.ones(_WIDTH, np.float32), np.zeros((_WIDTH, _WIDTH), np.float32)
    writer.add_tensor("token_embd.weight", vectors)
    writer.add_tensor("output_norm.weight", np.float32(norm) * ones)
    writer.add_tensor("output.weight", output)
    writer.add_tensor("blk.0.attn_norm.weight", ones)
    writer.add_tensor("blk.0.ffn_norm.weight", ones)
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        writer.add_tensor(f"blk.0.{name}.weight", zeros)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _vocabulary() -> tuple[list[bytes], list[int], list[float]]:
    kinds = gguf.TokenType
    entries = [(b"<unk>", kinds.UNKNOWN, 0.0), (b"<s>", kinds.CONTROL, 0.0)]
    entries.append((b"</s>", kinds.CONTROL, 0.0))
    entries += [(b"<0x%02X>" % byte, kinds.BYTE, 0.0) for byte in range(256)]
    entries += [(t, kinds.USER_DEFINED, 0.0) for t in (b"<stop>", b"<euro>", b"<smile>")]
    # SentencePiece merges the pair with the best score: " 1" + "7" before anything longer.
    entries += [(c.encode(), kinds.NORMAL, -1000.0) for c in "0123456789\u2581"]
    entries += [(f"\u2581{n}".encode(), kinds.NORMAL, -len(str(n))) for n in range(NUMBERS)]
    texts, types, scores = zip(*entries, strict=True)
    return list(texts), [int(t) for t in types], [float(s) for s in scores]


def _successors(tokens: list[bytes]) -> dict[int, int]:
    ids = {text: i for i, text in enumerate(tokens)}
    zero = ids["\u25810".encode()]
    successors = {zero + n: zero + (n + 1) % NUMBERS for n in range(NUMBERS)}
    successors[ids[b"<stop>"]] = _EOS
    for trigger, text in ((b"<euro>", "€"), (b"<smile>", "😀")):
        chain = [ids[trigger], *(_BYTE_0 + byte for byte in text.encode()), zero]
        successors.update(pairwise(chain))
    return successors


def _check(embeddings: np.ndarray, output: np.ndarray, successors: dict[int, int]) -> None:
    """The right successor leads by so much that sampling at temperature 1 finds it too."""
    logits = embeddings[list(successors)] @ output.T
    best = logits.argmax(axis=1)
    assert list(best) == list(successors.values())
    logits.sort(axis=1)
    assert (logits[:, -1] - logits[:, -2]).min() >= 12


if __name__ == "__main__":
    write(Path(sys.argv[1]))
