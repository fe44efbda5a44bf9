"""Labels that come after their keyframe: the geometry does not wait for them, and the map ends up as well labelled."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from queue import Queue
from typing import Any

import numpy as np
import pytest
import torch
from fake_segmenters import Honest, Misbehaving, OnGpu, Waiting
from small_room import FLOOR, ROOM_SPACE, SPACE, TABLE, PassOn, make_mapper, mapped, room_frames, wall_frame

from panoptic_mapper import map_optimizer
from panoptic_mapper.config import config_from_dict
from panoptic_mapper.evaluation import evaluate
from panoptic_mapper.frame import Frame, Segmentation
from panoptic_mapper.frame_queue import FrameQueue, Observation
from panoptic_mapper.label_space import LabelSpace, SemanticClass
from panoptic_mapper.late_labels import take_late_labels
from panoptic_mapper.mapper import PanopticMapper
from panoptic_mapper.pose_buffer import PoseBuffer
from panoptic_mapper.segmenters.background import BackgroundConfig, BackgroundSegmenter
from panoptic_mapper.segmenters.base import Segmenter
from panoptic_mapper.segmenters.dataset import DatasetSegmenter
from panoptic_mapper.worker import MappingWorker, WorkerConfig

TIMEOUT_S = 60.0
GEOMETRY = ("means", "quats", "log_scales", "opacity_logits", "colors")


class Later:
    """Keeps the labels back until they are asked for."""

    def __init__(self, segmenter: Segmenter) -> None:
        self.label_space = segmenter.label_space
        self.ready: deque[tuple[int, Segmentation | None]] = deque()
        self._segmenter = segmenter

    def segment(self, frame: Frame) -> None:
        self.ready.append((frame.stamp_ns, self._segmenter.segment(frame)))


def mapped_late(delay: int, *settings: str) -> PanopticMapper:
    """The room, whose labels come `delay` keyframes late."""
    segmenter = Later(DatasetSegmenter(ROOM_SPACE))
    mapper = make_mapper(*settings, segmenter=segmenter)
    for frame in room_frames():
        mapper.integrate(frame)
        while len(segmenter.ready) > delay:
            assert mapper.label(*segmenter.ready.popleft())
    while segmenter.ready:
        assert mapper.label(*segmenter.ready.popleft())
    return mapper


@pytest.mark.parametrize("delay", [1, 4])
def test_the_geometry_does_not_even_notice_late_labels(delay, monkeypatch) -> None:
    monkeypatch.setattr(map_optimizer, "ImageStep", lambda *_: None)  # it rounds differently from steps with labels
    late, at_once = mapped_late(delay), mapped(room_frames())
    for name in GEOMETRY:
        assert torch.equal(late.map.gaussians[name], at_once.map.gaussians[name]), name


@pytest.mark.parametrize("delay", [1, 4])
def test_a_map_with_late_labels_is_as_good(delay) -> None:
    late, at_once = mapped_late(delay), mapped(room_frames())
    for mapper in (late, at_once):
        mapper.refine(60)  # as it does when the camera rests
    results = [evaluate(mapper, room_frames(), ROOM_SPACE) for mapper in (late, at_once)]
    for name, tolerance in (("pq", 5), ("miou", 5)):
        assert results[0][name] > results[1][name] - tolerance, name
    assert results[0]["id_switches"] <= 1
    assert {o.class_name for o in late.objects()} == {o.class_name for o in at_once.objects()}


def test_late_labels_go_to_their_keyframe_and_into_the_map_at_once() -> None:
    """A camera that looks at the wall from two places: the labels of the first come when it is at the second."""
    pose = np.eye(4)
    pose[0, 3] = 0.5
    first, second = wall_frame(stamp_ns=1), replace(wall_frame(T_map_camera=pose, stamp_ns=2), labels=None)
    mapper = mapped([first, second], "optimizer.steps_per_keyframe=0", segmenter=Later(PassOn(SPACE)))
    assert mapper.objects() == ()
    assert (mapper.snapshot().class_indices == 0).all()
    assert mapper.label(1, first.labels)
    labelled, unlabelled = mapper.keyframes.all
    assert labelled.has_labels
    assert not unlabelled.has_labels
    np.testing.assert_array_equal(labelled.semantic, first.labels.semantic)
    table, chair = mapper.objects()
    assert (table.class_name, chair.class_name) == ("table", "chair")
    assert (table.first_seen_ns, table.observations) == (1, 1)
    # Where they are is where the first camera saw them: at the second's pose they would be half a metre further.
    at_once = mapped([first], "optimizer.steps_per_keyframe=0", segmenter=PassOn(SPACE))
    for late_object, object in zip((table, chair), at_once.objects(), strict=True):
        np.testing.assert_allclose(late_object.centroid, object.centroid, atol=0.05)
    view = mapper.render(first.camera, first.T_map_camera)
    assert (view.semantic == first.labels.semantic)[view.alpha > 0.5].mean() > 0.9


def test_a_late_mask_of_a_known_object_opens_no_second_one() -> None:
    pose = np.eye(4)
    pose[0, 3] = 0.1
    frames = [wall_frame(stamp_ns=1), wall_frame(T_map_camera=pose, stamp_ns=2)]
    mapper = mapped(frames, segmenter=Later(PassOn(SPACE)))
    for frame in reversed(frames):  # newest first
        assert mapper.label(frame.stamp_ns, frame.labels)
    assert [o.observations for o in mapper.objects()] == [2, 2]
    assert all(sorted(k.mask_ids) == [0, 1, 2] for k in mapper.keyframes.all)


def test_labels_of_no_keyframe_or_of_one_that_has_some_change_nothing() -> None:
    mapper = mapped([wall_frame(stamp_ns=1)], segmenter=PassOn(SPACE))
    before = mapper.keyframes.all[0].semantic.clone()
    other = Segmentation(np.full((30, 40), FLOOR, np.int32), np.zeros((30, 40), np.int32))
    assert not mapper.label(1, other)
    assert not mapper.label(2, other)
    assert torch.equal(mapper.keyframes.all[0].semantic, before)
    assert len(mapper.objects()) == 2
    mapper.reset()
    assert not mapper.label(1, other)


def test_bad_late_labels_leave_the_keyframe_without() -> None:
    frame = wall_frame(stamp_ns=1)
    mapper = mapped([frame], segmenter=Later(PassOn(SPACE)))
    semantic = np.full((30, 40), len(SPACE), np.int32)
    with pytest.raises(ValueError, match="class index 5"):
        mapper.label(1, Segmentation(semantic, semantic))
    assert not mapper.keyframes.all[0].has_labels
    assert mapper.label(1, frame.labels)


def test_late_labels_are_reduced_to_the_size_of_the_map() -> None:
    frame = wall_frame(stamp_ns=1)
    depth = frame.depth.copy()
    depth[:, :4] = 0.05  # a finger before the lens
    frame = replace(frame, depth=depth)
    mapper = mapped([frame], "image_width_px=20", segmenter=Later(PassOn(SPACE)))
    stuff_with_id = np.where(frame.labels.semantic == FLOOR, 9, frame.labels.instance)
    assert mapper.label(1, Segmentation(frame.labels.semantic, stuff_with_id))
    keyframe = mapper.keyframes.all[0]
    assert keyframe.semantic.shape == keyframe.mask_index.shape == (15, 20)
    assert (keyframe.semantic[:, :2] == 0).all()
    assert (keyframe.semantic[:10, 12] == TABLE).all()
    assert (keyframe.mask_index[12:] == 0).all()


def observation(frame: Frame) -> Observation:
    return Observation(frame.stamp_ns, "camera", frame.color, frame.depth, frame.camera, frame.labels)


class Robot:
    """A mapping thread with a segmenter in a process of its own."""

    def __init__(self, make: Callable[[], Segmenter], device: str = "cpu", **background: Any) -> None:
        settings = {"retry_s": 0.01, "queue": {"order": "oldest"}, **background}
        self.segmenter = BackgroundSegmenter(make, config_from_dict(BackgroundConfig, settings))
        self.poses = PoseBuffer()
        mapper = PanopticMapper(make_mapper().config, self.segmenter, device)
        self.worker = MappingWorker(mapper, FrameQueue(self.poses), WorkerConfig(idle_refine_steps=0))
        self.integrated: Queue[int] = Queue()
        self.labelled: Queue[int] = Queue()
        self.worker.on_integrated = lambda frame, report: self.integrated.put(frame.stamp_ns)
        take_late_labels(self.segmenter, self.worker)
        self.deliver = self.segmenter.on_labels

        def on_labels(late):
            self.deliver(late)
            self.worker.submit(lambda mapper: self.labelled.put(late.stamp_ns))

        self.segmenter.on_labels = on_labels
        self.worker.start()

    def see(self, frame: Frame) -> None:
        """Hands a frame in and waits until it is in the map."""
        self.poses.add(frame.stamp_ns, frame.T_map_camera)
        self.worker.frames.put(observation(frame))
        assert self.integrated.get(timeout=TIMEOUT_S) == frame.stamp_ns

    def ask(self, question: Callable[[PanopticMapper], Any]) -> Any:
        return self.worker.submit(question).result(TIMEOUT_S)

    def close(self) -> None:
        self.segmenter.close()
        self.worker.stop(TIMEOUT_S)


@pytest.fixture
def start() -> Iterator[Callable[..., Robot]]:
    robots: list[Robot] = []

    def start(make: Callable[[], Segmenter], **settings: Any) -> Robot:
        robots.append(Robot(make, **settings))
        return robots[-1]

    yield start
    for robot in robots:
        robot.close()


def shifted_walls(num: int) -> list[Frame]:
    """The wall from `num` places; stamps 1, 2, ..."""
    poses = [np.eye(4) for _ in range(num)]
    for i, pose in enumerate(poses):
        pose[0, 3] = 0.07 * i
    return [wall_frame(T_map_camera=pose, stamp_ns=1 + i) for i, pose in enumerate(poses)]


def test_geometry_goes_on_while_a_slow_model_thinks(start, tmp_path) -> None:
    os.mkfifo(tmp_path / "pipe")
    robot, frames = start(partial(Waiting, tmp_path / "pipe", SPACE)), shifted_walls(5)
    for frame in frames:  # each of them is mapped while the model has not answered to the first
        robot.see(frame)
    assert robot.ask(lambda m: (m.stats().num_keyframes, len(m.objects()))) == (5, 0)
    assert robot.ask(lambda m: m.stats().num_gaussians) > 200
    version = robot.worker.version
    with (tmp_path / "pipe").open("wb", buffering=0) as pipe:
        for frame in frames:
            pipe.write(b".")
            assert robot.labelled.get(timeout=TIMEOUT_S) == frame.stamp_ns
    assert robot.ask(lambda m: [o.observations for o in m.objects()]) == [5, 5]
    assert robot.worker.version >= version + 5  # so that they are published


@pytest.mark.parametrize("how", ["segfault", "hang", "memory", "size", "nan", "class", "nothing of the kind"])
def test_whatever_the_model_does_the_map_is_built(start, how) -> None:
    make = partial(Misbehaving, {2: how}, label_space=SPACE)
    robot = start(make, timeout_s=0.3 if how == "hang" else TIMEOUT_S)
    for frame in shifted_walls(4):
        robot.see(frame)
    assert [robot.labelled.get(timeout=TIMEOUT_S) for _ in range(3)] == [1, 3, 4]
    has_labels = robot.ask(lambda m: [k.has_labels for k in m.keyframes.all])
    assert has_labels == [True, False, True, True]
    assert robot.ask(lambda m: [(o.class_name, o.observations) for o in m.objects()]) == [("table", 3), ("chair", 3)]
    assert robot.worker.num_integrated == 4
    assert robot.worker.last_error == ""
    assert robot.segmenter.status().given_up == {"failed": 1}


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(
    ("how", "failures"),
    [("really no cuda memory", {"out_of_memory": 2}), ("broken cuda context", {"error": 1, "crash": 1})],
)
def test_the_map_goes_on_on_the_gpu_on_which_the_model_fails(start, how, failures) -> None:
    pytest.importorskip("gsplat", reason="the optional gsplat is not installed")
    robot = start(partial(OnGpu, {2: how}, label_space=SPACE), device="cuda", timeout_s=TIMEOUT_S)
    for frame in shifted_walls(4):
        robot.see(frame)
    # A process with a broken context ends, since nothing but a new one has another; both tries are spent then.
    assert [robot.labelled.get(timeout=TIMEOUT_S) for _ in range(3)] == [1, 3, 4]
    assert robot.ask(lambda m: [k.has_labels for k in m.keyframes.all]) == [True, False, True, True]
    assert robot.segmenter.status().failures == failures
    assert robot.worker.num_integrated == 4
    assert robot.worker.last_error == ""


def test_labels_that_the_mapper_refuses_are_told_and_the_thread_lives(start, caplog) -> None:
    robot = start(partial(Honest, SPACE))
    chair_is_stuff = LabelSpace.from_classes([SemanticClass(10, "chair", False)])
    robot.ask(lambda m: setattr(m, "label_space", chair_is_stuff))  # as if another model had been loaded
    robot.see(shifted_walls(1)[0])
    assert robot.labelled.get(timeout=TIMEOUT_S) == 1
    assert robot.worker.is_alive
    assert "class 'chair' is stuff already" in robot.worker.last_error
    assert "chair" in caplog.text


def test_labels_that_come_after_the_end_are_no_error(start, tmp_path, caplog) -> None:
    os.mkfifo(tmp_path / "pipe")
    robot = start(partial(Waiting, tmp_path / "pipe", SPACE))
    robot.see(shifted_walls(1)[0])
    robot.worker.stop(TIMEOUT_S)
    came = threading.Event()
    robot.segmenter.on_labels = lambda late: (robot.deliver(late), came.set())
    (tmp_path / "pipe").open("w").close()
    assert came.wait(TIMEOUT_S)
    robot.segmenter.close()
    assert [r for r in caplog.records if r.levelname == "ERROR" and "panoptic_mapper" in r.name] == []
