"""The kernels' tests run on the GPU where there is one, else in Triton's interpreter."""

import importlib.util
from collections.abc import Callable
from functools import wraps

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

    @pytest.fixture(autouse=True)
    def poison(monkeypatch: pytest.MonkeyPatch) -> None:
        """New tensors are full of NaN: what a kernel leaves unwritten shows, if it is read."""
        for name in ("empty", "empty_like"):
            monkeypatch.setattr(torch, name, _poisoned(getattr(torch, name)))

    def _poisoned(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        @wraps(make)
        def make_and_fill(*args: object, **kwargs: object) -> torch.Tensor:
            made = make(*args, **kwargs)
            return made.fill_(float("nan")) if made.is_floating_point() else made

        return make_and_fill
