"""What this installation has, and for each thing missing the one command that brings it. Loads things when asked."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

PROFILE_VARIABLE = "FASTRTPS_DEFAULT_PROFILES_FILE"  # the one that both Jazzy's and Kilted's Fast DDS read
MIN_PYTHON = (3, 11)
MIN_TORCH = (2, 11)
OPENCV_MAJOR = 4  # cv_bridge does not work with 5
# Modules without which the library does not run, and what to install for them.
LIBRARIES = {
    "numpy": "numpy",
    "scipy": "scipy",
    "rosbags": "rosbags",
    "lz4": "lz4",
    "typer": "typer",
    "rich": "rich",
    "safetensors": "safetensors",
    "yaml": "pyyaml",
    "psutil": "psutil",
    "ninja": "ninja",
    "matplotlib": "matplotlib",
}
_INSTALL = "make install"
_FETCH_MODELS = "panoptic-mapper models get tiny"


@dataclass(frozen=True)
class Check:
    """The state of one thing."""

    name: str
    required: bool  # without it the library does not run; all else is needed by some parts only
    ok: bool
    found: str  # version and place, or what is wrong
    remedy: str  # the command that brings it; empty where it is there, or where no command can


class Missing(Exception):
    """Raised by a probe with what it found, and a better remedy than the usual one where it knows one."""

    def __init__(self, found: str, remedy: str | None = None) -> None:
        super().__init__(found)
        self.remedy = remedy


def checks() -> list[Check]:
    """Probes everything. A probe that fails in whatever way is a check that is not ok, never an error."""
    return [_check(*entry) for entry in _probes()]


def as_dict(results: Iterable[Check]) -> dict[str, Any]:
    """The checks for JSON: {"ok": whether all that is required is there, "checks": [{"name", "required", ...}]}."""
    results = list(results)
    ok = all(check.ok for check in results if check.required)
    return {"ok": ok, "checks": [dataclasses.asdict(check) for check in results]}


def _probes() -> list[tuple[str, bool, Callable[[], str], str]]:
    """Name, whether it is required, what probes it (returns what it found), and the usual remedy."""
    return [
        ("python", True, _python, "sudo apt-get install python3.11"),
        ("torch", True, _torch, f"pip install 'torch>={MIN_TORCH[0]}.{MIN_TORCH[1]}'"),
        ("opencv", True, _opencv, "pip install 'opencv-python-headless>=4.10,<5'"),
        ("open3d", False, _open3d, f"pip install {_open3d_distribution()}"),
        ("libraries", True, _libraries, _INSTALL),
        ("kernels", True, _kernels, _INSTALL),
        ("CUDA device", False, _cuda_device, ""),
        ("gsplat", False, lambda: _version("gsplat"), "pip install gsplat==1.5.3"),
        ("nvcc", False, _nvcc, "sudo apt-get install nvidia-cuda-toolkit"),
        ("ROS 2", False, _ros, _INSTALL),
        ("messages", False, _messages, _INSTALL),
        ("RMW", False, _rmw, "pip install 'ros-rclpy[fastrtps]'"),
        ("message_filters", False, _message_filters, _ros_package("message-filters")),
        ("tf2_ros", False, _tf2_ros, _ros_package("tf2-ros")),
        ("cv_bridge", False, _cv_bridge, _ros_package("cv-bridge")),
        ("Fast DDS profile", False, _fast_dds_profile, ""),
        ("litert", False, lambda: _version("ai_edge_litert", "ai-edge-litert"), "pip install ai-edge-litert"),
        ("ncnn", False, lambda: _version("ncnn"), "pip install ncnn"),
        ("transformers", False, lambda: _version("transformers"), "pip install 'transformers>=5.17'"),
        ("onnxruntime", False, _onnxruntime, "pip install onnxruntime"),
        ("models", False, _models, _FETCH_MODELS),
    ]


def _check(name: str, required: bool, probe: Callable[[], str], remedy: str) -> Check:
    try:
        return Check(name, required, True, probe(), "")
    except Missing as missing:
        return Check(name, required, False, str(missing), remedy if missing.remedy is None else missing.remedy)
    except ModuleNotFoundError as error:
        return Check(name, required, False, f"not installed ({error})", remedy)
    except (Exception, SystemExit) as error:  # half an installation can raise anything while it is imported
        first_line = (str(error).splitlines() or [""])[0]
        return Check(name, required, False, f"does not load: {type(error).__name__}: {first_line}", remedy)


def _load(module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except (ImportError, OSError) as error:
        if ".so" in str(error) and module == "open3d":
            raise Missing(
                f"a system library is missing: {error}",
                "sudo apt-get install libusb-1.0-0 libgomp1 libgl1 libegl1",
            ) from error
        raise


def _version(module: str, distribution: str | None = None) -> str:
    """Imports the module; returns its version, or its folder where it states none."""
    loaded = _load(module)
    version = getattr(loaded, "__version__", None)
    if version is None and distribution is not None:
        version = importlib.metadata.version(distribution)
    return str(version or Path(loaded.__file__ or module).parent)


def _numbers(version: str) -> tuple[int, int]:
    """Major and minor of "2.13.0+cpu"."""
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def _open3d() -> str:
    try:
        return _version("open3d")
    except ModuleNotFoundError as error:
        raise Missing("not installed; only `panoptic-mapper mesh` needs it") from error


def _open3d_distribution() -> str:
    return "open3d-cpu" if sys.platform == "linux" and platform.machine() == "x86_64" else "open3d"


def _ros_package(name: str) -> str:
    return f"sudo apt-get install ros-{os.environ.get('ROS_DISTRO', 'jazzy')}-{name}"


def _python() -> str:
    found = f"{sys.version.split()[0]} ({sys.executable})"
    if sys.version_info[:2] < MIN_PYTHON:
        raise Missing(f"{found}, needs {MIN_PYTHON[0]}.{MIN_PYTHON[1]} or newer")
    return found


def _torch() -> str:
    found = _version("torch")
    if _numbers(found) < MIN_TORCH:
        raise Missing(f"{found} is too old")
    return found


def _opencv() -> str:
    found = _version("cv2")
    if _numbers(found)[0] != OPENCV_MAJOR:
        raise Missing(f"{found}, needs {OPENCV_MAJOR}.x (cv_bridge does not work with 5)")
    return found


def _libraries() -> str:
    found, missing = [], []
    for module, distribution in LIBRARIES.items():
        try:
            importlib.import_module(module)
            found.append(f"{distribution} {importlib.metadata.version(distribution)}")
        except ImportError:
            missing.append(distribution)
    if missing:
        raise Missing(f"not installed: {', '.join(missing)}", f"pip install {' '.join(missing)}")
    return ", ".join(found)


def _kernels() -> str:
    ops = _load("panoptic_mapper.ops")
    library = ops.ahead_of_time_library()
    if library is not None:
        return f"built with the package: {library}"
    cached = ops.cached_library()
    if cached is not None:
        return f"compiled on first use: {cached}"
    missing = ops.missing_for_compiling()
    if missing is not None:
        what, _, command = missing.partition(" with: ")
        raise Missing(f"not built, and cannot be compiled: {what}", command or None)
    return "will be compiled on first use (about a minute)"


def _cuda_device() -> str:
    torch = _load("torch")
    if torch.cuda.is_available():
        return ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    if shutil.which("nvidia-smi") is None:
        raise Missing("no NVIDIA GPU or driver; the map runs on the CPU")
    if torch.version.cuda is None:
        raise Missing(
            "this torch was built for the CPU only",
            f"pip install --force-reinstall torch=={torch.__version__.split('+')[0]}"
            " --index-url https://download.pytorch.org/whl/cu130",
        )
    raise Missing(f"torch with CUDA {torch.version.cuda} finds no device; does the driver fit it?", "nvidia-smi")


def _nvcc() -> str:
    for folder in (os.environ.get("CUDA_HOME"), "/usr/local/cuda"):
        if folder and (Path(folder) / "bin/nvcc").is_file():
            return str(Path(folder) / "bin/nvcc")
    found = shutil.which("nvcc")
    if found is None:
        raise Missing("not found; only needed to compile the CUDA kernels")
    return found


def _ros() -> str:
    try:
        rclpy = _load("rclpy")
    except ModuleNotFoundError as error:
        scripts = sorted(Path("/opt/ros").glob("*/setup.bash"))
        if scripts:
            raise Missing("installed, but not sourced", f"source {scripts[-1]}") from error
        raise Missing("not installed; the library and the command line work without") from error
    distribution = os.environ.get("ROS_DISTRO")
    if distribution is None:
        return f"pip wheels, rclpy {importlib.metadata.version('rclpy')}"
    return f"{distribution}, {Path(str(rclpy.__file__)).parent}"


def _messages() -> str:
    messages = _load("panoptic_mapper.msg")
    _load("panoptic_mapper.srv")
    messages.PanopticObjectArray.__class__.__import_type_support__()
    if messages.PanopticObjectArray.__class__._TYPE_SUPPORT is None:
        raise Missing(f"the type support of {Path(str(messages.__file__)).parent} does not load")
    return str(Path(str(messages.__file__)).parent)


def _rmw() -> str:
    return str(_load("rclpy.utilities").get_rmw_implementation_identifier())


def _optional(module: str, without: str) -> str:
    try:
        return _version(module)
    except ModuleNotFoundError as error:
        raise Missing(f"not installed (no pip wheel exists); {without}") from error


def _message_filters() -> str:
    return _optional("message_filters", "the built-in synchroniser is used")


def _tf2_ros() -> str:
    return _optional("tf2_ros", "poses come from a topic")


def _cv_bridge() -> str:
    found = _optional("cv_bridge", "only the common image encodings are understood")
    _load("cv_bridge").CvBridge().cv2_to_imgmsg(_load("numpy").zeros((1, 1), "uint8"), "mono8")  # needs the C++ part
    return found


def _fast_dds_profile() -> str:
    from panoptic_mapper.resources import resource_path

    ours = resource_path("config/fastdds_shm.xml")
    value = os.environ.get(PROFILE_VARIABLE)
    if not value:
        raise Missing(
            f"{PROFILE_VARIABLE} is not set: camera drivers started here lose images",
            f"export {PROFILE_VARIABLE}={ours}",
        )
    if not Path(value).is_file():
        raise Missing(f"{PROFILE_VARIABLE}={value} does not exist", f"export {PROFILE_VARIABLE}={ours}")
    return value


def _onnxruntime() -> str:
    onnxruntime = _load("onnxruntime")
    providers = (name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers())
    return f"{onnxruntime.__version__} ({', '.join(providers)})"


def _models() -> str:
    store = _load("panoptic_mapper.model_store")
    folder = Path(os.environ.get(store.MODELS_VARIABLE) or store.cache_folder())
    missing = [name for name in store.MODELS if not store.is_here(name)]
    for name in set(store.MODELS) - set(missing):
        store.local_model(name)  # checks the content
    if missing:
        raise Missing(f"{folder} lacks {', '.join(missing)}; only the segmenter 'tiny' needs them")
    return str(folder)
