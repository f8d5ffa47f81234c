"""Fixtures of the tests that need a GPU: `make test-gpu`. Without one every test is skipped."""

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import TEST_FILES, Service
from tests.gpu import models
from tests.gpu.service import gpu_service

_FOLDER = TEST_FILES / "gpu-models"
"""Kept between runs."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = _missing()
    for item in items:
        if Path(__file__).parent not in item.path.parents:
            continue
        item.add_marker(pytest.mark.gpu)
        if missing:
            item.add_marker(pytest.mark.skip(reason=f"needs {missing}; see docs/gpu.md"))


def _missing() -> str:
    for package in ("torch", "exllamav2"):
        if importlib.util.find_spec(package) is None:
            return package
    import torch

    return "" if torch.cuda.is_available() else "a CUDA device"


@pytest.fixture(scope="session")
def model_folder() -> Callable[[str], Path]:
    """Kind of `tests.gpu.models` → its folder, written when first asked for."""
    return lambda kind: models.write(kind, _FOLDER / kind)


@pytest.fixture(scope="module")
def service(
    model_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """A whole service with the counter models on the GPU."""
    for kind in ("counter-fp16", "counter-gptq"):
        model_folder(kind)
    with gpu_service(tmp_path_factory.mktemp("llmis"), _FOLDER) as running:
        yield running
