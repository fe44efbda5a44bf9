"""Nothing sees what it should not: ground-truth identities, held-out frames; and measuring leaves the map alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from small_room import ROOM_SPACE, make_mapper, mapped, room_frames

from panoptic_mapper.build import BuildConfig, build_map
from panoptic_mapper.config import load_config
from panoptic_mapper.datasets.noise import NoiseConfig
from panoptic_mapper.evaluation import evaluate
from panoptic_mapper.frame import Frame, Segmentation
from panoptic_mapper.mapper import PanopticMapper
from panoptic_mapper.results import make_report
from panoptic_mapper.segmenters.dataset import DatasetSegmenter

NUM_FRAMES = 8


def segmenter(level: str) -> DatasetSegmenter:
    return DatasetSegmenter(ROOM_SPACE, seed=5, noise=NoiseConfig.from_level(level))


@cache
def room_map(level: str) -> PanopticMapper:
    """The room, mapped with labels of a noise level; not to be changed.

    The frames are copies, as those that it is compared with: a copy's pose is made orthonormal again, which can change
    its last bit.
    """
    return mapped(map(replace, room_frames(NUM_FRAMES)), segmenter=segmenter(level))


def map_bytes(mapper: PanopticMapper) -> dict[str, Any]:
    """Everything that a saved map would hold, to the bit."""
    tensors, meta = mapper.export_state()
    arrays = {name: (array.dtype.str, array.shape, array.tobytes()) for name, array in tensors.items()}
    return arrays | {"meta": repr(meta)}


def assert_same_bytes(a: PanopticMapper, b: PanopticMapper) -> None:
    first, second = map_bytes(a), map_bytes(b)
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []
    assert len(a.map.gaussians) > 1000
    assert len(a.objects()) > 3


def with_permuted_ids(frames: Iterable[Frame]) -> Iterator[Frame]:
    """Other ground-truth instance ids in every frame, small and large, in another order."""
    rng = np.random.default_rng(1)
    for frame in frames:
        assert frame.labels is not None
        ids, inverse = np.unique(frame.labels.instance, return_inverse=True)
        new_ids = rng.choice(2**31 - 2, len(ids), replace=False) + 1
        table = np.where(ids > 0, new_ids, 0).astype(np.int32)
        yield replace(frame, labels=replace(frame.labels, instance=table[inverse].reshape(frame.labels.instance.shape)))


@pytest.mark.parametrize("level", ["clean", "moderate"])
def test_ground_truth_ids_play_no_part(level: str) -> None:
    """The same scene under other ids in every frame gives the same map, bit for bit."""
    permuted = list(with_permuted_ids(room_frames(NUM_FRAMES)))
    pairs = [(a.labels, b.labels) for a, b in zip(permuted, room_frames(NUM_FRAMES), strict=True)]
    assert all(a is not None and b is not None and (a.instance != b.instance).any() for a, b in pairs)
    assert_same_bytes(mapped(permuted, segmenter=segmenter(level)), room_map(level))


def test_only_the_segmenter_reads_the_labels_of_a_frame() -> None:
    """Frames without labels give the same map, if the segmenter gets the labels another way."""
    inner = segmenter("moderate")
    by_stamp = {frame.stamp_ns: frame for frame in room_frames(NUM_FRAMES)}

    class Aside:
        label_space = ROOM_SPACE

        def segment(self, frame: Frame) -> Segmentation:
            assert frame.labels is None
            return inner.segment(by_stamp[frame.stamp_ns])

    bare = [replace(frame, labels=None) for frame in room_frames(NUM_FRAMES)]
    assert_same_bytes(mapped(bare, segmenter=Aside()), room_map("moderate"))


def test_the_map_does_depend_on_the_labels() -> None:
    """Otherwise the tests above would prove nothing."""
    assert map_bytes(room_map("clean")) != map_bytes(room_map("moderate"))


class Spied:
    """The room as a dataset that writes down which frames are read."""

    name = "spied"
    label_space = ROOM_SPACE

    def __init__(self) -> None:
        self.read: list[int] = []

    def __len__(self) -> int:
        return NUM_FRAMES

    def __getitem__(self, index: int) -> Frame:
        self.read.append(index)
        return room_frames(NUM_FRAMES)[index]


def test_held_out_frames_are_measured_but_never_mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    integrated: list[int] = []
    integrate = PanopticMapper.integrate

    def spied_integrate(self: PanopticMapper, frame: Frame, waited_s: float = 0.0) -> Any:
        integrated.append(frame.stamp_ns)
        return integrate(self, frame)

    monkeypatch.setattr(PanopticMapper, "integrate", spied_integrate)
    dataset = Spied()
    settings = ["device=cpu", "test_every=4", "mapper.optimizer.steps_per_keyframe=2"]
    built = build_map(dataset, load_config(BuildConfig, overrides=settings))
    held_out = built.splits["test"]
    assert held_out == [2, 6]
    assert set(dataset.read) == set(built.splits["train"])

    stamps = [frame.stamp_ns for frame in room_frames(NUM_FRAMES)]
    before = map_bytes(built.mapper)
    report = make_report(built.mapper, dataset, built.splits, built.wall_s)
    assert set(held_out) < set(dataset.read)  # now they are read, to be compared with
    assert report["test"]["frames"] == 2
    assert report["test"]["frame_indices"] == held_out
    assert integrated == [stamps[i] for i in built.splits["train"]]
    assert not {k.stamp_ns for k in built.mapper.keyframes.all} & {stamps[i] for i in held_out}
    assert map_bytes(built.mapper) == before


def test_evaluation_leaves_the_map_as_it_is() -> None:
    """Not a bit changes, and mapping goes on as if nobody had looked."""
    frames = room_frames(NUM_FRAMES)
    watched, alone = make_mapper(), make_mapper()
    for frame in frames:
        watched.integrate(frame)
        alone.integrate(frame)
        before = map_bytes(watched)
        first, second = (evaluate(watched, frames[:2], ROOM_SPACE) for _ in range(2))
        assert first == second
        assert map_bytes(watched) == before
    assert_same_bytes(watched, alone)
