"""The doctor's findings in installations that lack something, have half of it, or have the wrong version."""

import importlib
import json
import re
import shutil
import subprocess
import sys
import tomllib
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest

from panoptic_mapper import doctor

ROOT = Path(__file__).parents[1]


@pytest.fixture
def fake_modules(monkeypatch):
    """Replaces what is imported: give a module, or the error that its import raises; all else is not installed."""
    modules = {}

    def import_module(name):
        value = modules.get(name, ModuleNotFoundError(f"No module named '{name}'"))
        if isinstance(value, BaseException):
            raise value
        return value

    monkeypatch.setattr(importlib, "import_module", import_module)
    return modules


def find(name):
    (check,) = [check for check in doctor.checks() if check.name == name]
    return check


def test_import_is_light():
    heavy = "{'torch', 'numpy', 'cv2', 'open3d', 'rclpy', 'scipy'}"
    code = f"import panoptic_mapper.doctor, sys; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT).strip() == "[]"


def test_nothing_is_installed(fake_modules):
    results = {check.name: check for check in doctor.checks()}
    assert not results["torch"].ok
    assert results["torch"].remedy == "pip install 'torch>=2.11'"
    assert results["ncnn"].remedy == "pip install ncnn"
    assert "poses come from a topic" in results["tf2_ros"].found
    assert results["libraries"].remedy == f"pip install {' '.join(doctor.LIBRARIES.values())}"
    without_command = {name for name, check in results.items() if not check.ok and not check.remedy}
    assert without_command <= {"CUDA device"}


@pytest.mark.parametrize("error", [RuntimeError("numpy ABI 1\nmore"), SystemExit(3), AttributeError("x"), OSError("y")])
def test_half_an_installation_is_a_finding(fake_modules, error):
    fake_modules["ncnn"] = error
    check = find("ncnn")
    assert not check.ok
    assert check.found == f"does not load: {type(error).__name__}: {str(error).splitlines()[0]}"
    assert check.remedy == "pip install ncnn"


def test_a_probe_may_fail_late(fake_modules):
    fake_modules["torch"] = SimpleNamespace(__version__="not a version")
    assert find("torch").found.startswith("does not load: ValueError")


@pytest.mark.parametrize(
    ("version", "ok"), [("2.10.1", False), ("2.11.0", True), ("2.13.0+cpu", True), ("3.0.0", True)]
)
def test_torch_version(fake_modules, version, ok):
    fake_modules["torch"] = SimpleNamespace(__version__=version, __file__="torch.py")
    check = find("torch")
    assert check.ok == ok
    assert version in check.found


def test_opencv_5_is_refused(fake_modules):
    fake_modules["cv2"] = SimpleNamespace(__version__="5.0.1")
    check = find("opencv")
    assert not check.ok
    assert "<5" in check.remedy


def test_open3d_names_its_system_libraries(fake_modules):
    fake_modules["open3d"] = OSError("libusb-1.0.so.0: cannot open shared object file")
    check = find("open3d")
    assert "libusb-1.0.so.0" in check.found
    assert check.remedy.startswith("sudo apt-get install libusb-1.0-0")
    assert not check.required


def test_open3d_is_needed_by_one_command_only(fake_modules):
    check = find("open3d")
    assert (check.required, check.ok) == (False, False)
    assert "only `panoptic-mapper mesh` needs it" in check.found
    assert check.remedy.startswith("pip install open3d")


@pytest.mark.parametrize(
    ("driver", "cuda", "available", "ok", "remedy"),
    [
        (None, None, False, False, ""),
        ("/usr/bin/nvidia-smi", None, False, False, "--index-url"),
        ("/usr/bin/nvidia-smi", "13.0", False, False, "nvidia-smi"),
        ("/usr/bin/nvidia-smi", "13.0", True, True, ""),
    ],
)
def test_cuda_device(fake_modules, monkeypatch, driver, cuda, available, ok, remedy):
    device = SimpleNamespace(is_available=lambda: available, device_count=lambda: 1, get_device_name=lambda i: "GPU A")
    fake_modules["torch"] = SimpleNamespace(
        __version__="2.13.0+cpu", cuda=device, version=SimpleNamespace(cuda=cuda), __file__=""
    )
    monkeypatch.setattr(shutil, "which", lambda name: driver)
    check = find("CUDA device")
    assert check.ok == ok
    assert remedy in check.remedy
    assert bool(remedy) == bool(check.remedy)
    assert (check.found == "GPU A") == ok


@pytest.mark.parametrize(
    ("library", "missing", "ok", "found", "remedy"),
    [
        ("/a/_kernels.so", None, True, "built with the package: /a/_kernels.so", ""),
        (None, None, True, "will be compiled on first use", ""),
        (None, "no compiler; get one with: apt-get install g++", False, "cannot be compiled", "apt-get install g++"),
        (None, "out of luck", False, "out of luck", "make install"),
    ],
)
def test_kernels(fake_modules, library, missing, ok, found, remedy):
    fake_modules["panoptic_mapper.ops"] = SimpleNamespace(
        ahead_of_time_library=lambda: library, missing_for_compiling=lambda: missing, cached_library=lambda: None
    )
    check = find("kernels")
    assert (check.ok, check.remedy) == (ok, remedy)
    assert found in check.found


def test_the_kernels_of_this_checkout_are_found():
    assert find("kernels").found.startswith(("built with the package: /", "compiled on first use: /", "will be"))


def test_kernels_that_were_compiled_on_first_use(fake_modules):
    fake_modules["panoptic_mapper.ops"] = SimpleNamespace(
        ahead_of_time_library=lambda: None,
        missing_for_compiling=lambda: "no compiler",
        cached_library=lambda: "/a/k.so",
    )
    check = find("kernels")
    assert (check.ok, check.found) == (True, "compiled on first use: /a/k.so")


def test_ros_is_sourced(fake_modules, monkeypatch):
    fake_modules["rclpy"] = SimpleNamespace(__file__="/opt/ros/kilted/lib/rclpy/__init__.py")
    monkeypatch.setenv("ROS_DISTRO", "kilted")
    assert find("ROS 2").found == "kilted, /opt/ros/kilted/lib/rclpy"
    assert find("tf2_ros").remedy == "sudo apt-get install ros-kilted-tf2-ros"


def test_messages_without_type_support(fake_modules):
    class Message:
        _TYPE_SUPPORT = None

        @classmethod
        def __import_type_support__(cls):
            pass

    # A message class keeps its type support in its metaclass, as an instance keeps it in its class here.
    fake_modules["panoptic_mapper.msg"] = SimpleNamespace(__file__="/a/msg/__init__.py", PanopticObjectArray=Message())
    fake_modules["panoptic_mapper.srv"] = SimpleNamespace()
    assert find("messages").found == "the type support of /a/msg does not load"
    Message._TYPE_SUPPORT = object()
    assert find("messages").found == "/a/msg"


def test_fast_dds_profile(fake_modules, monkeypatch, tmp_path):
    monkeypatch.delenv(doctor.PROFILE_VARIABLE, raising=False)
    unset = find("Fast DDS profile")
    assert not unset.ok
    assert unset.remedy == f"export {doctor.PROFILE_VARIABLE}={ROOT / 'config/fastdds_shm.xml'}"

    profile = tmp_path / "profile.xml"
    monkeypatch.setenv(doctor.PROFILE_VARIABLE, str(profile))
    assert "does not exist" in find("Fast DDS profile").found
    profile.touch()
    assert find("Fast DDS profile").ok


def test_models_are_checked_and_never_downloaded(monkeypatch, tmp_path):
    def no_network(*args, **kwargs):
        pytest.fail("the doctor must not use the network")

    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    monkeypatch.setenv("PANOPTIC_MAPPER_MODELS", str(tmp_path))
    probe = {name: (probe, remedy) for name, _, probe, remedy in doctor._probes()}["models"]
    absent = doctor._check("models", False, *probe)
    assert not absent.ok
    assert f"{tmp_path} lacks mosaic_r4, yolox_nano" in absent.found
    (tmp_path / "yoloxN.bin").write_bytes(b"half a downl")
    broken = doctor._check("models", False, *probe)
    assert not broken.ok
    assert "yoloxN.bin" in broken.found


def test_as_dict_is_json_and_judges_by_what_is_required():
    good = doctor.Check("torch", True, True, "2.13", "")
    optional = doctor.Check("gsplat", False, False, "not installed", "pip install gsplat")
    bad = doctor.Check("open3d", True, False, "not installed", "pip install open3d")
    assert doctor.as_dict([good, optional])["ok"] is True
    report = json.loads(json.dumps(doctor.as_dict([good, optional, bad])))
    assert report["ok"] is False
    assert report["checks"][2] == {
        "name": "open3d",
        "required": True,
        "ok": False,
        "found": "not installed",
        "remedy": "pip install open3d",
    }


def test_requirements_are_those_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    named = {re.match(r"[\w-]+", requirement).group(): requirement for requirement in project["dependencies"]}
    assert named["torch"] == "torch>={}.{}".format(*doctor.MIN_TORCH)
    assert project["requires-python"] == ">={}.{}".format(*doctor.MIN_PYTHON)
    checked_alone = {"torch", "opencv-python-headless", "open3d", "open3d-cpu"}
    assert set(named) == checked_alone | set(doctor.LIBRARIES.values())
    remedies = {name: remedy for name, _, _, remedy in doctor._probes()}
    assert remedies["opencv"] == f"pip install '{named['opencv-python-headless']}'"
    assert [remedies["gsplat"]] == [f"pip install {requirement}" for requirement in extras["cuda"]]
