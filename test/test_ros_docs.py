"""What stands outside the code about the node is true: documentation, parameter file, launch files, RViz."""

import runpy
import sys
import types
from pathlib import Path

import pytest
import yaml

pytest.importorskip("panoptic_mapper.msg", reason="ROS 2 or the built messages are not installed")
from panoptic_mapper.config import config_from_dict, iter_parameters, set_dotted
from panoptic_mapper.ros.node_config import NodeConfig
from panoptic_mapper.ros.parameter_table import MARKED, parameter_table

pytestmark = pytest.mark.ros
REPO = Path(__file__).resolve().parents[1]
OUTPUT_TOPICS = {"semantic_cloud", "instance_cloud", "objects", "markers", "status"}


def test_the_parameter_table_is_that_of_the_code():
    written = MARKED.search((REPO / "docs/ros.md").read_text()).group()
    assert written == parameter_table(), "run: python -m panoptic_mapper.ros.parameter_table"


def test_every_reason_for_a_drop_is_explained():
    sources = [REPO / "panoptic_mapper" / name for name in ("frame_queue.py", "worker.py", "ros/camera_input.py")]
    text = "\n".join(p.read_text() for p in sources)
    words = "queue_full no_pose out_of_order bad_image bad_depth bad_labels bad_intrinsics no_intrinsics size_mismatch"
    words += " no_label_space bad_frame paused error"
    document = (REPO / "docs/ros.md").read_text()
    for word in words.split():
        assert f'"{word}"' in text
        assert f"`{word}`" in document


def test_the_default_parameter_file_fits_the_parameters():
    (node_name, section), *others = yaml.safe_load((REPO / "config/default.yaml").read_text()).items()
    assert (node_name, others) == ("/**/panoptic_mapper", [])
    config_from_dict(NodeConfig, section["ros__parameters"])


def test_launch_arguments_set_parameters_that_exist():
    pytest.importorskip("launch_ros", reason="launch_ros is not installed")
    import importlib.util

    names = {p.name for p in iter_parameters(NodeConfig)}
    for file in (REPO / "launch").glob("*.launch.py"):
        spec = importlib.util.spec_from_file_location(file.stem.replace(".", "_"), file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        assert set(getattr(module, "SHORTCUTS", {}).values()) <= names
        assert module.generate_launch_description().entities


@pytest.mark.parametrize("preset", ["", "latency", "quality"])
def test_a_preset_sets_parameters_that_exist(preset, monkeypatch):
    """With stand-ins for `launch`, which has no wheels."""

    class Anything:
        def __init__(self, *args, **kwargs):
            self.args, self.kwargs = args, kwargs

    class Argument(Anything):
        def perform(self, context):
            return context.get(self.args[0], "")

    modules = {
        "launch": {"LaunchContext": dict, "LaunchDescription": Anything},
        "launch.actions": {"DeclareLaunchArgument": Anything, "OpaqueFunction": Anything},
        "launch.conditions": {"IfCondition": Anything},
        "launch.substitutions": {"LaunchConfiguration": Argument},
        "launch_ros": {},
        "launch_ros.actions": {"Node": Anything},
        "ament_index_python": {},
        "ament_index_python.packages": {"get_package_share_path": lambda name: REPO},
    }
    for name, members in modules.items():
        module = types.ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    launch_file = runpy.run_path(str(REPO / "launch/mapper.launch.py"))
    (node,) = launch_file["mapper_node"]({"preset": preset, "params_file": "own.yaml", "device": "cpu"})
    file, settings, overrides = node.kwargs["parameters"]
    assert (file, overrides) == ("own.yaml", {"device": "cpu", "use_sim_time": False})
    assert (len(settings) > 0) == (preset != "")
    defaults = {p.name: p.default for p in iter_parameters(NodeConfig)}
    for name, value in settings.items():
        assert type(value) is type(defaults[name]), name  # ROS takes no integer for a double
    nested = {}
    for name, value in settings.items():
        set_dotted(nested, name, value)
    config_from_dict(NodeConfig, nested)


def test_rviz_shows_topics_of_the_node():
    displays = yaml.safe_load((REPO / "config/mapper.rviz").read_text())["Visualization Manager"]["Displays"]
    topics = {d["Topic"]["Value"] for d in displays if "Topic" in d}
    ours = {t.removeprefix("/panoptic_mapper/") for t in topics if t.startswith("/panoptic_mapper/")}
    assert ours == {"semantic_cloud", "instance_cloud", "markers"}
    config = NodeConfig()
    assert topics - {f"/panoptic_mapper/{t}" for t in OUTPUT_TOPICS} == {
        config.topics.pose,
        config.topics.color,
        config.topics.depth,
    }
