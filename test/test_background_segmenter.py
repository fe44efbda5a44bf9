"""Labels from a process beside the mapper: slow, crashing, hanging and lying models cost labels, and nothing else."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from functools import partial
from queue import Queue

import numpy as np
import pytest
from fake_segmenters import SPACE, Honest, Misbehaving, Waiting, Words, die_while, make_slowly, refuse
from test_segmenter_process import TIMEOUT_S, assert_same, frame_of

from panoptic_mapper.config import config_from_dict
from panoptic_mapper.segmenters import SegmenterConfig, create_background_segmenter, create_segmenter
from panoptic_mapper.segmenters.background import BackgroundConfig, BackgroundSegmenter, LateLabels
from panoptic_mapper.segmenters.base import Segmenter


class Rig:
    """Makes background segmenters whose labels are collected."""

    def __init__(self) -> None:
        self.labels: Queue[LateLabels] = Queue()
        self.segmenters: list[BackgroundSegmenter] = []

    def start(self, make: Callable[[], Segmenter], **settings) -> BackgroundSegmenter:
        config = config_from_dict(BackgroundConfig, {"retry_s": 0.01, "queue": {"order": "oldest"}, **settings})
        segmenter = BackgroundSegmenter(make, config)
        segmenter.on_labels = self.labels.put
        self.segmenters.append(segmenter)
        return segmenter

    def labels_of(self, *stamps_ns: int) -> None:
        """Waits for the labels of these frames, which must come in this order and be right."""
        for stamp_ns in stamps_ns:
            late = self.labels.get(timeout=TIMEOUT_S)
            assert late.stamp_ns == stamp_ns
            assert late.label_space == SPACE
            assert_same(late.segmentation, frame_of(stamp_ns).labels)


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    for segmenter in rig.segmenters:
        segmenter.close()


def test_frames_are_taken_at_once_and_labels_come_when_the_model_is_ready(rig, tmp_path) -> None:
    os.mkfifo(tmp_path / "pipe")
    segmenter = rig.start(partial(Waiting, tmp_path / "pipe"))
    assert segmenter.label_space == SPACE
    for stamp_ns in (1, 2, 3):
        assert segmenter.segment(frame_of(stamp_ns)) is None
    assert rig.labels.empty()  # nobody has let the model go on
    assert segmenter.status().num_labelled == 0
    with (tmp_path / "pipe").open("wb", buffering=0) as pipe:
        pipe.write(b"...")
        rig.labels_of(1, 2, 3)
    status = segmenter.status()
    assert (status.state, status.num_labelled, status.num_waiting, status.failures) == ("running", 3, 0, {})
    assert 0 < status.model_ms < status.delay_ms


@pytest.mark.parametrize(
    ("how", "kind"), [("segfault", "crash"), ("hang", "hang"), ("exception", "error"), ("memory", "out_of_memory")]
)
def test_after_one_failure_the_frame_is_tried_again_and_labelled(rig, tmp_path, how, kind, caplog) -> None:
    make = partial(Misbehaving, {2: how}, once=tmp_path / "was bad")
    segmenter = rig.start(make, timeout_s=0.3 if how == "hang" else TIMEOUT_S)
    for stamp_ns in (1, 2, 3):
        segmenter.segment(frame_of(stamp_ns))
    rig.labels_of(1, 2, 3)
    status = segmenter.status()
    assert (status.state, status.failures, status.given_up) == ("running", {kind: 1}, {})
    assert status.last_failure.startswith(f"{kind}: ")
    diagnostic = "geometry only" if kind in ("crash", "hang") else "no labels for a keyframe"
    assert sum(diagnostic in record.message and kind in record.message for record in caplog.records) == 1


@pytest.mark.parametrize("how", ["exit", "nan"])
def test_a_frame_on_which_the_model_always_fails_is_given_up(rig, how) -> None:
    segmenter = rig.start(partial(Misbehaving, {2: how}))
    for stamp_ns in (1, 2, 3):
        segmenter.segment(frame_of(stamp_ns))
    rig.labels_of(1, 3)
    status = segmenter.status()
    assert status.given_up == {"failed": 1}
    assert status.failures == {"crash" if how == "exit" else "garbage": 2}


def test_a_model_that_gives_nothing_but_garbage_is_replaced(rig) -> None:
    segmenter = rig.start(partial(Misbehaving, dict.fromkeys((1, 2, 3), "class")))
    process = segmenter._process
    for stamp_ns in (1, 2, 3, 4):
        segmenter.segment(frame_of(stamp_ns))
    rig.labels_of(4)
    assert segmenter._process is not process
    assert segmenter.status().failures == {"garbage": 6}


def test_waits_grow_while_the_model_cannot_be_started(rig, tmp_path, caplog) -> None:
    caplog.set_level(logging.INFO)
    switch = tmp_path / "broken"
    segmenter = rig.start(partial(die_while, switch), retry_s=0.01, max_retry_s=0.04)
    switch.touch()
    enough_failures = threading.Event()
    note_failure = segmenter._note_failure

    def noting(error: Exception) -> None:
        note_failure(error)
        if sum(segmenter.status().failures.values()) >= 5:
            switch.unlink(missing_ok=True)
            enough_failures.set()

    segmenter._note_failure = noting
    segmenter._process.kill()
    segmenter.segment(frame_of(1))
    assert enough_failures.wait(TIMEOUT_S)
    rig.labels_of(1)  # the frame has waited all along
    waits = [record.args[0] for record in caplog.records if "geometry only" in record.message]
    assert waits[:5] == pytest.approx([0.01, 0.02, 0.04, 0.04, 0.04])
    assert caplog.text.count("the 2D model runs") == 1
    assert segmenter.status().state == "running"


def test_while_the_model_is_down_frames_wait_and_the_status_says_so(rig) -> None:
    segmenter = rig.start(partial(Misbehaving, {1: "exit"}), retry_s=1e6, max_retry_s=1e6, queue={"capacity": 2})
    failed = threading.Event()
    note_failure = segmenter._note_failure
    segmenter._note_failure = lambda error: (note_failure(error), failed.set())
    segmenter.segment(frame_of(1))
    assert failed.wait(TIMEOUT_S)
    for stamp_ns in range(2, 7):
        segmenter.segment(frame_of(stamp_ns))
    status = segmenter.status()
    assert (status.state, status.num_waiting) == ("retrying", 2)
    assert "status 3" in status.last_failure
    segmenter.clear()
    assert segmenter.status().num_waiting == 0


def test_wrong_settings_are_told_at_the_start() -> None:
    with pytest.raises(ValueError, match="no weights in /nowhere"):
        BackgroundSegmenter(refuse, BackgroundConfig())


def test_a_model_that_crashes_at_its_start_is_started_again(rig, tmp_path) -> None:
    switch = tmp_path / "broken"
    switch.touch()
    segmenter = rig.start(partial(die_while, switch), retry_s=0.01, max_retry_s=0.01)
    assert segmenter.label_space.is_open
    assert len(segmenter.label_space) == 1  # it has no classes yet
    segmenter.segment(frame_of(1))
    assert segmenter.status().failures["crash"] >= 1
    switch.unlink()
    rig.labels_of(1)
    assert segmenter.label_space == SPACE


def test_frames_do_not_wait_for_a_model_that_loads_for_long(rig, tmp_path) -> None:
    os.mkfifo(tmp_path / "pipe")
    segmenter = rig.start(partial(make_slowly, tmp_path / "pipe"), start_wait_s=0.0)
    assert segmenter.status().state == "starting"
    segmenter.segment(frame_of(1))
    (tmp_path / "pipe").open("w").close()
    rig.labels_of(1)
    assert segmenter.status().failures == {}


def test_a_new_vocabulary_reaches_the_process_and_the_next_one(rig) -> None:
    segmenter = rig.start(partial(Words, ("chair",), ("floor",)), retry_s=0.01)
    assert segmenter.label_space.names == ("unlabeled", "chair", "floor")
    segmenter.set_vocabulary(["lamp", "couch|sofa"], ["wall"])
    assert segmenter.label_space.names == ("unlabeled", "lamp", "couch", "wall")
    segmenter.segment(frame_of(1))
    assert rig.labels.get(timeout=TIMEOUT_S).label_space.names == ("unlabeled", "lamp", "couch", "wall")
    segmenter._process.kill()
    segmenter.segment(frame_of(2))
    assert rig.labels.get(timeout=TIMEOUT_S).label_space.names == ("unlabeled", "lamp", "couch", "wall")
    assert segmenter.status().failures == {"crash": 1}
    with pytest.raises(ValueError, match="'lamp' comes 2 times"):
        segmenter.set_vocabulary(["lamp", "lamp"], [])
    assert segmenter.label_space.names == ("unlabeled", "lamp", "couch", "wall")
    with pytest.raises(ValueError, match="fixed set of classes"):
        rig.start(Honest).set_vocabulary(["lamp"], [])


def test_a_failing_receiver_does_not_end_the_labels(rig) -> None:
    segmenter = rig.start(Honest)

    def on_labels(late: LateLabels) -> None:
        rig.labels.put(late)
        if late.stamp_ns == 1:
            raise RuntimeError("the mapper has been stopped")

    segmenter.on_labels = on_labels
    segmenter.segment(frame_of(1))
    segmenter.segment(frame_of(2))
    rig.labels_of(1, 2)


def test_closing_does_not_wait_for_a_model_that_hangs(rig, tmp_path) -> None:
    os.mkfifo(tmp_path / "pipe")
    segmenter = rig.start(partial(Waiting, tmp_path / "pipe"), timeout_s=1e6)
    process = segmenter._process._process
    segmenter.segment(frame_of(1))
    reader_is_there = (tmp_path / "pipe").open("w")  # opens once the model waits
    segmenter.close()
    reader_is_there.close()
    assert process.poll() is not None
    assert segmenter.status().state == "stopped"
    assert segmenter.status().failures == {}
    assert not segmenter._thread.is_alive()


def test_a_configured_segmenter_gives_the_same_in_its_process_as_here(rig) -> None:
    config = SegmenterConfig(name="dataset", noise="hard", seed=3)
    segmenter = create_background_segmenter(config, SPACE)
    rig.segmenters.append(segmenter)
    segmenter.on_labels = rig.labels.put
    here = create_segmenter(config, SPACE)
    for stamp_ns in (1, 2):
        segmenter.segment(frame_of(stamp_ns))
    for _ in range(2):
        late = rig.labels.get(timeout=TIMEOUT_S)
        assert_same(late.segmentation, here.segment(frame_of(late.stamp_ns)))
        assert np.any(late.segmentation.semantic != frame_of(late.stamp_ns).labels.semantic)
