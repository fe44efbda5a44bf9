"""Nothing is computed for nobody, nothing is published twice, and a late subscriber gets the map."""

from types import SimpleNamespace

import pytest

pytest.importorskip("panoptic_mapper.msg", reason="ROS 2 or the built messages are not installed")
from fake_mapper import FakeMapper

from panoptic_mapper.ros.publishers import MapPublishers

pytestmark = pytest.mark.ros


class FakePublisher:
    def __init__(self) -> None:
        self.num_subscribers = 0
        self.messages = []

    def get_subscription_count(self) -> int:
        return self.num_subscribers

    def publish(self, message) -> None:
        self.messages.append(message)


class Rig:
    def __init__(self) -> None:
        self.topics: dict[str, FakePublisher] = {}
        self.publishers = MapPublishers(SimpleNamespace(create_publisher=self._create), "map")
        self.snapshot = FakeMapper().snapshot()

    def _create(self, type_, topic, qos) -> FakePublisher:
        self.topics[topic] = FakePublisher()
        return self.topics[topic]

    def publish_if_due(self, version: int) -> dict[str, int]:
        """Number of messages so far by topic."""
        if self.publishers.is_due(version):
            self.publishers.publish(self.snapshot, version)
        return {topic.removeprefix("~/"): len(p.messages) for topic, p in self.topics.items() if p.messages}


def test_only_subscribed_topics_are_published_and_only_when_the_map_has_changed():
    rig = Rig()
    assert not rig.publishers.is_due(1)
    rig.topics["~/objects"].num_subscribers = 1
    assert rig.publish_if_due(1) == {"objects": 1}
    assert not rig.publishers.is_due(1)
    assert rig.publish_if_due(2) == {"objects": 2}
    message = rig.topics["~/objects"].messages[0]
    assert [o.id for o in message.objects] == [1, 4]
    assert message.header.frame_id == "map"


def test_a_new_subscriber_is_served_although_the_map_is_the_same():
    rig = Rig()
    rig.topics["~/semantic_cloud"].num_subscribers = 1
    rig.publish_if_due(1)
    rig.topics["~/markers"].num_subscribers = 1
    assert rig.publish_if_due(1) == {"semantic_cloud": 1, "markers": 1}
    rig.topics["~/semantic_cloud"].num_subscribers = 2
    assert rig.publish_if_due(1) == {"semantic_cloud": 2, "markers": 1}
