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
from panoptic_mapper.ops.build import (
    COMPILE_ARGS,
    CUDA_DEFINE,
    CUDA_MARKER,
    LINK_ARGS,
    NVCC_ARGS,
    source_files,
    source_hash,
)
from panoptic_mapper.resources import PACKED_FOLDERS, resource_path

logger = logging.getLogger(__name__)

_lock = threading.Lock()
_loaded_from: Path | None = None


def load() -> Path:
    """Loads the operators once and returns the library's file.

    Takes the library that was built with the package if it was built for this torch; else the one in the user's
    cache; else compiles the sources into that cache (about a minute, once per version of torch and of the sources).
    Where there are a GPU and nvcc, each of these has the CUDA kernels too; with a GPU but no nvcc, operators on CUDA
    tensors take a detour over the CPU, which is logged.

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
            _register(library)
            _loaded_from = library
        return _loaded_from


def _register(library: Path) -> None:
    """Registers autograd and fakes on what was just loaded."""
    from panoptic_mapper.ops import (
        cpu_fallback,
        label_warp,
        local_cross_attention,
        losses,
        map_rows,
        rasterize,
        whitening,
    )

    for module in (rasterize, local_cross_attention, label_warp, losses, map_rows, whitening):
        module.register()
    if torch.cuda.is_available() and CUDA_MARKER not in library.read_bytes():
        logger.warning(
            "the CUDA kernels are not built, and nvcc is missing: what they do for maps on the GPU is done on"
            " the CPU, slowly; install the CUDA toolkit %s and put its bin/ on the PATH",
            torch.version.cuda,
        )
        cpu_fallback.register()


def raise_device_errors() -> None:
    """Raises what the CUDA kernels that have finished found wrong in the values of their arguments.

    Does not wait for the device: synchronise first to learn of all kernels launched so far. The next call of an
    operator does the same.

    Raises:
        IndexError, ValueError: naming the argument.
    """
    load()
    torch.ops.panoptic_mapper.raise_device_errors()


def compiles_cuda() -> bool:
    """Whether the CUDA kernels can be compiled and run here: a GPU, a torch that finds it, and nvcc."""
    from torch.utils.cpp_extension import CUDA_HOME

    if not torch.cuda.is_available() or torch.version.cuda is None or CUDA_HOME is None:
        return False
    return (Path(CUDA_HOME) / "bin/nvcc").is_file()


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
            elif compiles_cuda() and CUDA_MARKER not in path.read_bytes():
                logger.warning("%s was built without CUDA kernels; not used", path)
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
    name = f"kernels-torch{torch.__version__}{_cuda_tag()}-{platform.machine()}-{source_hash(sources)}.so"
    return base / "panoptic_mapper" / name


def _cuda_tag() -> str:
    """For which GPUs the CUDA kernels are compiled, e.g. "-sm90"; empty without."""
    if not compiles_cuda():
        return ""
    capabilities = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
    return "".join(f"-sm{major}{minor}" for major, minor in sorted(capabilities))


def _search_path() -> str:
    """PATH with this interpreter's folder first: ninja is there when the environment is not activated."""
    return os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))


def _compile_and_load() -> Path:
    missing = missing_for_compiling()
    if missing is not None:
        raise RuntimeError(f"the operators are not built and cannot be compiled: {missing}")
    from torch.utils import cpp_extension

    sources, library = source_dir(), _cache_file()
    assert sources is not None
    assert library is not None
    with_cuda = compiles_cuda()
    devices = "the CPU and CUDA" if with_cuda else "the CPU"
    logger.warning("compiling the operators for %s into %s; this takes about a minute, once", devices, library)
    path = os.environ.get("PATH")
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        os.environ["PATH"] = _search_path()
        # A folder of this run's own, and a rename at the end: neither a second process nor a kill leaves half a file.
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            cpp_extension.load(
                "panoptic_mapper_kernels",
                [str(source) for source in source_files(sources, with_cuda)],
                extra_cflags=[*COMPILE_ARGS, *([CUDA_DEFINE] if with_cuda else [])],
                extra_cuda_cflags=NVCC_ARGS,
                extra_ldflags=LINK_ARGS,
                build_directory=folder,
                is_python_module=False,
            )
            os.replace(Path(folder) / "panoptic_mapper_kernels.so", library)
    except (RuntimeError, OSError) as error:
        raise RuntimeError(f"the operators could not be compiled into {library}: {error}") from error
    finally:
        if path is None:
            del os.environ["PATH"]
        else:
            os.environ["PATH"] = path
    return library
