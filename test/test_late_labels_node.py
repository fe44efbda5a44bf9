"""The whole node over DDS with a model in a process of its own, which is killed: labels stop and come again."""

import os

import psutil
import pytest

pytest.importorskip("panoptic_mapper.msg", reason="ROS 2 or the built messages are not installed")
from panoptic_mapper.srv import QueryObjects, SetVocabulary

from panoptic_mapper.datasets.rosbag_writer import write_rosbag
from panoptic_mapper.datasets.synthetic import SyntheticConfig, SyntheticRoom
from panoptic_mapper.ros.client import MapperClient
from panoptic_mapper.ros.processes import start_node, start_player

pytestmark = [pytest.mark.ros, pytest.mark.slow]

NUM_FRAMES = 12
TIMEOUT_S = 60.0  # generous: the machine may be busy with other tests
PARAMETERS = {
    "segmenter.name": "geometric",  # the one model that needs no weights
    "segmenter.run": "process",
    "segmenter.background.retry_s": 0.1,
    "segmenter.background.queue.order": "oldest",
    "device": "cpu",
    "queue.capacity": NUM_FRAMES,
    "queue.pose_wait_s": 60.0,  # no frame may be lost to a pose that is late because the machine is busy
    "queue.time_jump_s": 0.1,  # a bag that is played again goes back further
    "poses.time_jump_s": 0.1,
    "qos.depth": 100,  # nor in the middleware
    "sync.queue_size": 100,
    "worker.idle_refine_steps": 0,
    "mapper.keyframes.translation_m": 0.0,  # every frame is a keyframe
    "mapper.optimizer.steps_per_keyframe": 1,
    "publish.status_rate_hz": 20.0,
}


def test_the_map_outlives_its_model(tmp_path, monkeypatch):
    room = SyntheticRoom(SyntheticConfig(width=80, height=60, num_frames=NUM_FRAMES))
    write_rosbag(room, tmp_path / "bag")
    monkeypatch.setenv("ROS_DOMAIN_ID", str(40 + (os.getpid() + 2) % 60))
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with (
        start_node(tmp_path / "node.log", PARAMETERS) as node,
        MapperClient(node.check_alive) as client,
    ):
        client.wait_for_status(lambda s: s.labels_state == "running", TIMEOUT_S, "model")
        play(tmp_path, "first")
        first = client.wait_for_status(
            lambda s: s.num_keyframes == s.labels_received == NUM_FRAMES, TIMEOUT_S, "labels of all keyframes"
        )
        assert first.num_objects > 0
        assert first.labels_delay_ms >= first.labels_model_ms > 0
        (model,) = model_processes(node)
        model.kill()
        play(tmp_path, "second")  # the bag again: a new start of time for the same map
        end = client.wait_for_status(lambda s: s.labels_received == 2 * NUM_FRAMES, TIMEOUT_S, "labels again")
        assert dict(zip(end.labels_trouble_reasons, end.labels_trouble_counts, strict=True)) == {"crash": 1}
        assert end.labels_state == "running"
        assert (end.num_keyframes, end.frames_integrated) == (2 * NUM_FRAMES, 2 * NUM_FRAMES)
        assert client.call(QueryObjects, "query_objects", QueryObjects.Request(text="objects"), TIMEOUT_S).objects
        words = client.call(SetVocabulary, "set_vocabulary", SetVocabulary.Request(things=["lamp"]), TIMEOUT_S)
        assert "fixed set of classes" in words.message
        (model,) = model_processes(node)
        assert node.stop() == 0, node.log_tail()
        assert not model.is_running()
    log = (tmp_path / "node.log").read_text()
    assert log.count("geometry only, the 2D model is started again") == 1
    assert "SIGKILL" in log


def play(folder, name):
    with start_player(folder / "bag", folder / f"{name}.log", rate=1.0, wait_s=TIMEOUT_S) as player:
        assert player.wait(TIMEOUT_S) == 0, player.log_tail()


def model_processes(node):
    children = psutil.Process(node._process.pid).children(recursive=True)
    return [c for c in children if "panoptic_mapper.segmenter_main" in c.cmdline()]
