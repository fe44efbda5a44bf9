"""The operations on a map as plain calls: which thread does what, and what becomes of calls that wait at the end."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
from fake_mapper import FakeMapper
from fake_segmenters import Waiting
from small_room import SPACE, make_mapper, wall_frame

from panoptic_mapper import map_server
from panoptic_mapper.frame_queue import FrameQueue, Observation
from panoptic_mapper.map_server import MapServer
from panoptic_mapper.map_service import MapperFailure
from panoptic_mapper.pose_buffer import PoseBuffer
from panoptic_mapper.segmenters.background import BackgroundConfig, BackgroundSegmenter
from panoptic_mapper.worker import WorkerConfig

TIMEOUT_S = 60.0  # of what must come


class Watched(FakeMapper):
    """Notes which threads copy the map, and which make a snapshot of the copy."""

    def __init__(self) -> None:
        super().__init__()
        self.copying, self.making = set(), set()

    def begin_snapshot(self):
        self.copying.add(threading.get_ident())
        stamp_ns = self.last_stamp_ns

        def make():
            self.making.add(threading.get_ident())
            assert self.last_stamp_ns == stamp_ns
            return self.snapshot()

        return make

    def export_state(self):
        self.copying.add(threading.get_ident())
        return super().export_state()


@pytest.fixture
def server() -> Iterator[MapServer]:
    server = MapServer(Watched(), FrameQueue(PoseBuffer()), timeout_s=TIMEOUT_S)
    server.start()
    yield server
    server.close()


def test_the_thread_that_maps_only_copies_the_map(server, tmp_path, monkeypatch) -> None:
    mapper, write = server.worker._mapper, map_server.save_map

    def slow_disk(path, tensors, meta) -> None:
        assert server.objects()[0]  # which would wait for ever if the thread that maps were writing
        write(path, tensors, meta)

    monkeypatch.setattr(map_server, "save_map", slow_disk)
    snapshot, version = server.snapshot()
    assert ([o.id for o in snapshot.objects], version) == ([1, 4], server.worker.version)
    assert server.save(tmp_path / "room.pmap") == (tmp_path / "room.pmap").stat().st_size
    assert mapper.copying == {server.worker.submit(lambda m: threading.get_ident()).result(TIMEOUT_S)}
    assert mapper.making == {threading.get_ident()}


def test_what_changes_the_map_changes_its_version(server, tmp_path) -> None:
    server.save(tmp_path / "room.pmap")
    versions = [server.worker.version]
    for change in (server.reset, partial(server.load, tmp_path / "room.pmap")):
        change()
        versions.append(server.worker.version)
    assert versions == sorted(set(versions))
    server.save(tmp_path / "again.pmap")
    server.status()
    assert server.worker.version == versions[-1]


def test_closing_calls_back_what_waits() -> None:
    server, begun, release = MapServer(FakeMapper(), FrameQueue(PoseBuffer())), threading.Event(), threading.Event()
    server.start()
    server.worker.submit(lambda m: (begun.set(), release.wait(TIMEOUT_S)))
    assert begun.wait(TIMEOUT_S)
    with ThreadPoolExecutor() as threads:
        waiting = [threads.submit(call) for call in (server.snapshot, server.objects)]
        while len(server.worker._tasks) < len(waiting):
            assert not any(future.done() for future in waiting)
        closing = threads.submit(server.close)
        while not server.worker.is_stopping:
            assert not closing.done()
        release.set()
        closing.result(TIMEOUT_S)
        for future in waiting:
            with pytest.raises(MapperFailure, match="is being closed"):
                future.result(TIMEOUT_S)
    with pytest.raises(MapperFailure, match="is being closed"):
        server.objects()
    assert not server.status().is_alive


def test_a_model_beside_the_mapper_is_told_of_reset_and_ended_at_once(tmp_path) -> None:
    os.mkfifo(tmp_path / "pipe")
    model = BackgroundSegmenter(partial(Waiting, tmp_path / "pipe", SPACE), BackgroundConfig())
    poses = PoseBuffer()
    server = MapServer(make_mapper(segmenter=model), FrameQueue(poses), WorkerConfig(idle_refine_steps=0))
    server.start()
    integrated = threading.Semaphore(0)
    server.worker.on_integrated = lambda frame, report: integrated.release()
    for stamp_ns, depth_m in enumerate((2.0, 1.5, 1.0), start=1):
        frame = wall_frame(depth_m, stamp_ns=stamp_ns)
        poses.add(stamp_ns, np.eye(4))
        server.worker.frames.put(Observation(stamp_ns, "camera", frame.color, frame.depth, frame.camera, frame.labels))
        assert integrated.acquire(timeout=TIMEOUT_S)
    deadline_s = time.monotonic() + TIMEOUT_S
    while (status := server.status()).stats.num_keyframes != 3:  # statistics come when no frame waits any more
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    assert status.labels.state == "running"
    assert status.labels.num_waiting >= 2  # the model is at the first
    server.reset()
    status = server.status()
    assert (status.labels.num_waiting, status.stats.num_keyframes, status.num_integrated) == (0, 0, 0)
    server.close()  # although the model has not answered
    assert server.status().labels.state == "stopped"
