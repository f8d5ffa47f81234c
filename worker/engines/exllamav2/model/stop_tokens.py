"""The end tokens of a model, from every place where it declares them.

generation_config.json (a list in most chat models; ExLlamaV2 reads it but does not use it),
config.json, tokenizer_config.json, and special tokens known to end a turn, because the files of a
base model often name only the end of the text.
"""

from typing import Any

from worker.engines.exllamav2.model.folder import ModelFolder, text_of

_TURN_END_TEXTS = (
    "<|im_end|> <|eot_id|> <|eom_id|> <|end_of_text|> <|endoftext|> <|end|> <end_of_turn> "
    "<|END_OF_TURN_TOKEN|> <|END_RESPONSE|> <|eot|> <|end_of_turn|> <EOT> <|return|>"
)
_TURN_ENDS = frozenset(_TURN_END_TEXTS.split())


def special_tokens(folder: ModelFolder) -> dict[str, int]:
    """Text → id of the control tokens."""
    found: dict[str, int] = {}
    added = folder.tokenizer.get("added_tokens")
    for token in added if isinstance(added, list) else []:
        if isinstance(token, dict) and token.get("special") and isinstance(token.get("id"), int):
            found[text_of(token)] = token["id"]
    decoder = folder.tokenizer_config.get("added_tokens_decoder")
    for token_id, token in decoder.items() if isinstance(decoder, dict) else []:
        if isinstance(token, dict) and token.get("special") and token_id.isdecimal():
            found[text_of(token)] = int(token_id)
    return found


def stop_tokens(folder: ModelFolder, token_id_of: dict[str, int]) -> list[int]:
    """The ids, ascending. `token_id_of`: text → id of every token of the vocabulary."""
    found: set[int] = set()
    text_config = folder.config.get("text_config")
    for part in (folder.generation_config, folder.config, text_config):
        if isinstance(part, dict):
            found |= _ids(part.get("eos_token_id"))
    end = text_of(folder.tokenizer_config.get("eos_token"))
    if end in token_id_of:
        found.add(token_id_of[end])
    for text, token_id in special_tokens(folder).items():
        if text in _TURN_ENDS:
            found.add(token_id)
    size = 1 + max(token_id_of.values(), default=-1)
    return sorted(token_id for token_id in found if 0 <= token_id < size)


def _ids(value: Any) -> set[int]:
    values = value if isinstance(value, list) else [value]
    return {v for v in values if isinstance(v, int) and not isinstance(v, bool)}
