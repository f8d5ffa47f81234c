"""The kernels' tests run on the GPU where there is one, else in Triton's interpreter."""

import importlib.util

import pytest

# Every test here needs torch, and the Triton kernels need triton: a host that serves llama.cpp
# alone has neither.
HAS_TORCH = importlib.util.find_spec("torch") is not None
collect_ignore_glob = [] if HAS_TORCH else ["test_*.py"]

if HAS_TORCH:
    import torch

    if not torch.cuda.is_available():
        from tests.kernels.interpreter import prepare

        prepare()
        # Threads that wait for one another cost more than they bring to tensors this small.
        torch.set_num_threads(1)

    @pytest.fixture(scope="session")
    def device() -> torch.device:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
