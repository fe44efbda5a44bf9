"""The benchmark of late labels, with a network so small that it runs here."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

pytest.importorskip("transformers", reason="the optional transformers is not installed")
from fake_segmenters import Honest
from small_room import ROOM_SPACE, room_frames

from benchmarks import late_labels
from panoptic_mapper.config import load_config
from panoptic_mapper.datasets import open_dataset
from panoptic_mapper.mapper import MapperConfig

CONFIG = load_config(MapperConfig, None, ["optimizer.steps_per_keyframe=1", "keyframes.translation_m=0"])


@pytest.fixture(autouse=True)
def short_warm_up(monkeypatch) -> None:
    monkeypatch.setattr(late_labels, "WARM_UP_FRAMES", 2)


@pytest.mark.parametrize("rate_hz", [0, 1000])
def test_every_frame_is_counted_in_each_way_to_run(rate_hz) -> None:
    frames = list(room_frames(8))
    rows = list(late_labels.rows(partial(Honest, ROOM_SPACE), frames, CONFIG, rate_hz, list(late_labels.RUNS)))
    assert [row["run"] for row in rows] == ["none", "process", "inline"]
    for row in rows:
        assert row["frames_per_s"] > 0
        assert row["frames"] == 6
        assert row["dropped"] == 0  # the queue holds eight
        assert row["keyframes"] == 8
        assert row["latency_p99_ms"] >= row["latency_p50_ms"] > 0
    none, process, inline = rows
    assert none["objects"] == 0
    assert inline["objects"] > 0
    assert process["failures"] == process["given_up"] == 0
    assert process["labelled"] >= 2  # those of the warm-up are waited for
    assert process["labelled"] + process["waiting"] <= process["keyframes"]
    assert process["delay_ms"] >= process["model_ms"] > 0
    assert process["labels_per_s"] >= 0


def test_the_rate_is_that_of_the_camera_where_the_mapper_keeps_up() -> None:
    frames = list(room_frames(6))
    (row,) = late_labels.rows(partial(Honest, ROOM_SPACE), frames, CONFIG, 4.0, ["none"])
    assert row["frames_per_s"] == pytest.approx(4.0, rel=0.2)


def test_what_is_done_is_there_before_the_next_begins() -> None:
    def refuse() -> Honest:
        raise RuntimeError("no model")

    rows = late_labels.rows(refuse, list(room_frames(4)), CONFIG, 0, ["none", "inline"])
    assert next(rows)["run"] == "none"
    with pytest.raises(RuntimeError, match="no model"):
        next(rows)


def test_a_walk_goes_there_and_back_with_stamps_that_go_on() -> None:
    room = open_dataset("synthetic:width=32,height=24,num_frames=4")
    frames = late_labels.walk(room, num_frames=9, size=(16, 12), rate_hz=10)
    first = room[0].stamp_ns
    assert [frame.stamp_ns for frame in frames] == [first + i * 100_000_000 for i in range(9)]
    for frame, i in zip(frames, (0, 1, 2, 3, 2, 1, 0, 1, 2), strict=True):
        np.testing.assert_allclose(frame.T_map_camera, room[i].T_map_camera, atol=1e-12)
        np.testing.assert_array_equal(frame.depth, room[i].resized(16, 12).depth)
        assert frame.labels is not None
    assert len(late_labels.walk(room, num_frames=3, size=(32, 24), rate_hz=0)) == 3
