"""A walk through three rooms and back into the first: what was seen long ago is still known, and by the same ids."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from small_room import ROOM_SPACE, make_mapper

from panoptic_mapper.datasets.synthetic import SyntheticConfig, SyntheticRoom
from panoptic_mapper.evaluation import evaluate
from panoptic_mapper.frame import Frame
from panoptic_mapper.mapper import PanopticMapper
from panoptic_mapper.metrics import PanopticMetrics

WALK = SyntheticConfig(width=80, height=60, num_frames=132, num_rooms=3, revisits=True)
HELD_OUT = slice(3, None, 6)  # these frames are never mapped
ROOM_M = (2.6, 1.1, 6.0)  # the first room: |x| below the first, y between the others
MIN_MASK_PX = 40  # smaller masks may be anything


@dataclass
class Walk:
    """The map after the walk, and how the views of the first room were on the way."""

    mapper: PanopticMapper
    frames: list[Frame]
    leaves: int  # first frame after the first room
    returns: int  # first frame in the first room again
    when_leaving: dict[str, Any] = field(default_factory=dict)
    when_returning: dict[str, Any] = field(default_factory=dict)
    live: dict[str, Any] = field(default_factory=dict)  # held-out views, each rendered as it was passed


def is_in_first_room(frame: Frame) -> bool:
    x, y = frame.T_map_camera[:2, 3]
    half_width, near, far = ROOM_M
    return bool(abs(x) < half_width and near < y < far)


@pytest.fixture(scope="module")
def walk() -> Walk:
    room = SyntheticRoom(WALK)
    frames = [room[i] for i in range(len(room))]
    inside = [is_in_first_room(frame) for frame in frames]
    entries, exits = ([i for i in range(1, len(frames)) if inside[i] - inside[i - 1] == step] for step in (1, -1))
    assert len(entries) == len(exits) == 2, "the walk goes into the first room twice"
    walk = Walk(make_mapper("optimizer.steps_per_keyframe=4"), frames, leaves=exits[0], returns=entries[1])
    held_out = set(range(len(frames))[HELD_OUT])
    live = PanopticMetrics(ROOM_SPACE)
    for i, frame in enumerate(frames):
        if i == walk.leaves:
            walk.when_leaving = first_room(walk)
        if i == walk.returns:
            walk.when_returning = first_room(walk)
        if i in held_out:
            view = walk.mapper.render(frame.camera, frame.T_map_camera)
            live.update(view.semantic, view.instance, frame.labels.semantic, frame.labels.instance)
        else:
            walk.mapper.integrate(frame)
    walk.live = live.compute()
    return walk


def first_room(walk: Walk) -> dict[str, Any]:
    """Metrics over the held-out views of the first visit."""
    views = [f for f in walk.frames[: walk.leaves][HELD_OUT] if is_in_first_room(f)]
    assert len(views) >= 3
    return evaluate(walk.mapper, views)


def test_the_first_room_survives_the_walk_elsewhere(walk: Walk) -> None:
    before, after = walk.when_leaving, walk.when_returning
    assert before["pq"] > 75
    for name in ("pq", "miou", "mcov"):
        assert after[name] > before[name] - 5, name  # views of the way out blur a border or two
    assert after["psnr"] > before["psnr"]  # replay goes on refining it


def test_no_object_changes_its_id(walk: Walk) -> None:
    assert walk.live["id_switches"] == 0
    everything = evaluate(walk.mapper, walk.frames[HELD_OUT])
    assert everything["id_switches"] == 0
    assert everything["pq"] > 70


def test_coming_back_finds_the_same_ids(walk: Walk) -> None:
    stamps = [walk.frames[i].stamp_ns for i in (walk.leaves, walk.returns)]
    first, again = ids_by_object(walk, 0, stamps[0]), ids_by_object(walk, stamps[1], 2**62)
    both = first.keys() & again.keys()
    assert len(both) >= 8
    assert {object: again[object] for object in both} == {object: first[object] for object in both}
    assert all(len(ids) == 1 for ids in first.values())


def ids_by_object(walk: Walk, start_ns: int, end_ns: int) -> dict[int, set[int]]:
    """The ids that the masks of each true object were matched to in the keyframes of a time."""
    labels = {frame.stamp_ns: frame.labels for frame in walk.frames}
    ids: dict[int, set[int]] = {}
    for keyframe in walk.mapper.keyframes.all:
        if not start_ns <= keyframe.stamp_ns < end_ns:
            continue
        true = labels[keyframe.stamp_ns].instance[keyframe.mask_index.numpy() > 0]
        masks = keyframe.mask_index.numpy()[keyframe.mask_index.numpy() > 0]
        for mask in np.unique(masks):
            if (masks == mask).sum() >= MIN_MASK_PX and keyframe.mask_ids[mask]:
                ids.setdefault(int(true[masks == mask][0]), set()).add(keyframe.mask_ids[mask])
    return ids
