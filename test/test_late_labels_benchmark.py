"""The benchmark of late labels, with a network so small that it runs here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("transformers", reason="the optional transformers is not installed")
from fake_segmenters import Honest
from small_room import ROOM_SPACE, room_frames

from benchmarks import late_labels
from panoptic_mapper.config import load_config
from panoptic_mapper.datasets.synthetic import SyntheticConfig, SyntheticRoom
from panoptic_mapper.mapper import MapperConfig


class Quick(Honest):
    def __init__(self, folder: Path) -> None:
        super().__init__(ROOM_SPACE)


def test_every_frame_is_counted_in_each_way_to_run(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(late_labels, "WithRoomLabels", Quick)
    monkeypatch.setattr(late_labels, "WARM_UP_FRAMES", 2)
    config = load_config(MapperConfig, None, ["optimizer.steps_per_keyframe=1", "keyframes.translation_m=0"])
    rows = late_labels.rows(tmp_path, list(room_frames(8)), config, rate_hz=1000)
    assert [row["run"] for row in rows] == ["none", "process", "inline"]
    for row in rows:
        assert row["frames_per_s"] > 0
        assert row["dropped"] == 0  # the queue holds eight
        assert row["keyframes"] == 8
        assert row["latency_p99_ms"] >= row["latency_p50_ms"] > 0
    none, process, inline = rows
    assert none["objects"] == 0
    assert inline["objects"] > 0
    assert process["failures"] == 0
    assert 0 <= process["labelled"] + process["waiting"] <= process["keyframes"]


def test_frames_of_the_room_are_rendered_in_order() -> None:
    config = SyntheticConfig(width=32, height=24, num_frames=9)
    room = SyntheticRoom(config)
    frames = late_labels.room_frames(config)
    assert [frame.stamp_ns for frame in frames] == [room[i].stamp_ns for i in range(9)]
    np.testing.assert_array_equal(frames[7].depth, room[7].depth)
