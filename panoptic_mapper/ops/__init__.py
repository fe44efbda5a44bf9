"""Loading of the compiled operators `torch.ops.panoptic_mapper.*`. Nothing is loaded until `load()` is called."""

from __future__ import annotations

import logging
import os
import platform
import shutil
import sys
import tempfile
import threading
from pathlib import Path

import torch

import panoptic_mapper
from panoptic_mapper.ops.build import COMPILE_ARGS, LINK_ARGS, source_hash
from panoptic_mapper.resources import PACKED_FOLDERS, resource_path

logger = logging.getLogger(__name__)

_lock = threading.Lock()
_loaded_from: Path | None = None


def load() -> Path:
    """Loads the operators once and returns the library's file.

    Takes the library that was built with the package if it was built for this torch; else the one in the user's
    cache; else compiles the sources into that cache (about a minute, once per version of torch and of the sources).

    Raises:
        RuntimeError: naming what is missing and the command that brings it.
    """
    global _loaded_from
    with _lock:
        if _loaded_from is None:
            library = ahead_of_time_library() or cached_library()
            if library is None:
                library = _compile_and_load()
            else:
                torch.ops.load_library(str(library))
            from panoptic_mapper.ops import rasterize  # registers autograd and fakes on what was just loaded

            rasterize.register()
            _loaded_from = library
        return _loaded_from


def ahead_of_time_library() -> Path | None:
    """The library that was built with the package, if it was built for this torch and from the present sources.

    A checkout, which comes first on sys.path, takes that of the installed package while their sources are the same.
    """
    marker = f"panoptic_mapper kernels for torch {torch.__version__.split('+')[0]}\0".encode()
    sources = source_dir()
    for package in map(Path, panoptic_mapper.__path__):
        for path in sorted(package.glob("_kernels*.so")):
            if marker not in path.read_bytes():
                logger.warning("%s was built for another torch than %s; not used", path, torch.__version__)
            elif sources is not None and not _is_built_from(sources, path):
                logger.warning("%s was built from other sources than %s; not used", path, sources)
            else:
                return path
    return None


def _is_built_from(sources: Path, library: Path) -> bool:
    """Whether the sources packed beside the library are these; without packed ones, whether it is newer than these."""
    packed = library.parent / PACKED_FOLDERS["cuda"]
    if packed.is_dir():
        return packed == sources or source_hash(packed) == source_hash(sources)
    return all(file.stat().st_mtime <= library.stat().st_mtime for file in sources.iterdir())


def source_dir() -> Path | None:
    """The folder of the C++ sources: `cuda/` of the checkout, or `cuda_src/` of the installed package."""
    try:
        return resource_path("cuda")
    except FileNotFoundError:
        return None


def missing_for_compiling() -> str | None:
    """What keeps this machine from compiling the operators, with the command that brings it; None if nothing."""
    if source_dir() is None:
        return "the C++ sources are not in this installation; reinstall with: pip install --force-reinstall --no-deps ."
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        return "no C++ compiler; install one with: sudo apt-get install g++"
    if shutil.which("ninja", path=_search_path()) is None:
        return f"the build tool ninja is missing; install it with: {sys.executable} -m pip install ninja"
    return None


def cached_library() -> Path | None:
    """The library that an earlier run compiled from these sources for this torch."""
    path = _cache_file()
    return path if path is not None and path.is_file() else None


def _cache_file() -> Path | None:
    sources = source_dir()
    if sources is None:
        return None
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = f"kernels-torch{torch.__version__}-{platform.machine()}-{source_hash(sources)}.so"
    return base / "panoptic_mapper" / name


def _search_path() -> str:
    """PATH with this interpreter's folder first: ninja is there when the environment is not activated."""
    return os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))


def _compile_and_load() -> Path:
    missing = missing_for_compiling()
    if missing is not None:
        raise RuntimeError(f"the CPU operators are not built and cannot be compiled: {missing}")
    from torch.utils import cpp_extension

    sources, library = source_dir(), _cache_file()
    assert sources is not None
    assert library is not None
    logger.warning("compiling the CPU operators into %s; this takes about a minute, once", library)
    path = os.environ.get("PATH")
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        os.environ["PATH"] = _search_path()
        # A folder of this run's own, and a rename at the end: neither a second process nor a kill leaves half a file.
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            cpp_extension.load(
                "panoptic_mapper_kernels",
                [str(source) for source in sorted(sources.glob("*.cpp"))],
                extra_cflags=COMPILE_ARGS,
                extra_ldflags=LINK_ARGS,
                build_directory=folder,
                is_python_module=False,
            )
            os.replace(Path(folder) / "panoptic_mapper_kernels.so", library)
    except (RuntimeError, OSError) as error:
        raise RuntimeError(f"the CPU operators could not be compiled into {library}: {error}") from error
    finally:
        if path is None:
            del os.environ["PATH"]
        else:
            os.environ["PATH"] = path
    return library
