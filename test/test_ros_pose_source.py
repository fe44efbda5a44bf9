"""Poses from topics and TF: nothing is invented, everything wrong is named."""

import sys

import numpy as np
import pytest

pytest.importorskip("panoptic_mapper.msg", reason="ROS 2 or the built messages are not installed")
from geometry_msgs.msg import Point, Pose, Quaternion, TransformStamped, Vector3
from std_msgs.msg import Header

from panoptic_mapper.frame import PinholeCamera
from panoptic_mapper.frame_queue import FrameQueue, FrameQueueConfig, Observation
from panoptic_mapper.pose_buffer import Missing, PoseBuffer
from panoptic_mapper.ros.conversions import stamp_message
from panoptic_mapper.ros.pose_source import FrameTransforms, TfPoseSource, TopicPoseSource, listen_to_tf

pytestmark = pytest.mark.ros
SECOND = 10**9
HALF_TURN_ABOUT_Z = (0.0, 0.0, 1.0, 0.0)


class NoTransform(Exception):
    """What the stand-in buffer raises."""


class StandInBuffer:
    """Knows (target, source) from a stamp on."""

    def __init__(self) -> None:
        self.transforms: dict[tuple[str, str], tuple[int, TransformStamped]] = {}

    def set(self, target, source, xyz, xyzw=(0.0, 0.0, 0.0, 1.0), known_until_ns=0) -> None:
        message = TransformStamped()
        message.transform.translation = Vector3(x=xyz[0], y=xyz[1], z=xyz[2])
        message.transform.rotation = Quaternion(x=xyzw[0], y=xyzw[1], z=xyzw[2], w=xyzw[3])
        self.transforms[target, source] = (known_until_ns, message)

    def lookup_transform(self, target_frame, source_frame, time):
        if (target_frame, source_frame) not in self.transforms:
            raise NoTransform(f'"{source_frame}" passed to lookupTransform does not exist')
        known_until_ns, message = self.transforms[target_frame, source_frame]
        if time.nanoseconds > known_until_ns:
            raise NoTransform("extrapolation into the future")
        return message


def make_pose(xyz=(0.0, 0.0, 0.0), xyzw=(0.0, 0.0, 0.0, 1.0)) -> Pose:
    q = Quaternion(x=xyzw[0], y=xyzw[1], z=xyzw[2], w=xyzw[3])
    return Pose(position=Point(x=xyz[0], y=xyz[1], z=xyz[2]), orientation=q)


def header(stamp_ns: int, frame_id: str = "map") -> Header:
    return Header(stamp=stamp_message(stamp_ns), frame_id=frame_id)


def test_a_pose_of_the_body_becomes_that_of_the_camera():
    T_body_camera = np.eye(4)
    T_body_camera[:3, 3] = (0.1, 0, 0)
    source = TopicPoseSource(PoseBuffer(), "map", T_body_camera)
    source.add(header(SECOND), make_pose((2.0, 0.0, 0.0), HALF_TURN_ABOUT_Z))
    T = source.lookup(SECOND, "camera")
    np.testing.assert_allclose(T[:3, 3], (1.9, 0, 0), atol=1e-12)
    np.testing.assert_allclose(T[:3, :3], np.diag([-1.0, -1, 1]), atol=1e-12)


@pytest.mark.parametrize(
    ("frame_id", "pose", "message"),
    [
        ("odom", make_pose(), "frame 'odom', expected the map frame 'map'"),
        ("map", make_pose((float("nan"), 0.0, 0.0)), "not finite"),
        ("map", make_pose(xyzw=(0.0, 0.0, 0.0, 0.0)), "unit quaternion"),
        ("map", make_pose(xyzw=(0.0, 0.0, 0.0, 2.0)), "unit quaternion"),
    ],
)
def test_bad_poses_are_refused_and_leave_no_trace(frame_id, pose, message):
    source = TopicPoseSource(PoseBuffer(), "map", np.eye(4))
    with pytest.raises(ValueError, match=message):
        source.add(header(SECOND, frame_id), pose)
    assert source.lookup(SECOND, "") is Missing.NOT_YET


def test_a_frame_waits_for_tf_and_is_mapped_when_it_comes():
    now = [0.0]
    buffer = StandInBuffer()
    frames = FrameQueue(
        TfPoseSource(buffer, "map", "", (NoTransform,)), FrameQueueConfig(pose_wait_s=1.0), lambda: now[0]
    )
    camera = PinholeCamera(4.0, 4.0, 1.5, 1.5, 4, 4)

    def put(stamp_ns):
        color, depth = np.zeros((4, 4, 3), np.uint8), np.ones((4, 4), np.float32)
        frames.put(Observation(stamp_ns, "optical", color, depth, camera))

    put(SECOND)
    assert frames.pop() is None  # the frames are not even known
    buffer.set("map", "optical", (3.0, 0.0, 0.0), known_until_ns=SECOND // 2)
    frames.resolve()
    assert frames.pop() is None  # known, but not yet at that time
    buffer.set("map", "optical", (3.0, 0.0, 0.0), known_until_ns=SECOND)
    frames.resolve()
    assert frames.pop().frame.T_map_camera[0, 3] == 3.0
    put(2 * SECOND)
    now[0] = 1.5
    frames.resolve()
    assert frames.pop() is None
    assert frames.drops == {"no_pose": 1}


def test_tf_names_the_frame_of_the_parameter_before_that_of_the_image():
    buffer = StandInBuffer()
    buffer.set("map", "optical", (1.0, 2.0, 3.0), known_until_ns=SECOND)
    named = TfPoseSource(buffer, "map", "optical", (NoTransform,))
    np.testing.assert_array_equal(named.lookup(0, "wrong")[:3, 3], (1, 2, 3))
    unnamed = TfPoseSource(buffer, "map", "", (NoTransform,))
    assert unnamed.lookup(0, "") is Missing.NEVER
    assert unnamed.lookup(0, "wrong") is Missing.NOT_YET


def test_a_broken_transform_is_no_pose(caplog):
    buffer = StandInBuffer()
    buffer.set("map", "optical", (0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 0.0), known_until_ns=SECOND)
    assert TfPoseSource(buffer, "map", "optical", (NoTransform,)).lookup(0, "") is Missing.NEVER
    assert "unit quaternion" in caplog.text


def test_requests_in_other_frames():
    buffer = StandInBuffer()
    buffer.set("map", "base", (1.0, 0.0, 0.0), HALF_TURN_ABOUT_Z)
    transforms = FrameTransforms("map", buffer, (NoTransform,))
    np.testing.assert_array_equal(transforms.T_map_frame(""), np.eye(4))
    np.testing.assert_array_equal(transforms.T_map_frame("map"), np.eye(4))
    np.testing.assert_allclose(transforms.T_map_frame("base") @ (1, 0, 0, 1), (0, 0, 0, 1), atol=1e-12)
    with pytest.raises(ValueError, match=r"'nowhere' cannot be taken to 'map'.*does not exist"):
        transforms.T_map_frame("nowhere")
    with pytest.raises(ValueError, match=r"tf2_ros.*is not installed"):
        FrameTransforms("map", None).T_map_frame("base")


def test_missing_tf2_ros_is_said_clearly(monkeypatch):
    monkeypatch.setitem(sys.modules, "tf2_ros", None)
    with pytest.raises(ValueError, match="tf2_ros is not installed, which pose_source=tf needs"):
        listen_to_tf(node=None)
