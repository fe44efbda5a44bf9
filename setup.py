"""The parts of a pip installation that pyproject.toml cannot state: messages, kernels, files beside the package.

A colcon workspace builds with CMakeLists.txt alone and never reads this file. Here the same CMakeLists.txt is run when
the ROS 2 interface generators can be found, and what it installs is packed into the wheel: the generated
`panoptic_mapper.msg` and `.srv`, the type support libraries for <prefix>/lib, and <prefix>/share with the ament index.

Environment, each `auto` (build it where it can be built), `on` (fail where it cannot) or `off`:
    PANOPTIC_MAPPER_INTERFACES   the messages and services
    PANOPTIC_MAPPER_KERNELS      the C++ kernels, and the CUDA ones where nvcc and a torch for CUDA are there; without
                                 them they are compiled on first use
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.build_py import build_py

NAME = "panoptic_mapper"
ROOT = Path(__file__).resolve().parent


def is_wanted(variable: str, missing: str | None) -> bool:
    """Whether to build a part, given what is missing for it (None = nothing)."""
    mode = os.environ.get(variable, "auto")
    if mode not in ("auto", "on", "off"):
        raise SystemExit(f"{variable}: expected auto, on or off, got '{mode}'")
    if mode == "on" and missing:
        raise SystemExit(f"{variable}=on, but {missing}")
    return mode != "off" and not missing


def ros_prefixes() -> list[Path]:
    """Prefixes that may hold ROS packages: a sourced ROS first, then environments with the pip wheels."""
    sourced = [Path(p) for p in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if p]
    # The wheels put share/ beside lib/ of the environment; <prefix>/lib/python3.x/site-packages is on sys.path.
    wheels = [Path(p).parents[2] for p in sys.path if p.endswith("site-packages")]
    return [p for p in dict.fromkeys([*sourced, *wheels, Path(sys.prefix)]) if (p / "share").is_dir()]


def missing_for_interfaces() -> str | None:
    if not any((p / "share/rosidl_default_generators").is_dir() for p in ros_prefixes()):
        return f"rosidl_default_generators is in none of {[str(p) for p in ros_prefixes()]}"
    return None if shutil.which("cmake") else "there is no cmake"


def missing_for_kernels() -> str | None:
    if not any((ROOT / "cuda").glob("*.cpp")):
        return "cuda/ holds no C++ kernels"
    if importlib.util.find_spec("torch") is None:
        return "torch is not in the environment that builds (use --no-build-isolation)"
    return None


WITH_INTERFACES = is_wanted("PANOPTIC_MAPPER_INTERFACES", missing_for_interfaces())
WITH_KERNELS = is_wanted("PANOPTIC_MAPPER_KERNELS", missing_for_kernels())


class BuildPy(build_py):
    """Copies the modules, then adds the packed folders and what CMake installs."""

    def run(self) -> None:
        if self.editable_mode:  # everything is found in the checkout; see CONTRIBUTING.md for the messages
            super().run()
            return
        package = Path(self.build_lib) / NAME
        shutil.rmtree(package, ignore_errors=True)  # a module deleted from the sources must not live on
        super().run()
        for source, target in (("config", "config_files"), ("cuda", "cuda_src")):  # as resources.py looks for them
            shutil.copytree(ROOT / source, package / target, ignore=shutil.ignore_patterns("__pycache__", ".*"))
        if WITH_INTERFACES:
            stage = build_interfaces(Path(self.get_finalized_command("build").build_temp).resolve())
            (generated,) = stage.glob(f"lib*/python3*/*-packages/{NAME}")
            copy_generated(generated, package)
            self.distribution.data_files = prefix_files(stage, generated.parent)


def build_interfaces(temporary: Path) -> Path:
    """Runs CMakeLists.txt; returns the prefix that it was installed to."""
    build, stage = temporary / "cmake", temporary / "stage"
    shutil.rmtree(stage, ignore_errors=True)
    prefixes = os.pathsep.join(str(p) for p in ros_prefixes())
    # The ament and rosidl code calls "python3": it must be the one that pip runs in.
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")])
    environment = {**os.environ, "AMENT_PREFIX_PATH": prefixes, "CMAKE_PREFIX_PATH": prefixes, "PATH": path}
    options = {
        "CMAKE_INSTALL_PREFIX": stage,
        "CMAKE_BUILD_TYPE": "Release",
        "CMAKE_INSTALL_RPATH": "$ORIGIN;$ORIGIN/../../..",  # <prefix>/lib, from itself and from the package
        "BUILD_TESTING": "OFF",
        "Python3_EXECUTABLE": sys.executable,
    }
    if (Path(sys.prefix) / "share/rosidl_default_generators").is_dir():
        options["CMAKE_PROJECT_INCLUDE"] = ROOT / "cmake/ros_wheels_fix.cmake"
    generator = ["-G", "Ninja"] if shutil.which("ninja", path=path) else []
    definitions = [f"-D{name}={value}" for name, value in options.items()]
    for command in (
        ["cmake", "-S", ROOT, "-B", build, *generator, *definitions],
        ["cmake", "--build", build, "--parallel", str(os.cpu_count() or 1)],
        ["cmake", "--install", build],
    ):
        subprocess.run(command, check=True, env=environment)
    return stage


def copy_generated(generated: Path, package: Path) -> None:
    """Adds the generated msg/, srv/ and extension modules; our own files are there already and stay."""
    for source in generated.rglob("*"):
        target = package / source.relative_to(generated)
        if source.is_file() and source.suffix in (".py", ".so") and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)


def prefix_files(stage: Path, site_packages: Path) -> list[tuple[str, list[str]]]:
    """What goes to the environment's prefix: lib/ and share/, as (folder, files)."""
    folders: dict[str, list[str]] = {}
    for file in sorted(stage.rglob("*")):
        relative = file.relative_to(stage)
        if not file.is_file() or relative.parts[0] in ("include", "bin") or file.is_relative_to(site_packages):
            continue
        if relative.parts[:2] == ("lib", NAME):
            # launch starts <prefix>/lib/<package>/<program> also where the environment is not activated: hand over to
            # pip's own script, which names the right Python.
            file.write_text(f'#!/bin/sh\nexec "$(dirname "$0")/../../bin/{file.name}" "$@"\n')
        folders.setdefault(str(relative.parent), []).append(os.path.relpath(file, ROOT))
    return sorted(folders.items())


def kernel_arguments() -> dict:
    """The ahead-of-time compiled extension `panoptic_mapper._kernels`."""
    import torch
    from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension

    spec = importlib.util.spec_from_file_location("kernel_build", ROOT / NAME / "ops/build.py")
    kernel_build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kernel_build)
    with_cuda = torch.version.cuda is not None and CUDA_HOME is not None and (Path(CUDA_HOME) / "bin/nvcc").is_file()
    cxx_args = [*kernel_build.COMPILE_ARGS, *([kernel_build.CUDA_DEFINE] if with_cuda else [])]
    if with_cuda and not torch.cuda.is_available():  # a GPU that is here is asked what it is
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", kernel_build.CUDA_ARCHITECTURES)
    extension = (CUDAExtension if with_cuda else CppExtension)(
        kernel_build.EXTENSION_NAME,
        kernel_build.extension_sources(ROOT, with_cuda),
        depends=[str(path.relative_to(ROOT)) for path in (ROOT / "cuda").iterdir()],
        extra_compile_args={"cxx": cxx_args, "nvcc": kernel_build.NVCC_ARGS},
        extra_link_args=kernel_build.LINK_ARGS,
    )
    return {"ext_modules": [extension], "cmdclass": {"build_ext": BuildExtension}}


class BinaryDistribution(Distribution):
    """Gives the wheel the platform's tag also when the messages are its only compiled part."""

    def has_ext_modules(self) -> bool:
        return WITH_INTERFACES or super().has_ext_modules()


arguments = kernel_arguments() if WITH_KERNELS else {}
arguments["cmdclass"] = {"build_py": BuildPy, **arguments.get("cmdclass", {})}
setup(distclass=BinaryDistribution, **arguments)
