"""What `tools/gpu/prepare` made is what runs."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from tests.conftest import ROOT


def _run(code: str) -> str:
    """In a process of its own, whose import order is known."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


def test_the_extension_is_the_one_that_was_built_beforehand() -> None:
    """Or every replica would compile it at its first import."""
    where = _run("import torch, exllamav2.ext as ext; print(ext.build_jit, ext.ext_c.__file__)")
    is_jit, path = where.splitlines()[-1].split(" ", 1)
    assert is_jit == "False"
    home = Path(path).parent
    assert home.parent == ROOT / "var" / "exl2-build"
    assert version("exllamav2") == "0.3.2"
    assert home.name.startswith("0.3.2-torch")


def test_the_extension_was_built_for_this_device() -> None:
    import torch

    code = "import torch, exllamav2_ext; print(exllamav2_ext.__file__)"
    major, minor = torch.cuda.get_device_capability()
    assert f"-sm{major}.{minor}" in _run(code)


def test_a_kernel_of_the_extension_runs() -> None:
    """RMS norm against torch."""
    code = """
import torch
from exllamav2.ext import ext_c
x = torch.randn(7, 256, device="cuda").half()
w = torch.randn(256, device="cuda").half()
y = torch.empty_like(x)
ext_c.rms_norm(x, w, y, 1e-6)
expected = x.double() * (x.double().pow(2).mean(1, keepdim=True) + 1e-6).rsqrt() * w.double()
print(float((y.double() - expected).norm() / expected.norm()))
"""
    assert float(_run(code).splitlines()[-1]) < 2e-3
