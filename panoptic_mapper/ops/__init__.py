"""Loading of the compiled operators `torch.ops.panoptic_mapper.*`. Nothing is loaded until `load()` is called."""

from __future__ import annotations

import logging
import os
import shutil
import threading
from pathlib import Path

import torch

from panoptic_mapper.ops.build import COMPILE_ARGS, LINK_ARGS, source_hash

logger = logging.getLogger(__name__)

_PACKAGE = Path(__file__).resolve().parents[1]
_lock = threading.Lock()
_loaded_from: Path | None = None


def load() -> Path:
    """Loads the operators once and returns the library's file.

    Takes the library that was built with the package if it was built for this torch; else compiles the sources
    (about half a minute, once per version of torch and of the sources) into the user's cache.

    Raises:
        RuntimeError: naming what is missing and the command that brings it.
    """
    global _loaded_from
    with _lock:
        if _loaded_from is None:
            library = ahead_of_time_library() or _compile()
            torch.ops.load_library(str(library))
            from panoptic_mapper.ops import rasterize  # registers autograd and fakes on what was just loaded

            rasterize.register()
            _loaded_from = library
        return _loaded_from


def ahead_of_time_library() -> Path | None:
    """The library that was built with the package, if it was built for this version of torch."""
    marker = f"panoptic_mapper kernels for torch {torch.__version__.split('+')[0]}\0".encode()
    for path in sorted(_PACKAGE.glob("_kernels*.so")):
        if marker in path.read_bytes():
            return path
        logger.warning("%s was built for another torch than %s; not used", path.name, torch.__version__)
    return None


def source_dir() -> Path | None:
    """The folder of the C++ sources: `cuda/` of the checkout, or `cuda_src/` of the installed package."""
    for path in (_PACKAGE.parent / "cuda", _PACKAGE / "cuda_src"):
        if (path / "rasterize.cpp").is_file():
            return path
    return None


def missing_for_compiling() -> str | None:
    """What keeps this machine from compiling the operators, with the command that brings it; None if nothing."""
    if source_dir() is None:
        return "the C++ sources are not in this installation; reinstall with: pip install --force-reinstall --no-deps ."
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        return "no C++ compiler; install one with: sudo apt-get install g++"
    if shutil.which("ninja") is None:
        return "the build tool ninja is missing; install it with: pip install ninja"
    return None


def cache_dir() -> Path:
    """Where compiled operators are kept, one folder per version of torch and of the sources."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    sources = source_dir()
    key = source_hash(sources) if sources else "none"
    return Path(base) / "panoptic_mapper" / f"kernels-torch{torch.__version__}-{key}"


def _compile() -> Path:
    missing = missing_for_compiling()
    if missing is not None:
        raise RuntimeError(f"the CPU operators are not built and cannot be compiled: {missing}")
    from torch.utils import cpp_extension

    sources, folder = source_dir(), cache_dir()
    assert sources is not None
    library = folder / "panoptic_mapper_kernels.so"
    if not library.is_file():
        logger.warning("compiling the CPU operators into %s; this takes about half a minute, once", folder)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        cpp_extension.load(
            "panoptic_mapper_kernels",
            [str(path) for path in sorted(sources.glob("*.cpp"))],
            extra_cflags=COMPILE_ARGS,
            extra_ldflags=LINK_ARGS,
            build_directory=str(folder),
            is_python_module=False,
        )
    except (RuntimeError, OSError) as error:
        raise RuntimeError(f"the CPU operators could not be compiled in {folder}: {error}") from error
    return library
