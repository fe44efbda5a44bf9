"""Playing a bag on real topics, heard by subscribers in this process."""

import json
import os
import signal
import threading
import time
from collections import Counter

import numpy as np
import pytest

rclpy = pytest.importorskip("rclpy", reason="needs ROS 2 (rclpy)")
pytest.importorskip("panoptic_mapper.ros.bag_player", reason="needs the ROS 2 message packages")

from geometry_msgs.msg import PoseStamped  # noqa: E402
from rclpy.context import Context  # noqa: E402
from rclpy.executors import SingleThreadedExecutor  # noqa: E402
from rclpy.qos import DurabilityPolicy, QoSProfile  # noqa: E402
from rosgraph_msgs.msg import Clock  # noqa: E402
from sensor_msgs.msg import Image  # noqa: E402
from std_msgs.msg import String  # noqa: E402

from panoptic_mapper.datasets.rosbag_writer import FIRST_STAMP_NS, write_rosbag  # noqa: E402
from panoptic_mapper.datasets.synthetic import SyntheticConfig, SyntheticRoom  # noqa: E402
from panoptic_mapper.image_encoding import decode_color, decode_depth, decode_labels  # noqa: E402
from panoptic_mapper.label_space import LabelSpace  # noqa: E402
from panoptic_mapper.ros.bag_player import SETTLE_S, play  # noqa: E402

pytestmark = pytest.mark.ros

NUM_FRAMES, FPS = 8, 20
COLOR, DEPTH, LABELS = "/camera/color/image_raw", "/camera/depth/image_raw", "/camera/labels"
CLASSES, POSE = "/camera/label_space", "/camera/pose"


@pytest.fixture(scope="module")
def room():
    return SyntheticRoom(SyntheticConfig(num_frames=NUM_FRAMES, width=160, height=120, fps=FPS))


@pytest.fixture(scope="module")
def bag(room, tmp_path_factory):
    path = tmp_path_factory.mktemp("bags") / "room"
    write_rosbag(room, path)
    return path


class Listener:
    """Keeps what arrives, in a thread of its own."""

    def __init__(self):
        self.messages = {topic: [] for topic in (COLOR, DEPTH, LABELS, CLASSES, "/clock")}
        self.context = Context()
        rclpy.init(context=self.context)
        self.node = rclpy.create_node("listener", context=self.context)
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        types = {CLASSES: (String, latched), "/clock": (Clock, 100)}
        for topic, kept in self.messages.items():
            type_, qos = types.get(topic, (Image, 30))
            self.node.create_subscription(type_, topic, kept.append, qos)
        self.messages[POSE] = []  # nobody subscribes to it yet
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.thread = threading.Thread(target=self.executor.spin, daemon=True)
        self.thread.start()

    def counts(self):
        return Counter({topic: len(kept) for topic, kept in self.messages.items()})

    def wait_for(self, topic, count, timeout_s=5.0):
        deadline = time.monotonic() + timeout_s
        while len(self.messages[topic]) < count and time.monotonic() < deadline:
            self.thread.join(0.01)

    def close(self):
        self.executor.shutdown()
        rclpy.shutdown(context=self.context)
        self.thread.join(5)


@pytest.fixture
def listener(monkeypatch):
    monkeypatch.setenv("ROS_DOMAIN_ID", str(40 + os.getpid() % 60))
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    listener = Listener()
    yield listener
    listener.close()


def test_everything_arrives_as_it_was(room, bag, listener):
    report = play(bag, wait_for_subscribers_s=10)
    listener.wait_for(COLOR, NUM_FRAMES)
    counts = listener.counts()
    assert [counts[t] for t in (COLOR, DEPTH, LABELS, CLASSES)] == [NUM_FRAMES] * 3 + [1]
    assert report.messages_by_topic[COLOR] == NUM_FRAMES
    assert report.num_loops == 1
    assert not report.is_interrupted
    assert not {COLOR, DEPTH, LABELS, CLASSES} & set(report.unmatched_topics)
    original = room[3]
    np.testing.assert_array_equal(decode_color(listener.messages[COLOR][3]), original.color)
    np.testing.assert_allclose(decode_depth(listener.messages[DEPTH][3]), original.depth, atol=0.00051)
    packed = decode_labels(listener.messages[LABELS][3]).view(np.uint32)
    np.testing.assert_array_equal(packed >> 16, room.label_space.ids[original.labels.semantic])
    np.testing.assert_array_equal(packed & 0xFFFF, original.labels.instance)
    assert LabelSpace.from_dict(json.loads(listener.messages[CLASSES][0].data)["classes"]) == room.label_space


def test_a_subscriber_that_is_needed_is_waited_for(bag, listener):
    """Others hear the bag from the start; the one that counts comes when their number has long been the same."""
    late = threading.Timer(
        2 * SETTLE_S, listener.node.create_subscription, (PoseStamped, POSE, listener.messages[POSE].append, 30)
    )
    late.start()
    report = play(bag, wait_for_subscribers_s=20, needed_topics=[POSE])
    late.join()
    listener.wait_for(POSE, NUM_FRAMES)
    assert POSE not in report.unmatched_topics
    assert listener.counts()[POSE] == NUM_FRAMES


def test_rate_clock_and_choice_of_topics(bag, listener):
    report = play(bag, rate=0.5, wait_for_subscribers_s=10, topics=[COLOR])
    listener.wait_for(COLOR, NUM_FRAMES)
    counts = listener.counts()
    assert (counts[COLOR], counts[DEPTH]) == (NUM_FRAMES, 0)
    duration_s = (NUM_FRAMES - 1) / FPS / 0.5
    assert duration_s <= report.wall_s < duration_s + 6
    clock = np.array([m.clock.sec + m.clock.nanosec * 1e-9 for m in listener.messages["/clock"]])
    assert len(clock) > NUM_FRAMES  # it ticks between the messages too
    assert np.all(np.diff(clock) >= 0)
    assert clock[-1] == pytest.approx(FIRST_STAMP_NS * 1e-9 + (NUM_FRAMES - 1) / FPS)


@pytest.fixture
def interruptible():
    """Takes SIGINT as on a terminal: programs that a script starts in the background ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_loops_until_it_is_interrupted(bag, listener, interruptible):
    def interrupt_in_the_second_round():
        listener.wait_for(COLOR, NUM_FRAMES + 2, timeout_s=20)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt_in_the_second_round)
    thread.start()
    report = play(bag, rate=4, loop=True, wait_for_subscribers_s=10, topics=[COLOR])
    thread.join()
    assert report.is_interrupted
    assert report.num_loops >= 1
    assert len(listener.messages[COLOR]) >= NUM_FRAMES + 2


def test_bad_arguments_and_bags_are_refused(bag, tmp_path):
    with pytest.raises(ValueError, match="rate: expected a positive factor, got 0"):
        play(bag, rate=0)
    with pytest.raises(ValueError, match="no topic /nothing in the bag"):
        play(bag, topics=["/nothing"])
    with pytest.raises(ValueError, match="missing: no such file"):
        play(tmp_path / "missing")
