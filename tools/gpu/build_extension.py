"""Build ExLlamaV2's C++/CUDA extension once, and put it where `import exllamav2` finds it.

    python tools/gpu/build_extension.py FOLDER

exllamav2 imports `exllamav2_ext` if that is on the path, and compiles it at import otherwise:
minutes in the first request's way, and a build that was killed leaves a lock on which the next
import waits for ever. So it is compiled here, beforehand, from a copy of the sources with the
known fixes, under FOLDER/<key>/, and a .pth file makes it importable. The key names what the
binary is bound to: versions of exllamav2, torch and Python, and the GPU's architecture.

FOLDER/<key>.so.xz, a build that was taken along, is unpacked instead. Prints the path.
Must run in the Python that will use it. Never imports exllamav2.
"""

import fcntl
import importlib.metadata
import importlib.util
import lzma
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

_NAME = "exllamav2_ext"
_FIXES = {
    # `register` is ill-formed since C++17: a warning of nvcc 13.0, an error elsewhere.
    "cuda/q_mlp_softmax.cuh": (re.compile(r"\bregister float\b"), "float")
}
_CXX_FLAGS = ["-Ofast"]
_NVCC_FLAGS = ["-O3"]
"""As in exllamav2/ext.py, less -lineinfo, which only makes the binary larger."""
_CXX20_SINCE = (13, 3)
"""From this nvcc on, torch's headers need C++20 (ginkgo-project/ginkgo#2031)."""
_HEADERS = ("cublas_v2.h", "cusparse.h", "cusolverDn.h", "curand_kernel.h")


def main(folder: Path) -> int:
    import torch
    from torch.utils import cpp_extension

    if torch.version.cuda is None or cpp_extension.CUDA_HOME is None:
        print("build_extension: needs a torch with CUDA, and nvcc", file=sys.stderr)
        return 1
    arch = os.environ.get("TORCH_CUDA_ARCH_LIST") or _device_arch()
    if not arch:
        print("build_extension: no CUDA device; set TORCH_CUDA_ARCH_LIST", file=sys.stderr)
        return 1
    os.environ["TORCH_CUDA_ARCH_LIST"] = arch
    os.environ.setdefault("MAX_JOBS", str(len(os.sched_getaffinity(0))))
    folder.mkdir(parents=True, exist_ok=True)
    home = folder / _key(torch.__version__, arch)
    with (folder / f"{home.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        library = home / f"{_NAME}.so"
        if not library.exists():
            _obtain(home, Path(cpp_extension.CUDA_HOME))
    _make_importable(home)
    _check()
    print(library)
    return 0


def _key(torch_version: str, arch: str) -> str:
    exllamav2 = importlib.metadata.version("exllamav2")
    parts = (exllamav2, f"torch{torch_version}", sys.implementation.cache_tag, f"sm{arch}")
    return re.sub(r"[^\w.+-]", "_", "-".join(parts))


def _device_arch() -> str:
    """The compute capability of the first device, such as "9.0"; exllamav2's own way of asking
    torch trips over names such as sm_90a."""
    import torch

    if not torch.cuda.is_available():
        return ""
    return ".".join(map(str, torch.cuda.get_device_capability()))


def _obtain(home: Path, cuda_home: Path) -> None:
    """Unpack the build that was taken along, or compile."""
    packed = home.with_name(home.name + ".so.xz")
    build = home.with_name(home.name + ".partial")
    shutil.rmtree(build, ignore_errors=True)
    (build / "lib").mkdir(parents=True)
    target = build / "lib" / f"{_NAME}.so"
    if packed.exists():
        with lzma.open(packed) as source, target.open("wb") as out:
            shutil.copyfileobj(source, out)
    else:
        started = time.monotonic()
        shutil.move(_compile(build, cuda_home), target)
        print(f"compiled in {time.monotonic() - started:.0f} s", file=sys.stderr)
        subprocess.run(["strip", "--strip-debug", str(target)], check=False)
    shutil.rmtree(home, ignore_errors=True)
    (build / "lib").rename(home)
    shutil.rmtree(build, ignore_errors=True)


def _compile(build: Path, cuda_home: Path) -> Path:
    from torch.utils import cpp_extension

    sources = build / "sources"
    shutil.copytree(_package_folder() / _NAME, sources)
    for name, (pattern, replacement) in _FIXES.items():
        path = sources / name
        path.write_text(pattern.sub(replacement, path.read_text()))
    _add_headers(cuda_home)
    files = sorted(str(p) for p in sources.rglob("*") if p.suffix in (".cpp", ".cu"))
    objects = build / "objects"
    objects.mkdir()
    standard = ["-std=c++20"] if _nvcc_version(cuda_home) >= _CXX20_SINCE else []
    cpp_extension.load(
        name=_NAME,
        sources=files,
        extra_include_paths=[str(sources)],
        extra_cflags=_CXX_FLAGS + standard,
        extra_cuda_cflags=_NVCC_FLAGS + standard,
        build_directory=str(objects),
        verbose=True,
    )
    return objects / f"{_NAME}.so"


def _package_folder() -> Path:
    spec = importlib.util.find_spec("exllamav2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("build_extension: exllamav2 is not installed")
    return Path(spec.submodule_search_locations[0])


def _add_headers(cuda_home: Path) -> None:
    """Where the toolkit lacks the headers of the math libraries, use those of pip's packages."""
    include = cuda_home / "include"
    if all((include / header).exists() for header in _HEADERS):
        return
    roots = {Path(p) for p in sys.path if p.endswith("-packages")}
    found = {
        path.parent
        for root in sorted(roots)
        for header in _HEADERS
        for path in root.glob(f"nvidia/**/include/{header}")
    }
    known = os.environ.get("CPATH", "")
    os.environ["CPATH"] = os.pathsep.join(filter(None, [known, *sorted(map(str, found))]))


def _nvcc_version(cuda_home: Path) -> tuple[int, int]:
    said = subprocess.run(
        [str(cuda_home / "bin" / "nvcc"), "--version"], capture_output=True, text=True, check=True
    ).stdout
    match = re.search(r"release (\d+)\.(\d+)", said)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _make_importable(home: Path) -> None:
    site = Path(sysconfig.get_paths()["purelib"])
    (site / "llmis_exllamav2_ext.pth").write_text(f"{home.resolve()}\n")


def _check() -> None:
    """Import the whole package in a fresh process: this one has not read the .pth file."""
    code = "import torch, exllamav2_ext, exllamav2; print(exllamav2.__version__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"build_extension: exllamav2 cannot be imported:\n{done.stderr[-3000:]}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(main(Path(sys.argv[1])))
