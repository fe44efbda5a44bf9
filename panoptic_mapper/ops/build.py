"""What the compiled operators are built from. Imports nothing but the standard library: setup.py loads it by path."""

from __future__ import annotations

import hashlib
from pathlib import Path

EXTENSION_NAME = "panoptic_mapper._kernels"
# No -march=native: the binary must run elsewhere; the kernels pick their instruction set when they start.
COMPILE_ARGS = ["-O3", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"]
LINK_ARGS = ["-fopenmp"]


def extension_sources(repo_root: str | Path) -> list[str]:
    """The C++ files of the operators, as paths relative to `repo_root`, sorted."""
    root = Path(repo_root)
    return sorted(str(path.relative_to(root)) for path in (root / "cuda").glob("*.cpp"))


def source_hash(source_dir: Path) -> str:
    """A short hash of all C++ files (headers too) and flags: the name of the cached build."""
    digest = hashlib.sha256(" ".join(COMPILE_ARGS).encode())
    for path in sorted(source_dir.iterdir()):
        if path.suffix in (".cpp", ".h", ".inc"):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
