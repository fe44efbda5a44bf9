"""What the node does with images: good ones become observations, every kind of bad one is counted by its reason."""

import json
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

pytest.importorskip("panoptic_mapper.msg", reason="ROS 2 or the built messages are not installed")
from fake_mapper import LABEL_SPACE
from sensor_msgs.msg import CameraInfo, CompressedImage

from panoptic_mapper.config import config_from_dict
from panoptic_mapper.frame_queue import FrameQueue
from panoptic_mapper.image_encoding import encode_labels
from panoptic_mapper.ros.camera_input import CameraInput, label_space_from_json
from panoptic_mapper.ros.conversions import image_message, stamp_message
from panoptic_mapper.ros.node_config import NodeConfig

pytestmark = pytest.mark.ros
H, W = 6, 8
SECOND = 10**9


class Still:
    def lookup(self, stamp_ns, frame_id):
        return np.eye(4)


class FakeNode:
    """Keeps the subscriptions' callbacks by topic; its clock stands at 3 s."""

    def __init__(self) -> None:
        self.subscriptions = {}

    def create_subscription(self, type_, topic, callback, *args, **options):
        self.subscriptions[topic] = (type_, callback)
        return SimpleNamespace()

    def get_clock(self):
        return SimpleNamespace(now=lambda: SimpleNamespace(nanoseconds=3 * SECOND))

    def send(self, topic: str, message) -> None:
        self.subscriptions[topic][1](message)


class Rig:
    def __init__(self, has_labels: bool = False, knows_classes: bool = True, **settings) -> None:
        self.node, self.warnings = FakeNode(), []
        self.config = config_from_dict(NodeConfig, settings)
        self.frames = FrameQueue(Still(), self.config.queue)
        self.frames.on_drop = lambda reason, message: self.warnings.append(message)
        self.input = CameraInput(self.node, self.config, self.frames, has_labels)
        self.stamp_ns = SECOND
        if has_labels and knows_classes:
            self.input.set_label_space(LABEL_SPACE)

    def send_info(self, info=None) -> None:
        self.node.send(self.config.topics.camera_info, info or camera_info())

    def send(self, color=None, depth=None, labels=None):
        """One group of messages with the same stamp; returns the frame that came of it, or None."""
        topics = self.config.topics
        messages = {topics.color: color or color_message(), topics.depth: depth or depth_message()}
        if labels is not None:
            messages[topics.labels] = labels
        self.stamp_ns += SECOND // 30
        for topic, message in messages.items():
            message.header.stamp = stamp_message(self.stamp_ns)
            self.node.send(topic, message)
        queued = self.frames.pop()
        return queued and queued.frame


def camera_info(size=(W, H), cx=3.5) -> CameraInfo:
    info = CameraInfo(width=size[0], height=size[1])
    info.k = [5.0, 0.0, cx, 0.0, 5.0, 2.5, 0.0, 0.0, 1.0]
    return info


def color_image() -> np.ndarray:
    return np.arange(H * W * 3, dtype=np.uint8).reshape(H, W, 3)


def color_message(encoding: str = "rgb8", size=(H, W)):
    return image_message(np.resize(color_image(), (*size, 3)), encoding, 0)


def depth_message(values=None, encoding: str = "16UC1"):
    return image_message(np.full((H, W), 1500, np.uint16) if values is None else values, encoding, 0)


def label_message(size=(H, W)):
    return image_message(encode_labels(np.full(size, 5), np.full(size, 7)), "32SC1", 0)


def test_colour_depth_and_intrinsics_become_a_frame():
    rig = Rig()
    rig.send_info()
    frame = rig.send()
    np.testing.assert_array_equal(frame.color, color_image())
    np.testing.assert_allclose(frame.depth, 1.5)
    assert frame.camera.fx == 5.0
    assert frame.labels is None
    assert frame.stamp_ns == rig.stamp_ns
    assert rig.frames.drops == {}


def test_the_age_at_arrival_is_known():
    rig = Rig()
    rig.send_info()
    color, depth = color_message(), depth_message()
    for topic, message in ((rig.config.topics.color, color), (rig.config.topics.depth, depth)):
        message.header.stamp = stamp_message(2 * SECOND)
        rig.node.send(topic, message)
    assert rig.frames.pop().age_s == pytest.approx(1.0)


def test_label_images_come_with_the_frame():
    rig = Rig(has_labels=True)
    rig.send_info()
    frame = rig.send(labels=label_message())
    assert set(frame.labels.semantic.flat) == {2}  # the index of public id 5
    assert set(frame.labels.instance.flat) == {1}


def test_bgr_float_depth_and_compressed_images():
    rig = Rig()
    rig.send_info()
    frame = rig.send(color_message("bgr8"), depth_message(np.full((H, W), 2.5, np.float32), "32FC1"))
    np.testing.assert_array_equal(frame.color, color_image()[..., ::-1])
    np.testing.assert_array_equal(frame.depth, np.float32(2.5))
    rig = Rig(color_transport="compressed", depth_transport="compressed")
    rig.send_info()
    color = CompressedImage(format="png", data=cv2.imencode(".png", color_image()[..., ::-1])[1].tobytes())
    depth = CompressedImage(format="png", data=cv2.imencode(".png", np.full((H, W), 800, np.uint16))[1].tobytes())
    frame = rig.send(color, depth)
    np.testing.assert_array_equal(frame.color, color_image())
    np.testing.assert_allclose(frame.depth, 0.8)


class StandInBridge:
    """Answers as cv_bridge.CvBridge does for the encodings that it knows."""

    def imgmsg_to_cv2(self, message, desired_encoding):
        assert desired_encoding == "rgb8"
        if message.encoding == "bayer_rggb8":
            return np.repeat(np.frombuffer(message.data, np.uint8).reshape(H, W, 1), 3, axis=2)
        if message.encoding == "broken":
            return np.zeros((H, W), np.float32)
        raise TypeError(f"Unrecognized image encoding [{message.encoding}]")


def test_rare_encodings_go_through_cv_bridge_where_it_is_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv_bridge", SimpleNamespace(CvBridge=StandInBridge))
    rig = Rig()
    rig.send_info()
    mosaic = np.arange(H * W, dtype=np.uint8).reshape(H, W)
    frame = rig.send(image_message(mosaic, "bayer_rggb8", 0))
    np.testing.assert_array_equal(frame.color, np.stack([mosaic] * 3, axis=2))
    np.testing.assert_array_equal(rig.send(color_message("bgr8")).color, color_image()[..., ::-1])  # as without it
    assert rig.send(image_message(mosaic, "yuv999", 0)) is None
    assert rig.send(image_message(mosaic, "broken", 0)) is None
    assert rig.frames.drops == {"bad_image": 2}
    assert "Unrecognized image encoding [yuv999]" in rig.warnings[0]
    assert "float32 (6, 8) of 'broken'" in rig.warnings[1]


@pytest.mark.parametrize("broken", [None, SimpleNamespace()])
def test_without_cv_bridge_rare_encodings_are_refused(monkeypatch, broken):
    monkeypatch.setitem(sys.modules, "cv_bridge", broken)
    rig = Rig()
    rig.send_info()
    assert rig.send(image_message(np.zeros((H, W), np.uint8), "bayer_rggb8", 0)) is None
    assert rig.frames.drops == {"bad_image": 1}
    assert "'bayer_rggb8' is not supported without cv_bridge" in rig.warnings[0]
    assert "expected one of rgb8, bgr8" in rig.warnings[0]


def test_holes_in_the_depth_are_kept_as_holes():
    rig = Rig()
    rig.send_info()
    depth = np.full((H, W), 1.0, np.float32)
    depth[0], depth[1], depth[2] = np.nan, -1.0, np.inf
    frame = rig.send(depth=depth_message(depth, "32FC1"))
    np.testing.assert_array_equal(frame.depth[:3], 0)
    np.testing.assert_array_equal(frame.depth[3:], 1)


def test_truncated() -> None:
    rig = Rig()
    rig.send_info()
    color = color_message()
    del color.data[-10:]
    assert rig.send(color=color) is None
    assert rig.frames.drops == {"bad_image": 1}
    assert rig.send() is not None


@pytest.mark.parametrize(
    ("parts", "reason", "words"),
    [
        ({"color": lambda: color_message("yuv999")}, "bad_image", "'yuv999' is not supported without cv_bridge"),
        ({"color": lambda: color_message("")}, "bad_image", "encoding ''"),
        ({"color": lambda: color_message(size=(H // 2, W // 2))}, "bad_intrinsics", "is for 8x6"),
        ({"depth": lambda: depth_message(encoding="8UC1")}, "bad_depth", "8UC1"),
        ({"depth": lambda: depth_message(np.zeros((H, W), np.uint16))}, "bad_depth", "no valid pixel"),
        ({"depth": lambda: depth_message(np.full((H, W), 65535, np.uint16))}, "bad_depth", "no valid pixel"),
        (
            {"depth": lambda: depth_message(np.full((H, W), np.nan, np.float32), "32FC1")},
            "bad_depth",
            "no valid pixel",
        ),
        ({"depth": lambda: depth_message(np.ones((3, 4), np.uint16))}, "size_mismatch", "registered"),
        ({"labels": lambda: label_message((3, 4))}, "size_mismatch", "label image has 4x3"),
        ({"labels": lambda: depth_message()}, "bad_labels", "32SC1"),
    ],
)
def test_bad_images_are_counted_and_the_next_good_one_is_mapped(parts, reason, words):
    rig = Rig(has_labels=True)
    rig.send_info()
    good = {"labels": label_message}
    assert rig.send(**{name: make() for name, make in {**good, **parts}.items()}) is None
    assert rig.frames.drops == {reason: 1}
    assert words in rig.warnings[0]
    assert rig.send(labels=label_message()) is not None
    assert rig.frames.num_received == 2


@pytest.mark.parametrize("info", [camera_info(size=(640, 480)), camera_info(cx=300.0), CameraInfo(width=W, height=H)])
def test_intrinsics_that_do_not_fit(info):
    rig = Rig()
    rig.send_info(info)
    assert rig.send() is None
    assert rig.frames.drops == {"bad_intrinsics": 1}
    rig.send_info()
    assert rig.send() is not None


def test_images_wait_for_the_first_intrinsics():
    rig = Rig(queue={"max_waiting": 2})
    for _ in range(3):
        assert rig.send() is None
    assert rig.frames.drops == {"no_intrinsics": 1}  # the oldest: only two may wait
    rig.send_info()
    assert rig.frames.pop().frame.stamp_ns == rig.stamp_ns - SECOND // 30
    assert rig.frames.pop().frame.stamp_ns == rig.stamp_ns
    assert rig.frames.pop() is None


def test_labels_wait_for_their_classes():
    rig = Rig(has_labels=True, knows_classes=False, queue={"max_waiting": 2})
    rig.send_info()
    for _ in range(3):
        assert rig.send(labels=label_message()) is None
    assert rig.frames.drops == {"no_label_space": 1}  # the oldest: only two may wait
    rig.input.set_label_space(LABEL_SPACE)
    waited = [rig.frames.pop().frame, rig.frames.pop().frame]
    assert [f.stamp_ns for f in waited] == [rig.stamp_ns - SECOND // 30, rig.stamp_ns]
    assert set(waited[0].labels.semantic.flat) == {2}
    assert rig.send(labels=label_message()) is not None


def test_colour_without_depth_is_noticed():
    rig = Rig(sync={"queue_size": 2})
    for _ in range(5):
        message = color_message()
        rig.stamp_ns += SECOND
        message.header.stamp = stamp_message(rig.stamp_ns)
        rig.node.send(rig.config.topics.color, message)
    assert rig.input.num_unsynchronised == 3  # two may still find their partners
    rig.input.reset_counters()
    assert rig.input.num_unsynchronised == 0


def test_the_label_space_topic():
    text = json.dumps({"classes": [{"id": 40, "name": "wall", "isthing": False}]})
    assert label_space_from_json(text).names == ("unlabeled", "wall")
    for broken in ("nonsense", "[]", "{}", '{"classes": [{"id": 1}]}', '{"classes": [{"id": 0, "name": "a"}]}'):
        with pytest.raises(ValueError, match="label space"):
            label_space_from_json(broken)
