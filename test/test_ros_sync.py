"""The stand-in for message_filters: groups by stamp under jitter, loss and disorder."""

from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("panoptic_mapper.msg", reason="ROS 2 or the built messages are not installed")
from panoptic_mapper.ros.conversions import stamp_message
from panoptic_mapper.ros.sync import StandInApproximateTimeSynchronizer, StandInSubscriber

pytestmark = pytest.mark.ros
MS = 1_000_000


class FakeNode:
    """Gives subscriptions whose callback the test calls."""

    def create_subscription(self, msg_type, topic, callback, **options):
        return SimpleNamespace(topic=topic, callback=callback, options=options)


def synchronizers() -> list:
    kinds = [StandInApproximateTimeSynchronizer]
    try:  # the two must agree where both are there
        from message_filters import ApproximateTimeSynchronizer

        kinds.append(ApproximateTimeSynchronizer)
    except ImportError:
        pass
    return kinds


class Rig:
    """Filters of several topics, and the groups of stamps that came out."""

    def __init__(self, kind=StandInApproximateTimeSynchronizer, num_topics=2, queue_size=5, slop_s=0.01) -> None:
        self.groups: list[tuple[int, ...]] = []
        self.filters = [StandInSubscriber(FakeNode(), object, f"/topic{i}", qos_profile=1) for i in range(num_topics)]
        self.sync = kind(self.filters, queue_size, slop_s)
        self.sync.registerCallback(lambda *messages: self.groups.append(tuple(m.stamp_ns for m in messages)))

    def send(self, topic: int, stamp_ns: int) -> None:
        message = SimpleNamespace(header=SimpleNamespace(stamp=stamp_message(stamp_ns)), stamp_ns=stamp_ns)
        self.filters[topic].sub.callback(message)


@pytest.fixture(params=synchronizers(), ids=lambda kind: kind.__name__)
def kind(request):
    return request.param


def test_jittered_stamps_are_grouped_each_with_its_own(kind):
    rig, rng = Rig(kind, num_topics=3), np.random.default_rng(0)
    base = 1_000_000_000 + 33 * MS * np.arange(50)
    stamps = base[:, None] + rng.integers(-4 * MS, 4 * MS, (50, 3))
    for row in stamps:
        for topic in rng.permutation(3):
            rig.send(topic, int(row[topic]))
    assert rig.groups == [tuple(int(s) for s in row) for row in stamps]


def test_a_lost_message_costs_its_own_group_only(kind):
    rig = Rig(kind)
    for k in range(6):
        rig.send(0, 33 * MS * k)
        if k != 2:
            rig.send(1, 33 * MS * k + MS)
    assert rig.groups == [(33 * MS * k, 33 * MS * k + MS) for k in (0, 1, 3, 4, 5)]


def test_a_topic_that_runs_behind_is_waited_for_within_the_queue(kind):
    rig = Rig(kind, queue_size=3)
    for k in range(5):
        rig.send(0, 33 * MS * (k + 1))
    for k in range(5):
        rig.send(1, 33 * MS * (k + 1))
    assert rig.groups == [(33 * MS * k, 33 * MS * k) for k in (3, 4, 5)]


def test_messages_out_of_order_still_find_their_partners(kind):
    rig = Rig(kind)
    rig.send(0, 66 * MS)
    rig.send(0, 33 * MS)
    rig.send(1, 33 * MS)
    rig.send(1, 66 * MS)
    assert rig.groups == [(33 * MS, 33 * MS), (66 * MS, 66 * MS)]


def test_the_slop_bounds_the_whole_group(kind):
    rig = Rig(kind, num_topics=3, slop_s=0.01)
    rig.send(0, 100 * MS)
    rig.send(1, 107 * MS)
    rig.send(2, 94 * MS)  # within 10 ms of the first, not of the second
    assert rig.groups == []
    rig.send(2, 99 * MS)
    assert rig.groups == [(100 * MS, 107 * MS, 99 * MS)]


def test_the_nearest_partner_is_taken_and_used_once(kind):
    rig = Rig(kind, slop_s=0.02)
    rig.send(0, 85 * MS)
    rig.send(0, 98 * MS)
    rig.send(1, 100 * MS)
    rig.send(1, 101 * MS)
    assert rig.groups == [(98 * MS, 100 * MS), (85 * MS, 101 * MS)]


def test_a_subscriber_passes_its_options_to_the_node():
    group = object()
    subscriber = StandInSubscriber(FakeNode(), object, "/color", qos_profile=3, callback_group=group)
    assert subscriber.sub.topic == "/color"
    assert subscriber.sub.options == {"qos_profile": 3, "callback_group": group}
