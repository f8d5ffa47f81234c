"""The task of a model, generating or embedding, from the headers of its files."""

from functools import lru_cache
from pathlib import Path

from shared.errors import InvalidModel
from shared.model_spec import ModelSpec
from worker.agent.model_files.errors import ModelFileError
from worker.agent.model_files.gguf import read_header
from worker.agent.model_files.gguf_shape import ENCODERS
from worker.engines.registry import EMBEDDERS

_RANK_POOLING = 4
"""LLAMA_POOLING_TYPE_RANK in llama.h: a reranker."""


def task_of(spec: ModelSpec, path: Path) -> str:
    """Resolve the task of a spec, `auto` included, to `generate` or `embed`. Raises InvalidModel.
    A file that cannot be read counts as `generate`: the estimate, which follows, reports it."""
    if spec.engine not in EMBEDDERS:
        if spec.task == "embed":
            reason = f"task = 'embed': {spec.engine} does not embed, {', '.join(EMBEDDERS)} does."
            raise InvalidModel(reason, param="task")
        return "generate"
    pooling, is_encoder = _pooling_and_kind(path, path.stat().st_mtime_ns)
    embeds = spec.task == "embed" or (spec.task == "auto" and (pooling > 0 or is_encoder))
    if embeds and pooling == _RANK_POOLING:
        reason = f"{spec.name} is a reranker: it scores pairs of texts and gives no embeddings."
        raise InvalidModel(reason, param="path")
    return "embed" if embeds else "generate"


@lru_cache(maxsize=64)
def _pooling_and_kind(path: Path, _changed_at_ns: int) -> tuple[int, bool]:
    """The declared type of pooling (0 = none), and whether the model is an encoder only."""
    try:
        header = read_header(path)
        architecture = header.metadata.get("general.architecture")
        return header.integer(f"{architecture}.pooling_type") or 0, architecture in ENCODERS
    except ModelFileError:
        return 0, False
