"""The node itself: how it starts, what it refuses, and how it ends; its parts have tests of their own."""

import json
import pickle
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest

pytest.importorskip("panoptic_mapper.msg", reason="ROS 2 or the built messages are not installed")
import rclpy
from fake_mapper import LABEL_SPACE
from geometry_msgs.msg import Pose, PoseStamped
from nav_msgs.msg import Odometry
from node_mappers import fake, with_a_model_that_crashes
from panoptic_mapper.msg import MapStatus
from panoptic_mapper.srv import QueryObjects
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile
from small_room import wall_frame
from std_msgs.msg import Header, String

from panoptic_mapper.frame_queue import Observation
from panoptic_mapper.pose_buffer import Missing
from panoptic_mapper.ros.conversions import stamp_message
from panoptic_mapper.ros.mapper_node import MapperNode

pytestmark = pytest.mark.ros
REPO = Path(__file__).resolve().parents[1]
SECOND = 10**9
MAX_SPINS = 200  # of 0.05 s, far more than anything here needs


@pytest.fixture
def ros(monkeypatch, tmp_path):
    """Makes nodes with parameters in a context of their own, and spins until a condition holds."""
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=39)
    executor, nodes = SingleThreadedExecutor(context=context), []

    class Ros:
        def made_with(self):
            """The configuration and the classes with which the mapper was made, and whether ROS was there."""
            return pickle.loads((tmp_path / "made").read_bytes())

        def node(self, make_mapper=None, **parameters) -> MapperNode:
            overrides = [Parameter(name.replace("__", "."), value=value) for name, value in parameters.items()]
            make_mapper = make_mapper or partial(fake, tmp_path / "made")
            node = MapperNode(make_mapper, context=context, parameter_overrides=overrides)
            executor.add_node(node)
            nodes.append(node)
            return node

        def spin_until(self, condition) -> None:
            for _ in range(MAX_SPINS):
                if condition():
                    return
                executor.spin_once(timeout_sec=0.05)
            raise AssertionError("the condition did not come true")

    yield Ros()
    executor.shutdown()
    for node in nodes:
        node.close()
        node.destroy_node()
    rclpy.shutdown(context=context)


def test_segmenters_with_their_own_classes_start_at_once(ros):
    node = ros.node(segmenter__name="none")
    assert node.mapper.is_running
    assert ros.made_with() == (node.config, None, False)
    node.close()
    assert not node.mapper.is_running
    assert not psutil.pid_exists(node.mapper.pid)


def test_classes_come_from_a_file(ros, tmp_path):
    (tmp_path / "labels.json").write_text(json.dumps({"classes": LABEL_SPACE.to_dict()}))
    ros.node(segmenter__name="dataset", labels_file=str(tmp_path / "labels.json"))
    assert ros.made_with()[1] == LABEL_SPACE


def test_an_unreadable_file_of_classes_is_named(ros, tmp_path):
    with pytest.raises(ValueError, match=r"missing\.json"):
        ros.node(segmenter__name="dataset", labels_file=str(tmp_path / "missing.json"))


def test_classes_come_from_a_topic_and_only_the_first_ones_count(ros):
    node = ros.node(segmenter__name="topic")
    assert not node.mapper.is_started
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    publisher = node.create_publisher(String, "/camera/label_space", latched)
    publisher.publish(String(data="nonsense"))
    publisher.publish(String(data=json.dumps({"classes": LABEL_SPACE.to_dict()})))
    ros.spin_until(lambda: node.mapper.is_started)
    publisher.publish(String(data=json.dumps({"classes": LABEL_SPACE.to_dict()[:1]})))
    for _ in range(10):
        ros.spin_until(lambda: True)
    assert node.mapper.is_running
    assert ros.made_with()[1] == LABEL_SPACE


@pytest.mark.parametrize(("source", "type_"), [("pose", PoseStamped), ("odometry", Odometry)])
def test_poses_come_from_the_topic_and_bad_ones_are_counted(ros, source, type_):
    node = ros.node(segmenter__name="topic", pose_source=source, body_to_camera=[0.0, 0.0, 0.5, 0.0, 0.0, 0.0, 1.0])
    publisher = node.create_publisher(type_, "/camera/pose", 10)
    ros.spin_until(lambda: publisher.get_subscription_count() > 0)

    def send(stamp_ns: int, w: float) -> None:
        message = type_()
        message.header.frame_id = "map"
        message.header.stamp = stamp_message(stamp_ns)
        pose = message.pose.pose if source == "odometry" else message.pose
        pose.position.x, pose.orientation.w = 2.0, w
        publisher.publish(message)

    send(SECOND, float("nan"))
    ros.spin_until(lambda: node.frames.drops == {"bad_pose": 1})
    send(2 * SECOND, 1.0)
    ros.spin_until(lambda: node.pose_source.lookup(2 * SECOND, "") is not Missing.NOT_YET)
    np.testing.assert_array_equal(node.pose_source.lookup(2 * SECOND, "")[:3, 3], (2.0, 0.0, 0.5))


def test_a_crash_of_the_model_costs_labels_and_is_told(ros):
    node = ros.node(with_a_model_that_crashes, segmenter__name="none")
    statuses = []
    node.create_subscription(MapStatus, "/panoptic_mapper/status", statuses.append, 10)

    def see(frame) -> None:
        node.pose_source.add(Header(frame_id="map", stamp=stamp_message(frame.stamp_ns)), Pose())
        node.frames.put(Observation(frame.stamp_ns, "camera", frame.color, frame.depth, frame.camera, frame.labels))

    def status(condition) -> MapStatus:
        ros.spin_until(lambda: statuses and condition(statuses[-1]))
        return statuses[-1]

    see(wall_frame(2.0, stamp_ns=1))
    working = status(lambda s: s.labels_received == 1 and s.num_objects == 2)
    assert (working.labels_state, working.labels_trouble_reasons) == ("running", [])
    see(wall_frame(1.5, stamp_ns=2))  # something came nearer: a keyframe
    broken = status(lambda s: s.labels_state == "retrying")
    assert dict(zip(broken.labels_trouble_reasons, broken.labels_trouble_counts, strict=True)) == {"crash": 1}
    assert "SIGSEGV" in broken.last_error
    see(wall_frame(1.0, stamp_ns=3))
    going_on = status(lambda s: s.num_keyframes == 3)
    assert (going_on.state, going_on.labels_queue_size, going_on.num_objects) == ("mapping", 2, 2)
    (mapper,) = [p for p in psutil.Process().children() if p.pid == node.mapper.pid]
    processes = [mapper, *mapper.children()]
    node.close()
    assert [p for p in processes if p.is_running()] == []


def test_the_end_of_the_mapper_is_told_to_all_who_ask(ros):
    node, statuses = ros.node(segmenter__name="none"), []
    node.create_subscription(MapStatus, "/panoptic_mapper/status", statuses.append, 10)
    ros.spin_until(lambda: statuses and statuses[-1].state == "waiting")
    psutil.Process(node.mapper.pid).kill()
    ros.spin_until(lambda: statuses[-1].state == "failed")
    assert "was ended by SIGKILL" in statuses[-1].last_error
    client = node.create_client(QueryObjects, "/panoptic_mapper/query_objects")
    answer = client.call_async(QueryObjects.Request())
    ros.spin_until(answer.done)
    assert not answer.result().success
    assert answer.result().message == statuses[-1].last_error


def run_node(*parameters: str) -> list[str]:
    words = [word for p in parameters for word in ("-p", p)]
    return [sys.executable, "-m", "panoptic_mapper.ros.mapper_node", "--ros-args", *words]


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"queue__capacity": 0}, r"queue\.capacity"),
        ({"segmenter__name": "magic"}, "expected one of"),
        ({"pose_source": "guess"}, "expected one of pose, odometry, tf"),
        ({"body_to_camera": [0.0, 0.0]}, "body_to_camera: expected x y z"),
        ({"map_frame": ""}, "map_frame"),
    ],
)
def test_wrong_parameters_are_refused(ros, parameters, words):
    with pytest.raises(ValueError, match=words):
        ros.node(**parameters)


def test_a_misspelt_parameter_ends_the_process_with_a_message():
    ended = subprocess.run(run_node("sync.slop:=0.1"), cwd=REPO, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert "unknown parameter 'sync.slop'; did you mean 'sync.slop_s'?" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_node_that_lost_its_mapper_ends_with_a_reason():
    """Its map is gone; who started it is to know, and may start another."""
    command = run_node("segmenter.name:=none")
    with subprocess.Popen(command, cwd=REPO, stderr=subprocess.PIPE, text=True) as process:
        try:
            lines = iter(process.stderr.readline, "")
            assert any("running" in line for line in lines)
            (mapper,) = psutil.Process(process.pid).children()
            mapper.kill()
            assert process.wait(timeout=60) == 1
            log = process.stderr.read()
            assert "[FATAL]" in log
            assert "the mapper's process was ended by SIGKILL" in log
            assert "Traceback" not in log
        finally:
            process.kill()


def test_wrong_settings_of_the_mapper_end_the_process_with_a_message():
    command = run_node("segmenter.name:=onnx")
    ended = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert "segmenter 'onnx': name your ONNX file in segmenter.onnx.model" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_sigterm_ends_the_process_cleanly():
    command = run_node("segmenter.name:=none")
    with subprocess.Popen(command, cwd=REPO, stderr=subprocess.PIPE, text=True) as process:
        try:
            lines = iter(process.stderr.readline, "")
            assert any("running" in line for line in lines)
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=60) == 0
            assert "Traceback" not in process.stderr.read()
        finally:
            process.kill()
