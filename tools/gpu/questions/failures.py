"""What ExLlamaV2 does with files that are not whole."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from tools.gpu.questions.parts import config_of, folder_of


def truncated_file() -> dict[str, Any]:
    """Does the loader hang on a weights file that is cut short (ext_stloader.cpp)?

    Expected: it hangs, so this question gives no answer; the agent checks headers before."""
    from exllamav2 import ExLlamaV2

    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "cut"
        shutil.copytree(folder_of("tiny"), folder)
        weights = folder / "model.safetensors"
        with weights.open("r+b") as file:
            file.truncate(weights.stat().st_size // 2)
        config = config_of("tiny")
        config.model_dir = str(folder)
        config.prepare()
        try:
            ExLlamaV2(config).load()
        except Exception as exc:
            return {"raised": repr(exc)[:300]}
    return {"raised": None}
