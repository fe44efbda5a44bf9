"""What the compiled operators are built from. Imports nothing but the standard library: setup.py loads it by path."""

from __future__ import annotations

import hashlib
from pathlib import Path

EXTENSION_NAME = "panoptic_mapper._kernels"
# No -march=native: the binary must run elsewhere; the kernels pick their instruction set when they start.
COMPILE_ARGS = ["-O3", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"]
LINK_ARGS = ["-fopenmp"]
CUDA_DEFINE = "-DPANOPTIC_MAPPER_WITH_CUDA"  # compiles the hand-over to the kernels into the C++ files
NVCC_ARGS = ["-O3"]
CUDA_ARCHITECTURES = "8.0;8.7;9.0;12.0+PTX"  # what is built ahead of time where there is no GPU to ask
CUDA_MARKER = b"panoptic_mapper kernels for CUDA\0"  # in libraries that hold the CUDA kernels


def extension_sources(repo_root: str | Path, with_cuda: bool = False) -> list[str]:
    """The files that the operators are compiled from, as paths relative to `repo_root`, sorted."""
    root = Path(repo_root)
    return sorted(str(path.relative_to(root)) for path in source_files(root / "cuda", with_cuda))


def source_files(folder: Path, with_cuda: bool) -> list[Path]:
    """The C++ files, and with CUDA its kernels, sorted."""
    return sorted([*folder.glob("*.cpp"), *(folder.glob("*.cu") if with_cuda else ())])


def source_hash(source_dir: Path) -> str:
    """A short hash of all sources (headers too) and flags: the name of the cached build."""
    digest = hashlib.sha256(" ".join([*COMPILE_ARGS, *NVCC_ARGS]).encode())
    for path in sorted(source_dir.iterdir()):
        if path.suffix in (".cpp", ".cu", ".h", ".inc"):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
