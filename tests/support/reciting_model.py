"""A model that recites: after the trigger `<r0>`, `<r1>`, … it says a text of its own and ends."""

from itertools import pairwise
from pathlib import Path

import gguf

from tests.support.counter_model import write_chains

_EOS = 2


def write(path: Path, texts: list[list[str]], template: str, control: tuple[str, ...] = ()) -> None:
    """Write the model. A text is given in tokens, none of which occurs twice in all texts; those
    that are listed in `control` are control tokens."""
    kinds = gguf.TokenType
    entries = [(b"<unk>", kinds.UNKNOWN), (b"<s>", kinds.CONTROL), (b"</s>", kinds.CONTROL)]
    entries += [(b"<0x%02X>" % byte, kinds.BYTE) for byte in range(256)]
    entries += [(char.encode(), kinds.NORMAL) for char in "<>r0123456789\u2581"]
    successors: dict[int, int] = {}
    for number, text in enumerate(texts):
        first = len(entries)
        entries.append((b"<r%d>" % number, kinds.USER_DEFINED))
        for token in text:
            kind = kinds.CONTROL if token in control else kinds.USER_DEFINED
            entries.append((token.encode(), kind))
        successors.update(pairwise([*range(first, len(entries)), _EOS]))
    names, types = zip(*entries, strict=True)
    assert len(set(names)) == len(names), "each token has one successor"
    scores = [-1000.0 if kind == kinds.NORMAL else 0.0 for kind in types]
    write_chains(path, (list(names), [int(kind) for kind in types], scores), successors, template)
