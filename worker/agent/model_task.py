"""What a model is for: to generate text, or to embed it. Read from the files' headers."""

from functools import lru_cache
from pathlib import Path

from shared.errors import InvalidModel
from shared.lifecycle import ModelSpec
from worker.agent.gguf_header import GgufHeader, read_header
from worker.agent.gguf_shape import ENCODERS
from worker.agent.model_file import ModelFileError
from worker.engines import EMBEDDERS

_RANK_POOLING = 4


def task_of(spec: ModelSpec, path: Path) -> str:
    """`generate` or `embed`, for a spec that may say auto. Raises InvalidModel.

    A file that cannot be read generates: the estimate, which is next, says what is wrong."""
    if spec.engine not in EMBEDDERS:
        if spec.task == "embed":
            raise InvalidModel(
                f"task = 'embed': {spec.engine} does not embed, {', '.join(EMBEDDERS)} does.",
                param="task",
            )
        return "generate"
    pooling, is_encoder = _facts(path, path.stat().st_mtime_ns)
    embeds = spec.task == "embed" or (spec.task == "auto" and (pooling > 0 or is_encoder))
    if embeds and pooling == _RANK_POOLING:
        raise InvalidModel(
            f"{spec.name} is a reranker: it gives a pair of texts a score, and no embeddings.",
            param="path",
        )
    return "embed" if embeds else "generate"


@lru_cache(maxsize=64)
def _facts(path: Path, _changed_at_ns: int) -> tuple[int, bool]:
    """The declared type of pooling, 0 = none, and whether the model is an encoder alone."""
    try:
        header = read_header(path)
        architecture = header.metadata.get("general.architecture")
        return _pooling(header), architecture in ENCODERS
    except ModelFileError:
        return 0, False


def _pooling(header: GgufHeader) -> int:
    architecture = header.metadata.get("general.architecture")
    return header.integer(f"{architecture}.pooling_type") or 0
