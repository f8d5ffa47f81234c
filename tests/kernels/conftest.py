"""The kernels' tests run on the GPU where there is one, else in Triton's interpreter."""

import importlib.util

import pytest

# A host that serves llama.cpp alone has neither; the tools of development bring both.
HAS_LIBRARIES = all(importlib.util.find_spec(name) for name in ("torch", "triton"))
collect_ignore_glob = [] if HAS_LIBRARIES else ["test_*.py"]

if HAS_LIBRARIES:
    import torch

    if not torch.cuda.is_available():
        from tests.kernels.interpreter import prepare

        prepare()
        # What needs other hardware is not collected, not skipped: `make test-gpu` runs it.
        collect_ignore_glob = ["test_on_gpu.py"]
        # Threads that wait for one another cost more than they bring to tensors this small.
        torch.set_num_threads(1)

    @pytest.fixture(scope="session")
    def device() -> torch.device:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
