"""Mapping a recorded sequence offline: which frames are read, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_room import ROOM_SPACE, room_frames

from panoptic_mapper import build
from panoptic_mapper.build import BuildConfig, build_map, create_mapper, resolved_device
from panoptic_mapper.config import load_config
from panoptic_mapper.frame import Frame
from panoptic_mapper.label_space import LabelSpace
from panoptic_mapper.resources import resource_path
from panoptic_mapper.segmenters import SegmenterConfig
from panoptic_mapper.segmenters.none import NoSegmenter


class Recording:
    """The small room as a dataset that tells which frames were read, and raises on those that must not be."""

    name = "recording"

    def __init__(self, num_frames: int = 10, forbidden: tuple[int, ...] = ()) -> None:
        self.label_space: LabelSpace | None = ROOM_SPACE
        self.num_frames, self.forbidden = num_frames, forbidden
        self.read: list[int] = []

    def __len__(self) -> int:
        return self.num_frames

    def __getitem__(self, index: int) -> Frame:
        if index in self.forbidden:
            raise AssertionError(f"frame {index} was read")
        self.read.append(index)
        return room_frames()[index]


def config(*settings: str) -> BuildConfig:
    return load_config(BuildConfig, overrides=["device=cpu", "mapper.optimizer.steps_per_keyframe=0", *settings])


def test_held_out_frames_are_never_read() -> None:
    recording = Recording(forbidden=(2, 6))
    built = build_map(recording, config("test_every=4"))
    assert built.splits == {"train": [0, 1, 3, 4, 5, 7, 8, 9], "test": [2, 6]}
    assert recording.read == built.splits["train"]  # in order, each once
    assert built.mapper.stats().num_frames == 8
    assert built.wall_s > 0


def test_every_other_frame_with_some_held_out() -> None:
    recording = Recording()
    built = build_map(recording, config("every=2", "test_every=2"))
    assert built.splits == {"train": [0, 4, 8], "test": [2, 6]}
    assert recording.read == [0, 4, 8]


def test_nothing_held_out() -> None:
    built = build_map(Recording(num_frames=3), config("test_every=0"))
    assert built.splits == {"train": [0, 1, 2], "test": []}


def test_one_frame() -> None:
    built = build_map(Recording(num_frames=1), config())
    assert built.splits == {"train": [0], "test": []}
    assert built.mapper.stats().num_gaussians > 500


def test_an_empty_sequence_is_refused() -> None:
    with pytest.raises(ValueError, match="recording: no frame is left to map out of 0"):
        build_map(Recording(num_frames=0), config())
    with pytest.raises(ValueError, match=r"test_every: expected 0.*got 1"):
        build_map(Recording(), config("test_every=1"))


def test_a_segmenter_that_does_not_fit_is_refused_before_any_frame_is_read() -> None:
    recording = Recording(forbidden=tuple(range(10)))
    recording.label_space = None
    with pytest.raises(ValueError, match="segmenter 'dataset': there is no label space"):
        build_map(recording, config())


def test_progress_counts_the_mapped_frames() -> None:
    calls: list[tuple[int, int, str]] = []
    built = build_map(Recording(num_frames=5), config("test_every=4"), lambda *call: calls.append(call))
    assert [(done, total) for done, total, _ in calls] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert f"{built.mapper.stats().num_gaussians:,} Gaussians" in calls[-1][2]


def test_progress_goes_on_with_the_global_steps() -> None:
    seen: list[tuple[int, int, str]] = []
    settings = config("every=3", "test_every=0", "mode=offline", "mapper.offline.iterations=2")
    build_map(Recording(), settings, lambda *told: seen.append(told))
    assert [told[:2] for told in seen] == [(1, 4), (2, 4), (3, 4), (4, 4), (1, 2), (2, 2)]
    assert seen[-1][2].startswith("global steps, ")


def test_without_labels_the_map_has_none() -> None:
    built = build_map(Recording(num_frames=2), config("segmenter.name=none"))
    assert (built.mapper.snapshot().class_indices == 0).all()


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    for has_gpu, auto in ((False, "cpu"), (True, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda has_gpu=has_gpu: has_gpu)
        assert resolved_device("auto") == auto
        assert resolved_device("cpu") == "cpu"
    assert resolved_device("cuda") == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="device 'cuda': torch finds no NVIDIA GPU"):
        resolved_device("cuda")


@pytest.mark.parametrize(("up_axis", "expected"), [("auto", None), ("-y", [0, -1, 0]), ("z", [0, 0, 1])])
def test_the_segmenter_is_told_a_known_up_direction(
    monkeypatch: pytest.MonkeyPatch, up_axis: str, expected: list[int] | None
) -> None:
    told = []

    def segmenter(config: SegmenterConfig, label_space: LabelSpace | None, up: np.ndarray | None) -> NoSegmenter:
        told.append(None if up is None else up.tolist())
        return NoSegmenter(label_space)

    monkeypatch.setattr(build, "create_segmenter", segmenter)
    settings = config("segmenter.name=geometric", f"mapper.up_axis={up_axis}")
    mapper = create_mapper(settings.mapper, settings.segmenter, ROOM_SPACE, "cpu")
    assert told == [expected]
    assert mapper.label_space == ROOM_SPACE


def test_the_quality_settings_ask_for_more_than_the_default() -> None:
    quality, default = load_config(BuildConfig, resource_path("config/quality.yaml")).mapper, BuildConfig().mapper
    assert quality.optimizer.steps_per_keyframe > default.optimizer.steps_per_keyframe
    assert quality.keyframes.translation_m < default.keyframes.translation_m
