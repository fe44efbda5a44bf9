"""The mapper in a process of its own: what goes there and comes back, what waits for what, and how either side ends."""

from __future__ import annotations

import os
import pickle
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from queue import Queue

import numpy as np
import psutil
import pytest
from mirror_mapper import FAILING, REFUSED, WAITING, Mirror, cloud, die, fail, refuse

from panoptic_mapper import mapping_process
from panoptic_mapper.frame import PinholeCamera, Segmentation
from panoptic_mapper.frame_queue import FrameQueue, FrameQueueConfig, Observation
from panoptic_mapper.map_service import MapperFailure
from panoptic_mapper.mapping_messages import NUM_FRAMES
from panoptic_mapper.mapping_process import MappingProcess
from panoptic_mapper.worker import WorkerConfig

TIMEOUT_S = 60.0  # of what must come
BUSY_S = 0.3  # after which a call gives up waiting for the mapper
CAPACITY = 3


class Frames(FrameQueue):
    """Tells when a frame is done with; the camera is at a place that depends on the time."""

    def __init__(self) -> None:
        super().__init__(self, FrameQueueConfig(capacity=CAPACITY))
        self.done: Queue[tuple[str, str]] = Queue()

    def lookup(self, stamp_ns: int, frame_id: str) -> np.ndarray:
        return pose_of(stamp_ns)

    def finish(self, reason: str = "", message: str = "") -> None:
        super().finish(reason, message)
        self.done.put((reason, message))


class Node:
    """The side of the node, with one mapper."""

    def __init__(self, pipe: Path | None = None) -> None:
        self.frames, self.deaths = Frames(), Queue()
        self.pipe = pipe
        self.mapper = MappingProcess(self.frames, self.deaths.put)

    def started(self) -> Node:
        self.mapper.start(partial(Mirror, self.pipe), WorkerConfig(), BUSY_S)
        return self

    def see(self, *stamps_ns: int) -> None:
        for stamp_ns in stamps_ns:
            self.frames.put(observation(stamp_ns))

    def wait_for_frames(self, num: int) -> list[str]:
        """The reasons of the drops among the next frames that are done with."""
        done = [self.frames.done.get(timeout=TIMEOUT_S) for _ in range(num)]
        return [reason for reason, _ in done if reason]


def pose_of(stamp_ns: int) -> np.ndarray:
    pose = np.eye(4)
    pose[:3, 3] = stamp_ns, 0.5, -stamp_ns
    return pose


def camera_of(stamp_ns: int) -> PinholeCamera:
    return PinholeCamera(30.0, 30.0, 8.0, 8.0, 32 + 64 * (stamp_ns % 3), 24)  # neighbours are of another size


def observation(stamp_ns: int) -> Observation:
    camera, rng = camera_of(stamp_ns), np.random.default_rng(stamp_ns)
    size = (camera.height, camera.width)
    labels = Segmentation(*rng.integers(0, 3, (2, *size)).astype(np.int32))
    color = rng.integers(0, 256, (*size, 3), dtype=np.uint8)[..., ::-1]  # a view, as decoders give it
    return Observation(stamp_ns, "camera", color, rng.random(size, dtype=np.float32), camera, labels)


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Iterator[Node]:
    pipe = tmp_path_factory.mktemp("mapper") / "pipe"
    os.mkfifo(pipe)
    node = Node(pipe).started()
    yield node
    assert node.deaths.empty()
    node.mapper.close()


@pytest.fixture
def node(shared) -> Node:
    """A node whose map is empty."""
    shared.mapper.reset()
    return shared


@pytest.fixture
def own() -> Iterator[Node]:
    """A process that a test may ruin; its mapper is not made yet."""
    node = Node()
    yield node
    node.mapper.close()


def test_frames_arrive_as_they_were(node) -> None:
    for stamp_ns in range(1, 6):
        node.see(stamp_ns)
        assert node.wait_for_frames(1) == []
        sent = observation(stamp_ns)
        view, label_space, last_stamp_ns = node.mapper.render(camera_of(stamp_ns), pose_of(stamp_ns))
        assert (label_space, last_stamp_ns) == (Mirror.label_space, stamp_ns)
        images = ((view.color, sent.color), (view.depth, sent.depth))
        ids = ((view.semantic, sent.labels.semantic), (view.instance, sent.labels.instance))
        for image, expected in (*images, *ids):
            np.testing.assert_array_equal(image, expected)
            assert image.dtype == expected.dtype
    status = node.mapper.status()
    assert (status.num_integrated, status.last_stamp_ns, status.stats.num_frames) == (5, 5, 5)
    assert 0 < status.latency_ms[0] < 1e3 * TIMEOUT_S
    assert node.frames.num_queued == 0


def test_frames_that_fail_are_counted_here_and_the_log_comes_along(node, caplog) -> None:
    caplog.set_level("INFO")
    node.see(1, REFUSED, FAILING, FAILING + 10)
    assert node.wait_for_frames(4) == ["bad_frame", "error"]
    assert node.frames.drops == {"bad_frame": 1, "error": 1}
    assert node.mapper.status().num_integrated == 2
    assert "the GPU is gone" in node.mapper.status().last_error
    told = [record for record in caplog.records if record.name == "panoptic_mapper.mirror"]
    assert [record.getMessage() for record in told] == ["frame 1", f"frame {FAILING + 10}"]
    (failure,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert failure.name == "panoptic_mapper.worker"
    assert "Traceback" in failure.getMessage()


def test_the_version_of_the_map_is_known_without_asking(node) -> None:
    versions = []
    for stamp_ns in (1, 2):
        node.see(stamp_ns)
        node.wait_for_frames(1)
        versions.append(node.mapper.version)  # at least of this frame
    assert versions[1] > versions[0]
    assert node.mapper.snapshot()[1] >= versions[1]


def test_clouds_come_whole_and_keep_what_they_show(node) -> None:
    snapshots = []
    for stamp_ns in (1, 2):
        node.see(stamp_ns)
        node.wait_for_frames(1)
        snapshots.append(node.mapper.snapshot()[0])
    for stamp_ns, snapshot in zip((1, 2), snapshots, strict=True):
        expected = cloud(stamp_ns)
        for name in ("points", "colors", "class_indices", "instance_ids", "confidences"):
            np.testing.assert_array_equal(getattr(snapshot, name), getattr(expected, name))
        assert pickle.dumps(snapshot.objects) == pickle.dumps(expected.objects)


def test_a_busy_mapper_holds_up_neither_the_status_nor_frames(node) -> None:
    stamps = [WAITING + 10 * k for k in range(NUM_FRAMES + CAPACITY + 2)]
    node.see(*stamps)  # the first is in the mapper's hand, and the last ones are too many
    assert node.frames.num_queued == NUM_FRAMES + CAPACITY
    assert node.frames.drops == {"queue_full": 2}
    with ThreadPoolExecutor() as threads, node.pipe.open("w"):
        cloud_to_come = threads.submit(node.mapper.snapshot)
        with pytest.raises(TimeoutError, match=r"busy for more than 0\.3 s; the request was called back"):
            node.mapper.objects()
        assert node.mapper.status().is_alive
        assert node.mapper.status().num_integrated == 0
    assert cloud_to_come.result(TIMEOUT_S)[0].stamp_ns in stamps
    assert node.wait_for_frames(NUM_FRAMES + CAPACITY) == []
    assert node.mapper.status().last_stamp_ns == stamps[-1]
    assert node.frames.drops == {"queue_full": 2}


def test_after_a_reset_nothing_of_before_is_left(node) -> None:
    node.see(1, REFUSED)
    node.wait_for_frames(2)
    assert node.mapper.status().stats.num_frames == 1
    node.mapper.pause()
    node.see(2000)
    assert node.frames.drops == {"bad_frame": 1, "paused": 1}
    assert node.mapper.status().is_paused
    version = node.mapper.version
    node.mapper.reset()
    assert (node.frames.num_received, node.frames.num_queued, node.frames.drops) == (0, 0, {})
    status = node.mapper.status()
    assert (status.num_integrated, status.stats.num_frames, status.last_error) == (0, 0, "")
    assert node.mapper.version > version
    node.mapper.resume()
    node.see(3)
    assert node.wait_for_frames(1) == []


def test_frames_that_wait_on_either_side_are_forgotten_by_a_reset(node) -> None:
    node.see(WAITING)
    with node.pipe.open("w"):  # the mapper is at it
        node.mapper.pause()
        node.frames.set_paused(False)
        node.see(*(WAITING + 10 * k for k in range(1, NUM_FRAMES + 1)))
    node.wait_for_frames(1)
    assert node.frames.num_queued == NUM_FRAMES
    node.mapper.reset()
    assert (node.frames.num_queued, node.frames.drops) == (0, {})
    node.mapper.resume()
    node.see(5)
    assert node.wait_for_frames(NUM_FRAMES + 1) == []
    assert node.mapper.status().num_integrated == 1


def test_errors_come_back_as_what_they_are(node, tmp_path, caplog) -> None:
    with pytest.raises(ValueError, match=r"missing\.pmap: expected a map file, but there is nothing"):
        node.mapper.load(tmp_path / "missing.pmap")
    assert caplog.text == ""
    with pytest.raises(MapperFailure, match="internal error: IndexError"):
        node.mapper.render(camera_of(1), pose_of(1))  # there is no frame yet
    assert "Traceback" in caplog.text
    assert node.mapper.save(tmp_path / "room.pmap") == (tmp_path / "room.pmap").stat().st_size
    assert node.mapper.load(tmp_path / "room.pmap")[0].num_gaussians == 2
    assert node.mapper.set_vocabulary(["lamp"], ["wall"]).names[-1] == "lamp"


def test_a_mapper_that_cannot_be_made_is_told(own) -> None:
    with pytest.raises(ValueError, match=r"^device 'cuda': torch finds no NVIDIA GPU here$"):
        own.mapper.start(refuse, WorkerConfig(), BUSY_S)
    with pytest.raises(MapperFailure, match=r"internal error: .*no kernel image"):
        own.mapper.start(fail, WorkerConfig(), BUSY_S)
    assert not own.mapper.is_started
    with pytest.raises(MapperFailure, match="ended with status 7"):
        own.mapper.start(die, WorkerConfig(), BUSY_S)
    assert "status 7" in own.deaths.get(timeout=TIMEOUT_S)


def test_the_end_of_the_process_is_told_to_all_who_wait(tmp_path) -> None:
    os.mkfifo(tmp_path / "pipe")
    node = Node(tmp_path / "pipe").started()
    node.see(WAITING, WAITING + 1)
    with ThreadPoolExecutor() as threads:
        waiting = threads.submit(node.mapper.snapshot)
        node.mapper.status()  # the request before it is there, too
        os.kill(node.mapper.pid, signal.SIGKILL)
        with pytest.raises(MapperFailure, match="was ended by SIGKILL"):
            waiting.result(TIMEOUT_S)
    assert node.wait_for_frames(2) == ["error", "error"]
    reason = node.deaths.get(timeout=TIMEOUT_S)
    assert reason.startswith("the mapper's process was ended by SIGKILL; the kernel does that")
    assert reason.endswith("its map is lost")
    status = node.mapper.status()
    assert (status.is_alive, status.last_error) == (False, reason)
    with pytest.raises(MapperFailure, match="SIGKILL"):
        node.mapper.reset()
    node.see(5000)  # nothing takes it any more, and nothing fails
    assert not node.mapper.is_running
    node.mapper.close()
    assert node.deaths.empty()


def test_it_outlives_signals_to_the_group_but_not_its_parent(own) -> None:
    own.started()
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(own.mapper.pid, number)
    assert own.mapper.status().is_alive
    with socket.socket(fileno=os.dup(own.mapper._connection.fileno())) as connection:
        connection.shutdown(socket.SHUT_RDWR)  # as where the parent is killed
    assert "ended with status 0" in own.deaths.get(timeout=TIMEOUT_S)


def test_closing_calls_back_what_waits_and_ends_a_mapper_that_hangs(tmp_path, monkeypatch, caplog) -> None:
    monkeypatch.setattr(mapping_process, "CLOSE_S", 0.2)
    os.mkfifo(tmp_path / "pipe")
    node = Node(tmp_path / "pipe").started()
    node.see(WAITING)
    with ThreadPoolExecutor() as threads, (tmp_path / "pipe").open("w"):
        waiting = threads.submit(node.mapper.snapshot)
        node.mapper.status()
        node.mapper.close()
        with pytest.raises(MapperFailure, match="the mapper is closed"):
            waiting.result(TIMEOUT_S)
    assert "ended by force" in caplog.text
    assert not psutil.pid_exists(node.mapper.pid)
    assert node.deaths.empty()
    node.mapper.close()  # once more, as whoever is not sure does
    with pytest.raises(MapperFailure, match="the mapper is closed"):
        node.mapper.objects()
    assert not node.mapper.status().is_alive
