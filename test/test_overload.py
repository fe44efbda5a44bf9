"""A camera that is faster than the machine, over DDS: what is too much is dropped and counted, the node lives."""

import os

import numpy as np
import pytest

pytest.importorskip("panoptic_mapper.msg", reason="ROS 2 or the built messages are not installed")
from panoptic_mapper.srv import QueryObjects, RenderView
from sensor_msgs.msg import CameraInfo
from std_srvs.srv import SetBool

from panoptic_mapper.datasets.rosbag_writer import write_rosbag
from panoptic_mapper.datasets.synthetic import SyntheticConfig, SyntheticRoom
from panoptic_mapper.mapping_messages import NUM_FRAMES as NUM_FRAMES_IN_HAND
from panoptic_mapper.ros.client import MapperClient
from panoptic_mapper.ros.processes import start_node, start_player

pytestmark = [pytest.mark.ros, pytest.mark.slow]

NUM_FRAMES = 40  # played within a second or two
CAPACITY, MAX_WAITING = 3, 5
TIMEOUT_S = 120.0  # generous: the machine may be busy with other tests
PARAMETERS = {
    "segmenter.name": "none",
    "device": "cpu",
    "queue.capacity": CAPACITY,
    "queue.max_waiting": MAX_WAITING,
    "queue.pose_wait_s": 60.0,  # no frame may be lost to a pose that is late because the machine is busy
    "qos.depth": 100,  # nor in the middleware
    "sync.queue_size": 100,
    "worker.idle_refine_steps": 0,
    "mapper.keyframes.translation_m": 0.0,  # every frame is a keyframe, and each costs many steps:
    "mapper.optimizer.steps_per_keyframe": 60,  # several times the camera's period on any machine
    "publish.status_rate_hz": 20.0,
}


def test_frames_beyond_the_queue_are_dropped_and_counted(tmp_path, monkeypatch):
    room = SyntheticRoom(SyntheticConfig(width=80, height=60, num_frames=NUM_FRAMES))
    write_rosbag(room, tmp_path / "bag")
    monkeypatch.setenv("ROS_DOMAIN_ID", str(40 + (os.getpid() + 1) % 60))
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    statuses = []

    def seen(condition):
        """Keeps every status on the way to the one that is waited for."""

        def check(status):
            if not statuses or statuses[-1] is not status:
                statuses.append(status)
            return condition(status)

        return check

    with (
        start_node(tmp_path / "node.log", PARAMETERS) as node,
        MapperClient(node.check_alive) as client,
    ):
        client.wait_for_status(seen(lambda s: s.state == "waiting"), TIMEOUT_S, "status")
        with start_player(tmp_path / "bag", tmp_path / "player.log", rate=1.0, wait_s=TIMEOUT_S) as player:
            client.wait_for_status(seen(lambda s: "queue_full" in s.drop_reasons), TIMEOUT_S, "full queue")
            # While frames are being dropped, services are answered between two frames.
            query = client.call(QueryObjects, "query_objects", timeout_s=TIMEOUT_S)
            assert query.success, query.message
            request = RenderView.Request(camera_info=CameraInfo(width=80, height=60))
            request.camera_info.k = room[0].camera.matrix.reshape(-1).tolist()
            rendered = client.call(RenderView, "render_view", request, timeout_s=TIMEOUT_S)
            assert rendered.success, rendered.message
            assert player.wait(TIMEOUT_S) == 0, player.log_tail()
        end = client.wait_for_status(
            seen(lambda s: s.frames_integrated + sum(s.drop_counts) + s.queue_size >= NUM_FRAMES and not s.queue_size),
            TIMEOUT_S,
            "empty queue",
        )
        assert end.frames_received == NUM_FRAMES, node.log_tail()
        drops = dict(zip(end.drop_reasons, end.drop_counts, strict=True))
        assert set(drops) == {"queue_full"}
        assert end.frames_integrated + drops["queue_full"] == NUM_FRAMES
        assert end.frames_integrated > CAPACITY  # the first, those in the queue at the end, and more
        assert len(statuses) > 5
        assert end.queue_capacity == CAPACITY + MAX_WAITING + NUM_FRAMES_IN_HAND
        assert max(s.queue_size for s in statuses) <= end.queue_capacity
        integrated = np.array([s.frames_integrated for s in statuses], dtype=int)
        assert (np.diff(integrated) >= 0).all()
        assert client.call(SetBool, "pause", SetBool.Request(data=True), timeout_s=TIMEOUT_S).success
        assert node.returncode is None
        assert node.stop() == 0, node.log_tail()
    assert "queue_full" in (tmp_path / "node.log").read_text()  # said, and not once a frame:
    assert (tmp_path / "node.log").read_text().count("dropped, queue_full") < drops["queue_full"]
