"""The whole method on a small synthetic room: it maps, it is deterministic, and bad input leaves the map alone."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from small_room import (
    CAMERA,
    FLOOR,
    ROOM_SPACE,
    SPACE,
    TABLE,
    PassOn,
    gaussian_columns,
    make_mapper,
    mapped,
    room_frames,
    wall_frame,
    without_labels,
)

from panoptic_mapper.evaluation import evaluate
from panoptic_mapper.frame import Frame, Segmentation
from panoptic_mapper.gaussian_map import BOOK, WIDTHS
from panoptic_mapper.mapper import PanopticMapper
from panoptic_mapper.segmenters.none import NoSegmenter


@cache
def room_mapper() -> PanopticMapper:
    """The room, mapped; not to be changed."""
    return mapped(room_frames())


def fingerprint(mapper: PanopticMapper) -> dict[str, torch.Tensor]:
    """Copies of everything that the map holds."""
    tensors = {name: mapper.map.gaussians[name].clone() for name in (*WIDTHS, *BOOK)}
    queries = mapper.map.queries
    tensors |= {f"query {name}": queries.table[name].clone() for name in queries.table.widths}
    tensors |= {name: getattr(queries, name).clone() for name in ("ids", "evidence", "counts", "votes")}
    return tensors | {"codes": mapper.map.head.codes.detach().clone()}


def assert_identical(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert torch.equal(tensor, b[name]), name


def quality(mapper: PanopticMapper) -> dict[str, Any]:
    return evaluate(mapper, room_frames(), ROOM_SPACE)


def test_the_map_looks_like_the_room() -> None:
    result = quality(room_mapper())
    assert result["psnr"] > 22  # 20.8 dB without optimisation
    assert result["depth_l1_m"] < 0.17
    assert result["pq"] > 60
    assert result["miou"] > 70
    assert result["id_switches"] <= 1


def test_a_label_is_right_as_soon_as_it_is_seen() -> None:
    first = room_frames()[0]
    mapper = mapped([first], "optimizer.steps_per_keyframe=0")
    view = mapper.render(first.camera, first.T_map_camera)
    shown = (view.alpha > 0.5) & (view.semantic > 0)
    assert shown.mean() > 0.7
    assert (view.semantic == first.labels.semantic)[shown].mean() > 0.85
    is_thing = ROOM_SPACE.is_thing[first.labels.semantic]
    assert (view.instance > 0)[shown & is_thing].mean() > 0.75
    assert (view.instance > 0)[shown & ~is_thing].mean() < 0.15


def test_optimisation_refines_what_is_seen() -> None:
    raw, refined = mapped(room_frames(), "optimizer.steps_per_keyframe=0"), room_mapper()
    before, after = quality(raw), quality(refined)
    assert after["psnr"] > before["psnr"] + 1
    assert after["pq"] > before["pq"] + 3
    assert after["depth_l1_m"] < before["depth_l1_m"]


def test_an_object_keeps_its_id_while_the_camera_moves() -> None:
    mapper = make_mapper()
    seen: dict[int, set[int]] = {}
    for frame in room_frames():
        mapper.integrate(frame)
        view = mapper.render(frame.camera, frame.T_map_camera)
        for true_id in np.unique(frame.labels.instance[frame.labels.instance > 0]):
            ids, counts = np.unique(view.instance[frame.labels.instance == true_id], return_counts=True)
            if counts.sum() > 100 and ids[counts.argmax()] > 0:
                seen.setdefault(int(true_id), set()).add(int(ids[counts.argmax()]))
    assert len(seen) >= 5
    assert [ids for ids in seen.values() if len(ids) > 1] == []


def test_the_same_seed_gives_the_same_map() -> None:
    assert_identical(fingerprint(mapped(room_frames())), fingerprint(room_mapper()))


def test_another_seed_gives_another_map() -> None:
    other = fingerprint(mapped(room_frames(), "seed=1"))
    assert not torch.equal(other["codes"], fingerprint(room_mapper())["codes"])


def test_the_numbers_of_the_instances_do_not_matter() -> None:
    rng = np.random.default_rng(0)

    def permuted(frame: Frame) -> Frame:
        table = np.zeros(1000, np.int32)
        table[1:] = 1 + rng.permutation(999)
        return replace(frame, labels=replace(frame.labels, instance=table[frame.labels.instance]))

    assert_identical(fingerprint(mapped(map(permuted, room_frames()))), fingerprint(room_mapper()))


def test_reset_forgets_everything() -> None:
    mapper = mapped(room_frames()[:3])
    mapper.reset()
    assert mapper.stats().num_gaussians == mapper.stats().num_frames == mapper.stats().num_keyframes == 0
    assert mapper.objects() == ()
    for frame in room_frames():
        mapper.integrate(frame)
    assert_identical(fingerprint(mapper), fingerprint(room_mapper()))


def test_the_report_says_what_happened() -> None:
    mapper = make_mapper()
    first, second = (mapper.integrate(frame) for frame in room_frames()[:2])
    assert first.is_keyframe
    assert first.num_new_gaussians > 500
    assert first.new_object_ids == tuple(range(1, len(first.new_object_ids) + 1))
    assert len(first.new_object_ids) == first.num_matched_masks <= first.num_masks
    assert set(first.stage_ms) == {"segment", "associate", "grow", "optimize", "maintain"}
    assert second.num_matched_masks > len(second.new_object_ids)
    assert len(mapper.map.gaussians) == (
        first.num_new_gaussians + second.num_new_gaussians
        - first.num_removed_gaussians - second.num_removed_gaussians
    )  # fmt: skip


def test_a_frame_that_shows_nothing_new_is_no_keyframe() -> None:
    mapper = mapped([wall_frame()], segmenter=PassOn(SPACE))
    before = fingerprint(mapper)
    report = mapper.integrate(wall_frame(stamp_ns=5))
    assert not report.is_keyframe
    assert mapper.stats().num_frames == 2
    assert mapper.stats().num_keyframes == 1
    assert_identical(fingerprint(mapper), before)
    assert mapper.integrate(wall_frame(1.5, stamp_ns=6)).is_keyframe  # something came nearer: unexplained


def test_what_floats_in_front_of_the_wall_is_removed() -> None:
    mapper = mapped(
        [wall_frame()], "density.free_space_hits=3", "keyframes.translation_m=0.05", segmenter=PassOn(SPACE)
    )
    floaters = torch.tensor([[0.1, 0.1, 0.8], [-0.1, 0.0, 1.0]])
    mapper.map.gaussians.append(gaussian_columns(floaters), anchor=0)
    removed = []
    for i in range(1, 5):
        pose = np.eye(4)
        pose[0, 3] = 0.06 * i
        removed.append(mapper.integrate(wall_frame(T_map_camera=pose, stamp_ns=i)).num_removed_gaussians)
    assert removed[:2] == [0, 0]
    assert sum(removed) >= 2
    assert mapper.snapshot().points[:, 2].min() > 1.5


def bad_labels(frame: Frame, **changed: Any) -> Segmentation:
    """Labels that a careless segmenter might give; `Segmentation` itself refuses others."""
    labels = Segmentation(frame.labels.semantic.copy(), frame.labels.instance.copy())
    for name, value in changed.items():
        object.__setattr__(labels, name, value)
    return labels


@pytest.mark.parametrize("bad", ["class", "size", "type", "confidence"])
def test_bad_labels_leave_the_map_unchanged(bad: str) -> None:
    frame = replace(wall_frame(1.5, stamp_ns=7))
    size = frame.depth.shape
    labels = {
        "class": bad_labels(frame, semantic=np.full(size, len(SPACE), np.int32)),
        "size": Segmentation(*np.ones((2, 10, 10), np.int32)),
        "type": bad_labels(frame, semantic=np.ones(size, np.float32)),
        "confidence": bad_labels(frame, confidence=np.full(size, np.nan, np.float32)),
    }[bad]

    class Careless(PassOn):
        def segment(self, frame: Frame) -> Segmentation | None:
            return labels if frame.stamp_ns == 7 else frame.labels

    mapper = mapped([wall_frame()], segmenter=Careless(SPACE))
    before = fingerprint(mapper)
    with pytest.raises(ValueError, match="segmentation: "):
        mapper.integrate(frame)
    assert_identical(fingerprint(mapper), before)
    assert len(mapper.keyframes) == 1
    assert mapper.last_stamp_ns == 0
    assert mapper.integrate(wall_frame(1.5, stamp_ns=8)).is_keyframe  # and it goes on


def test_objects_are_there_as_soon_as_their_labels_are() -> None:
    mapper = mapped([wall_frame()], "optimizer.steps_per_keyframe=0", segmenter=PassOn(SPACE))
    assert [o.class_name for o in mapper.objects()] == ["table", "chair"]
    assert mapper.snapshot().confidences.min() > 0.9


def test_a_stuff_pixel_with_an_instance_id_is_no_mask() -> None:
    frame = wall_frame()
    instance = np.where(frame.labels.semantic == FLOOR, 7, frame.labels.instance)
    mapper = make_mapper(segmenter=PassOn(SPACE))
    report = mapper.integrate(replace(frame, labels=replace(frame.labels, instance=instance)))
    assert report.num_masks == report.num_matched_masks == 2
    assert mapper.map.queries.ids.tolist() == [1, 2]
    assert (mapper.keyframes.all[0].mask_index[24:] == 0).all()


def test_one_frame_is_a_map() -> None:
    mapper = mapped([wall_frame(stamp_ns=9)], segmenter=PassOn(SPACE))
    snapshot = mapper.snapshot()
    assert snapshot.stamp_ns == 9
    assert len(snapshot.points) == len(mapper.map.gaussians) > 200
    np.testing.assert_allclose(np.median(snapshot.points[:, 2]), 2, atol=0.02)
    table, chair = mapper.objects()
    assert (table.class_name, chair.class_name) == ("table", "chair")
    assert table.centroid[0] > 0.3
    assert chair.centroid[0] < -0.3
    assert table.observations == 1
    assert table.first_seen_ns == table.last_seen_ns == 9
    assert set(snapshot.instance_ids[snapshot.class_indices == table.class_index].tolist()) <= {0, table.id}


@pytest.mark.parametrize("depth", [0.0, 1e6, np.nan])
def test_a_frame_without_usable_depth_adds_nothing(depth: float) -> None:
    blind = replace(wall_frame(stamp_ns=1), depth=np.full((CAMERA.height, CAMERA.width), depth, np.float32))
    mapper = mapped([blind], segmenter=PassOn(SPACE))
    assert mapper.stats().num_gaussians == 0
    assert mapper.objects() == ()
    view = mapper.render(CAMERA, np.eye(4))
    assert view.color.max() == view.depth.max() == view.alpha.max() == view.semantic.max() == view.instance.max() == 0
    assert len(mapper.snapshot().points) == 0
    assert mapper.integrate(wall_frame(stamp_ns=2)).num_new_gaussians > 200  # it goes on


def test_a_covered_lens_leaves_the_map_as_it_is() -> None:
    mapper = mapped([wall_frame()], segmenter=PassOn(SPACE))
    before = fingerprint(mapper)
    pose = np.eye(4)
    pose[0, 3] = 1.0  # further than a keyframe needs
    report = mapper.integrate(wall_frame(0.1, pose, stamp_ns=1))
    assert not report.is_keyframe
    assert_identical(fingerprint(mapper), before)
    assert len(mapper.keyframes) == 1
    assert mapper.integrate(wall_frame(2.0, pose, stamp_ns=2)).is_keyframe


def test_a_hand_before_a_camera_at_rest_is_nothing_new() -> None:
    mapper = mapped([wall_frame()], segmenter=PassOn(SPACE))
    depth = wall_frame().depth.copy()
    depth[:, :30] = 0.1
    assert not mapper.integrate(replace(wall_frame(stamp_ns=1), depth=depth)).is_keyframe
    depth[:, :30] = 1.0  # something that can be mapped
    assert mapper.integrate(replace(wall_frame(stamp_ns=2), depth=depth)).is_keyframe


def test_what_is_behind_a_partly_covered_lens_is_neither_coloured_nor_labelled() -> None:
    mapper = mapped([wall_frame()], "optimizer.steps_per_keyframe=0", segmenter=PassOn(SPACE))
    gaussians = mapper.map.gaussians
    before = fingerprint(mapper)
    num_before = len(gaussians)
    # A red hand, which the 2D model takes for a third thing, covers the left half (the chair).
    pose = np.eye(4)
    pose[2, 3] = -0.15
    frame = wall_frame(2.15, pose, stamp_ns=1)
    color, depth = frame.color.copy(), frame.depth.copy()
    color[:, :20], depth[:, :20] = (255, 0, 0), 0.1
    semantic, instance = frame.labels.semantic.copy(), frame.labels.instance.copy()
    semantic[:, :20], instance[:, :20] = TABLE, 9
    report = mapper.integrate(replace(frame, color=color, depth=depth, labels=Segmentation(semantic, instance)))
    assert report.is_keyframe
    assert report.new_object_ids == ()
    assert report.num_masks == 1
    assert mapper.map.queries.column("contradictions").tolist() == [0, 0]
    keyframe = mapper.keyframes.all[-1]
    assert (keyframe.semantic[:, :20] == 0).all()
    for _ in range(3):
        mapper.optimizer.step(keyframe)
    x, _, z = gaussians["means"].T
    hidden = x / (z + 0.15) * 40 + 19.5 < 16  # further from the hand's outline than a splat's footprint
    assert hidden[:num_before].sum() > 80
    assert not hidden[num_before:].any()
    for name in ("colors", "semantics", "instances", "class_index", "instance_id"):
        assert torch.equal(gaussians[name][hidden], before[name][hidden[:num_before]]), name
    assert not torch.equal(
        gaussians["colors"][:num_before][~hidden[:num_before]], before["colors"][~hidden[:num_before]]
    )


def test_a_blind_frame_within_a_sequence_does_no_harm() -> None:
    frames = list(room_frames())
    frames[4] = replace(frames[4], depth=np.zeros_like(frames[4].depth))
    assert quality(mapped(frames))["psnr"] > 21


def test_a_camera_that_never_rests_does_not_starve_the_map() -> None:
    """There is no time for a step, and every frame is a keyframe: each has one all the same."""
    mapper = make_mapper("optimizer.frame_budget_ms=1e-3")
    for frame in room_frames()[:6:2]:
        assert mapper.integrate(frame, waited_s=1.0).is_keyframe
    assert mapper.optimizer.num_steps == 3


def test_an_empty_map_can_be_asked_for_everything() -> None:
    mapper = make_mapper()
    mapper.refine(5)
    view = mapper.render(CAMERA, np.eye(4))
    assert view.color.shape == (30, 40, 3)
    assert view.alpha.max() == 0
    assert mapper.objects() == ()
    assert len(mapper.snapshot().points) == 0
    assert mapper.stats().num_frames == 0


def test_without_labels_there_is_geometry() -> None:
    frames = [without_labels(f) for f in room_frames()]
    mapper = mapped(frames, segmenter=NoSegmenter())
    result = evaluate(mapper, frames)
    assert result["psnr"] > 22
    assert mapper.objects() == ()
    assert (mapper.snapshot().class_indices == 0).all()


def test_refine_goes_on_optimising() -> None:
    mapper = mapped(room_frames()[:3])
    before = fingerprint(mapper)
    psnr = evaluate(mapper, room_frames()[:3], ROOM_SPACE)["psnr"]
    mapper.refine(0)
    assert_identical(fingerprint(mapper), before)
    mapper.refine(40)
    assert evaluate(mapper, room_frames()[:3], ROOM_SPACE)["psnr"] > psnr + 0.5
    assert len(mapper.map.gaussians) == len(before["means"])


def test_snapshots_do_not_change_afterwards() -> None:
    mapper = mapped(room_frames()[:2])
    snapshot = mapper.snapshot()
    points, ids = snapshot.points.copy(), snapshot.instance_ids.copy()
    for frame in room_frames()[2:5]:
        mapper.integrate(frame)
    np.testing.assert_array_equal(snapshot.points, points)
    np.testing.assert_array_equal(snapshot.instance_ids, ids)


def test_snapshot_and_objects_agree() -> None:
    snapshot = room_mapper().snapshot()
    by_id = {o.id: o for o in snapshot.objects}
    assert list(by_id) == sorted(by_id)
    assert len(by_id) >= 5
    assert set(snapshot.instance_ids.tolist()) == {0, *by_id}
    for id, o in by_id.items():
        own = snapshot.instance_ids == id
        assert own.sum() >= o.num_gaussians > 0
        assert (snapshot.class_indices[own] == o.class_index).all()
        assert ROOM_SPACE.names[o.class_index] == o.class_name
        assert ROOM_SPACE.is_thing[o.class_index]
        assert (o.aabb_min <= o.centroid).all()
        assert (o.centroid <= o.aabb_max).all()
        assert 0 < o.score <= 1
    assert snapshot.stamp_ns == room_frames()[-1].stamp_ns


def test_what_holds_too_few_gaussians_is_no_object_yet() -> None:
    mapper = mapped([wall_frame()], "instances.min_gaussians=8", segmenter=PassOn(SPACE))
    gaussians = mapper.map.gaussians
    chair = mapper.objects()[1]
    rows = (gaussians["instance_id"] == chair.id).nonzero()[:, 0]
    gaussians["instance_id"][rows[8:]] = 0
    gaussians["confidence_permille"][rows[:8]] = 900
    assert [o.id for o in mapper.objects()] == [1, chair.id]
    gaussians["confidence_permille"][rows[0]] = 100  # not sure enough to count
    assert [o.id for o in mapper.objects()] == [1]
    assert mapper.stats().num_objects == 1
    snapshot = mapper.snapshot()
    assert set(snapshot.instance_ids.tolist()) == {0, 1}
    assert (snapshot.class_indices[rows[:8]] == chair.class_index).all()


def test_what_labels_contradict_more_often_than_they_show_it_is_not_shown() -> None:
    mapper = mapped([wall_frame()], "optimizer.steps_per_keyframe=0", segmenter=PassOn(SPACE))
    counts = {name: mapper.map.queries.column(name) for name in ("observations", "contradictions")}
    for observations, contradictions, ids in ((3, 2, {1, 2}), (3, 3, {1}), (3, 4, {1})):
        counts["observations"][1], counts["contradictions"][1] = observations, contradictions
        assert {o.id for o in mapper.objects()} == ids
        assert set(mapper.snapshot().instance_ids.tolist()) == {0, *ids}
        assert set(np.unique(mapper.render(CAMERA, np.eye(4)).instance)) == {0, *ids}


@pytest.mark.parametrize(("contradicted", "id_of_the_part"), [(1, 1), (0, 0)], ids=["the part", "its object"])
def test_what_is_shown_as_an_object_is_seen_where_that_object_is(contradicted: int, id_of_the_part: int) -> None:
    mapper = mapped([wall_frame()], "optimizer.steps_per_keyframe=0", segmenter=PassOn(SPACE))
    queries = mapper.map.queries
    chair = mapper.map.gaussians["instance_id"] == 2
    queries.column("parent_id")[1] = 1
    queries.votes[:] = 1.5 * (1 - torch.eye(2))
    queries.column("contradictions")[contradicted] = 9
    snapshot, view = mapper.snapshot(), mapper.render(CAMERA, np.eye(4))
    assert (snapshot.instance_ids[chair] == id_of_the_part).all()
    assert (view.instance[5:20, 3:17] == id_of_the_part).all()


def test_a_part_is_shown_as_its_object_until_votes_say_that_it_is_none() -> None:
    mapper = mapped([wall_frame()], "optimizer.steps_per_keyframe=0", segmenter=PassOn(SPACE))
    queries = mapper.map.queries
    table, chair = (mapper.map.gaussians["instance_id"] == id for id in (1, 2))
    queries.column("parent_id")[1] = 1
    for votes, id_of_the_part, num_objects in ((1.5, 1, 1), (-0.5, 1, 1), (-4, 2, 2)):
        queries.votes[:] = votes * (1 - torch.eye(2))
        snapshot, view = mapper.snapshot(), mapper.render(CAMERA, np.eye(4))
        assert (snapshot.instance_ids[table] == 1).all()
        assert (snapshot.instance_ids[chair] == id_of_the_part).all()
        assert len(snapshot.objects) == num_objects
        shown = np.bincount(view.instance[5:20, 3:17].ravel()).argmax()
        assert shown == id_of_the_part
        assert (view.semantic[view.instance == 1] == TABLE).all()
    assert snapshot.objects[0].num_gaussians + snapshot.objects[1].num_gaussians > 200


def test_large_frames_are_mapped_at_the_configured_size() -> None:
    mapper = make_mapper("image_width_px=20", segmenter=PassOn(SPACE))
    mapper.integrate(wall_frame())
    keyframe = mapper.keyframes.all[0]
    assert (keyframe.camera.width, keyframe.camera.height) == (20, 15)
    assert keyframe.semantic.shape == keyframe.mask_index.shape == (15, 20)
    assert mapper.at_mapping_size(wall_frame().resized(10, 8)).camera.width == 10  # never larger than it came
    assert len(mapper.objects()) == 2


def test_up_is_estimated_or_given() -> None:
    tilt = np.eye(4)
    tilt[:3, :3] = Rotation.from_rotvec([0.9, 0.5, 0]).as_matrix()
    frames = [replace(f, T_map_camera=tilt @ f.T_map_camera) for f in room_frames()[:6]]
    steps = "optimizer.steps_per_keyframe=0"
    np.testing.assert_allclose(mapped(frames, steps).up, tilt[:3, 2], atol=0.01)
    np.testing.assert_array_equal(mapped(room_frames()[:6], steps).up, [0, 0, 1])
    np.testing.assert_array_equal(mapped(frames, steps, "up_axis=-y").up, [0, -1, 0])


def test_statistics_are_those_of_the_map() -> None:
    mapper, stats = room_mapper(), room_mapper().stats()
    assert stats.num_frames == len(room_frames())
    assert stats.num_keyframes == len(mapper.keyframes)
    assert stats.num_gaussians == len(mapper.map.gaussians)
    assert stats.num_objects == len(mapper.objects())
    assert stats.map_bytes > 4 * sum(WIDTHS.values()) * stats.num_gaussians + mapper.keyframes.nbytes
    assert all(np.isfinite(value) for value in stats.losses.values())
    assert all(value > 0 for value in stats.stage_ms.values())
