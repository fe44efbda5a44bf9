"""The files that make a package of the sources agree with each other and with what is installed."""

import ast
import importlib.metadata
import importlib.util
import re
import runpy
import subprocess
import sys
import tomllib
import types
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

import panoptic_mapper
from panoptic_mapper import resources

ROOT = Path(__file__).parents[1]
INTERFACES = sorted([*ROOT.glob("msg/*.msg"), *ROOT.glob("srv/*.srv")])
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGE_XML = ElementTree.parse(ROOT / "package.xml").getroot()


def interface_fields(text):
    """(line, comment above or behind it) of each field and constant."""
    comment = ""
    for line in text.splitlines():
        code, _, behind = line.partition("#")
        if code.strip() == "---":
            comment = ""
        elif code.strip():
            yield code.strip(), comment or behind.strip()
            comment = ""
        else:
            comment = f"{comment} {behind.strip()}".strip() if behind else ""


def test_interface_fields_reads_comments():
    text = "# of the file\n\n# above\n# it\nint8 a\nint8 b # behind\nint8 c\n---\nint8 d"
    assert list(interface_fields(text)) == [
        ("int8 a", "above it"),
        ("int8 b", "behind"),
        ("int8 c", ""),
        ("int8 d", ""),
    ]


@pytest.mark.parametrize("path", INTERFACES, ids=lambda path: path.name)
def test_every_interface_field_is_commented(path):
    fields = list(interface_fields(path.read_text()))
    assert fields
    assert [field for field, comment in fields if len(comment) < 10] == []


@pytest.mark.parametrize("path", INTERFACES, ids=lambda path: path.name)
def test_every_geometric_field_names_frame_and_unit(path):
    geometric = [f for f in interface_fields(path.read_text()) if f[0].startswith("geometry_msgs/")]
    for field, comment in geometric:
        assert re.search(r"\bm\b", comment), field
        # Box sizes are along the box's own axes.
        assert re.search(r"frame|own axes|`frame_id`|that box", comment), field


@pytest.mark.parametrize("path", sorted(ROOT.glob("srv/*.srv")), ids=lambda path: path.name)
def test_every_service_answers_success_and_message(path):
    response = path.read_text().split("\n---\n")[1]
    assert [field for field, _ in interface_fields(response)][:2] == ["bool success", "string message"]


def test_versions_agree():
    assert PYPROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "panoptic_mapper.__version__"}
    assert PACKAGE_XML.findtext("version") == panoptic_mapper.__version__
    assert re.search(rf"^{re.escape(panoptic_mapper.__version__)} \(", (ROOT / "CHANGELOG.rst").read_text(), re.M)


def test_names_and_licences_agree():
    assert PACKAGE_XML.findtext("name") == PYPROJECT["project"]["name"] == "panoptic_mapper"
    assert PACKAGE_XML.findtext("license") == PYPROJECT["project"]["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text()


def test_generators_know_every_package_that_the_interfaces_use():
    fields = "\n".join(field for path in INTERFACES for field, _ in interface_fields(path.read_text()))
    used = set(re.findall(r"^([a-z_]+)/", fields, re.M))
    assert used == {element.text for element in PACKAGE_XML.findall("depend")}
    found = set(
        re.findall(r"find_package\((\w+_msgs|builtin_interfaces) REQUIRED\)", (ROOT / "CMakeLists.txt").read_text())
    )
    assert found == used


def imported_packages(folder):
    """Top-level names of all imports below a folder, also those inside functions."""
    names = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.split(".")[0])
    return names


def test_every_library_that_is_imported_is_required():
    """Test libraries are not: a user's installation stays without them."""
    distributions = {"cv2": "opencv-python-headless", "yaml": "pyyaml", "open3d": "open3d-cpu"}
    required = {re.match(r"[\w-]+", line).group() for line in PYPROJECT["project"]["dependencies"]}
    optional = {"gsplat", "ai_edge_litert", "ncnn", "transformers", "huggingface_hub", "onnxruntime"}
    used = {name for name in imported_packages(ROOT / "panoptic_mapper") if importlib.util.find_spec(name)}
    used -= {*sys.stdlib_module_names, *optional, "panoptic_mapper", "pytest"}
    ros = {e.text for e in PACKAGE_XML if e.tag in ("depend", "exec_depend")}
    assert {distributions.get(name, name) for name in used - ros} <= required
    assert "torchmetrics" not in required


def test_package_xml_names_the_ros_packages_that_are_imported():
    ros = re.compile(
        r"\w+_msgs|\w+_interfaces|std_srvs|rclpy|tf2_ros|tf2_py|cv_bridge|message_filters|launch|launch_ros|ament_index_python"
    )
    imported = imported_packages(ROOT / "panoptic_mapper") | imported_packages(ROOT / "launch")
    named = {element.text for element in PACKAGE_XML if element.tag in ("depend", "exec_depend")}
    assert {name for name in imported if ros.fullmatch(name)} - named == set()


def test_wheels_are_listed_for_the_ros_packages_that_must_be_there():
    listed = (ROOT / "requirements/ros.txt").read_text()
    for name in {
        *imported_packages(ROOT / "panoptic_mapper"),
        *re.findall(r"<depend>(\w+)<", (ROOT / "package.xml").read_text()),
    }:
        if re.fullmatch(r"\w+_msgs|std_srvs", name) and name != "tf2_msgs":
            assert f"ros-{name.replace('_', '-')}\n" in listed, name


def test_every_required_wheel_of_ros_is_pinned():
    pinned = re.findall(r"^([\w-]+)==", (ROOT / "requirements/constraints.txt").read_text(), re.M)
    required = re.findall(r"^(ros-[\w-]+)", (ROOT / "requirements/ros.txt").read_text(), re.M)
    assert required
    assert set(required) <= set(pinned)
    assert "torch" in pinned


@pytest.mark.parametrize("target", PYPROJECT["project"]["scripts"].values())
def test_entry_points_exist(target):
    module, function = target.split(":")
    path = ROOT / (module.replace(".", "/") + ".py")
    defined = [node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
    assert function in defined


def test_scripts_of_a_workspace_call_the_same_functions_as_those_of_pip():
    for name, target in PYPROJECT["project"]["scripts"].items():
        module, function = target.split(":")
        assert f"from {module} import {function}\n" in (ROOT / "scripts" / name).read_text()


def test_a_script_ends_with_the_status_that_the_node_ends_with(monkeypatch):
    node = types.ModuleType("panoptic_mapper.ros.mapper_node")
    node.main = lambda: 3
    monkeypatch.setitem(sys.modules, node.__name__, node)
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "scripts/mapper_node"), run_name="__main__")
    assert ended.value.code == 3


@pytest.mark.parametrize("module", ["panoptic_mapper", "panoptic_mapper.cli", "panoptic_mapper.resources"])
def test_import_touches_neither_ros_nor_the_gpu(module):
    code = f"import {module}, sys; print('rclpy' in sys.modules, 'gsplat' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT).split() == ["False", "False"]


@pytest.mark.parametrize(("given", "taken"), [(None, "passive"), ("active", "active")])
def test_threads_that_wait_leave_the_cores_to_others(monkeypatch, given, taken):
    """Found with two cores and a second busy program: 12 small tests of the mapper took 90 s, and with this 17 s."""
    if given is None:
        monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    else:
        monkeypatch.setenv("OMP_WAIT_POLICY", given)
    code = "import panoptic_mapper, os, sys; print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT).split() == [taken, "False"]


def test_packed_folders_are_those_that_the_builds_pack():
    setup = (ROOT / "setup.py").read_text()
    cmake = (ROOT / "CMakeLists.txt").read_text()
    for source, target in resources.PACKED_FOLDERS.items():
        assert f'("{source}", "{target}")' in setup
        assert f'install(DIRECTORY {source}/ DESTINATION "${{package_dir}}/{target}")' in cmake


def test_resources_of_the_checkout_are_found():
    assert resources.resource_path("config/fastdds_shm.xml") == ROOT / "config/fastdds_shm.xml"
    assert resources.resource_path("cuda") == ROOT / "cuda"


def test_resources_of_an_installation_are_found(tmp_path, monkeypatch):
    package = tmp_path / "site-packages/panoptic_mapper"
    packed = package / "config_files/a.yaml"
    packed.parent.mkdir(parents=True)
    packed.touch()
    foreign = tmp_path / "site-packages/config/a.yaml"  # of another distribution
    foreign.parent.mkdir()
    foreign.touch()
    monkeypatch.setattr(panoptic_mapper, "__path__", [str(package)])
    assert resources.resource_path("config/a.yaml") == packed
    with pytest.raises(FileNotFoundError, match=r"config/b.yaml.*config_files/b.yaml"):
        resources.resource_path("config/b.yaml")


def test_resources_outside_the_packed_folders_are_refused():
    with pytest.raises(ValueError, match=r"'test/x'.*config, cuda"):
        resources.resource_path("test/x")


def installed_files():
    # The egg-info that a build leaves in the checkout is found too; an installation has a RECORD.
    for distribution in importlib.metadata.distributions(name="panoptic_mapper"):
        if distribution.read_text("RECORD"):
            return [str(Path(distribution.locate_file(file)).resolve()) for file in distribution.files]
    pytest.skip("panoptic_mapper is not installed")


@pytest.mark.ros
def test_installation_holds_what_the_sources_hold():
    files = installed_files()
    config = [path for path in (ROOT / "config").rglob("*") if path.is_file()]
    shared = [*INTERFACES, ROOT / "package.xml", *config, *ROOT.glob("launch/*.py")]
    expected = [
        *(f"/share/panoptic_mapper/{path.relative_to(ROOT)}" for path in shared),
        *(f"/site-packages/panoptic_mapper/config_files/{path.relative_to(ROOT / 'config')}" for path in config),
        *(f"/site-packages/panoptic_mapper/cuda_src/{path.name}" for path in ROOT.glob("cuda/*")),
        *(f"/lib/panoptic_mapper/{name}" for name in PYPROJECT["project"]["scripts"]),
    ]
    assert [end for end in expected if not any(file.endswith(end) for file in files)] == []


@pytest.mark.ros
def test_installed_messages_are_those_of_the_sources():
    pytest.importorskip("panoptic_mapper.msg")
    from rclpy.serialization import deserialize_message, serialize_message

    from panoptic_mapper import msg, srv

    for path in INTERFACES:
        generated = getattr(msg if path.suffix == ".msg" else srv, path.stem)
        parts = path.read_text().split("\n---\n")
        types = [generated] if path.suffix == ".msg" else [generated.Request, generated.Response]
        for text, type_ in zip(parts, types, strict=True):
            names = [field.split()[1] for field, _ in interface_fields(text) if "=" not in field]
            assert list(type_.get_fields_and_field_types()) == names

    status = msg.MapStatus(state=msg.MapStatus.STATE_PAUSED, drop_reasons=["queue_full"], drop_counts=[2**40])
    assert deserialize_message(serialize_message(status), msg.MapStatus) == status
