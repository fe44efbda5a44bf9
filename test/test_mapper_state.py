"""Saving and going on: what is restored looks the same, and nothing is lost when a file does not fit."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest
import torch
from small_room import ROOM_SPACE, SPACE, PassOn, make_mapper, mapped, room_frames

from panoptic_mapper.mapper import PanopticMapper

State = tuple[dict[str, np.ndarray], dict[str, Any]]


@pytest.fixture(scope="module")
def source() -> PanopticMapper:
    return mapped(room_frames()[:6])


@pytest.fixture
def state(source: PanopticMapper) -> State:
    tensors, meta = source.export_state()
    return {name: array.copy() for name, array in tensors.items()}, copy.deepcopy(meta)


def restored(state: State) -> PanopticMapper:
    mapper = make_mapper()
    mapper.restore_state(*state)
    return mapper


def test_a_restored_map_looks_the_same(source: PanopticMapper, state: State) -> None:
    mapper = restored(state)
    for frame in room_frames()[:6:2]:
        expected = source.render(frame.camera, frame.T_map_camera)
        actual = mapper.render(frame.camera, frame.T_map_camera)
        for name in ("color", "depth", "alpha", "semantic", "instance"):
            np.testing.assert_array_equal(getattr(actual, name), getattr(expected, name), err_msg=name)
    expected_snapshot, snapshot = source.snapshot(), mapper.snapshot()
    for name in ("points", "colors", "class_indices", "instance_ids", "confidences"):
        np.testing.assert_array_equal(getattr(snapshot, name), getattr(expected_snapshot, name), err_msg=name)
    assert snapshot.stamp_ns == expected_snapshot.stamp_ns


def test_the_objects_are_the_same(source: PanopticMapper, state: State) -> None:
    expected, actual = source.objects(), restored(state).objects()
    assert len(actual) == len(expected) > 3
    for a, e in zip(actual, expected, strict=True):
        for name in ("id", "class_name", "score", "observations", "num_gaussians", "first_seen_ns", "last_seen_ns"):
            assert getattr(a, name) == getattr(e, name)
        np.testing.assert_array_equal(a.box.size, e.box.size)


def test_the_state_is_plain(state: State) -> None:
    tensors, meta = state
    assert json.loads(json.dumps(meta)) == meta
    assert all(isinstance(array, np.ndarray) and array.dtype.kind in "biuf" for array in tensors.values())


def test_the_state_is_a_copy(source: PanopticMapper) -> None:
    tensors, meta = source.export_state()
    again, meta_again = restored((tensors, meta)).export_state()
    assert meta_again == meta
    mapper = restored((tensors, meta))
    mapper.integrate(room_frames()[7])
    for name, array in source.export_state()[0].items():
        np.testing.assert_array_equal(array, tensors[name], err_msg=name)
    assert again.keys() == tensors.keys()


def test_keyframes_survive(source: PanopticMapper, state: State) -> None:
    mapper = restored(state)
    assert len(mapper.keyframes) == len(source.keyframes)
    for actual, expected in zip(mapper.keyframes.all, source.keyframes.all, strict=True):
        assert (actual.id, actual.stamp_ns, actual.camera) == (expected.id, expected.stamp_ns, expected.camera)
        assert (actual.mask_ids, actual.mask_classes) == (expected.mask_ids, expected.mask_classes)
        assert (actual.mask_px, actual.mask_scores) == (expected.mask_px, expected.mask_scores)
        assert (actual.sighting is None) == (expected.sighting is None)
        for name, told in vars(expected.sighting).items() if expected.sighting else ():
            np.testing.assert_array_equal(getattr(actual.sighting, name), told, err_msg=name)
        np.testing.assert_array_equal(actual.T_map_camera, expected.T_map_camera)
        np.testing.assert_array_equal(actual.semantic, expected.semantic)
        np.testing.assert_array_equal(actual.mask_index, expected.mask_index)
        np.testing.assert_allclose(actual.depth, expected.depth, atol=0.51e-3)
        np.testing.assert_allclose(actual.confidence, expected.confidence, atol=0.51 / 255)
        difference = np.abs(actual.color.numpy().astype(int) - expected.color.numpy())
        assert difference.mean() < 5  # JPEG
        assert actual.color.dtype == expected.color.dtype


def test_mapping_goes_on_with_new_ids(source: PanopticMapper, state: State) -> None:
    mapper = restored(state)
    next_id = source.map.queries.next_id
    known = {o.id for o in mapper.objects()}
    reports = [mapper.integrate(frame) for frame in room_frames()[6:]]
    assert all(id >= next_id for report in reports for id in report.new_object_ids)
    assert sum(r.num_matched_masks for r in reports) > sum(len(r.new_object_ids) for r in reports) + 5
    assert len(known & {o.id for o in mapper.objects()}) >= len(known) - 1
    assert mapper.num_frames == 10
    ids = [k.id for k in mapper.keyframes.all]
    assert len(set(ids)) == len(ids)


def test_what_is_known_about_queries_survives(source: PanopticMapper) -> None:
    queries = source.map.queries
    for name in ("ids", "evidence", "counts", "votes"):
        kept = getattr(restored(source.export_state()).map.queries, name)
        np.testing.assert_array_equal(kept, getattr(queries, name), err_msg=name)
    assert (queries.votes < 0).any()
    assert queries.column("visible").sum() > 10


def test_a_replayed_keyframe_does_not_repeat_what_it_said_before_it_was_saved(state: State) -> None:
    mapper = restored(state)
    for _ in range(3):  # the masks of a restored keyframe are matched again
        for keyframe in mapper.keyframes.all:
            mapper.optimizer.step(keyframe)
            assert keyframe.revision == mapper.map.queries.revision
    queries = mapper.map.queries
    told = torch.zeros_like(queries.votes)
    visible = torch.zeros_like(queries.column("visible"))
    for keyframe in mapper.keyframes.all:
        rows = queries.rows_of(keyframe.sighting.ids)
        assert (rows >= 0).all()
        told[rows[:, None], rows] += keyframe.sighting.votes
        visible[rows] += keyframe.sighting.visible
    has_no_parent = queries.column("parent_id") == 0  # a part begins with votes for its object
    assert has_no_parent.sum() > 3
    both = has_no_parent[:, None] & has_no_parent
    np.testing.assert_array_equal(queries.votes[both], told[both])
    np.testing.assert_array_equal(queries.column("visible"), visible)


def test_merged_ids_are_remembered(state: State) -> None:
    state[1]["merged_into"]["77"] = 1
    mapper = restored(state)
    assert mapper.map.queries.resolve(77) == 1
    assert mapper.export_state()[1]["merged_into"] == state[1]["merged_into"]


def test_an_empty_map_can_be_saved() -> None:
    mapper = restored(make_mapper().export_state())
    assert len(mapper.map.gaussians) == len(mapper.keyframes) == 0
    assert mapper.integrate(room_frames()[0]).is_keyframe


def assert_unchanged_by(state: State, message: str) -> None:
    """Restoring fails, and the map that was there still is."""
    mapper = mapped(room_frames()[:1])
    frame = room_frames()[0]
    before, objects = mapper.render(frame.camera, frame.T_map_camera), mapper.objects()
    with pytest.raises(ValueError, match=message):
        mapper.restore_state(*state)
    after = mapper.render(frame.camera, frame.T_map_camera)
    np.testing.assert_array_equal(after.color, before.color)
    np.testing.assert_array_equal(after.instance, before.instance)
    assert [o.id for o in mapper.objects()] == [o.id for o in objects]
    assert len(mapper.keyframes) == 1


def test_another_label_space_is_refused(state: State) -> None:
    other = make_mapper(segmenter=PassOn(SPACE))
    assert_unchanged_by(other.export_state(), r"made with classes chair, wall, table, floor.*\(4\)")
    assert len(ROOM_SPACE) != len(SPACE)


@pytest.mark.parametrize(
    "name", ["gaussians/means", "gaussians/anchor", "queries/centers", "queries/votes", "head/codes"]
)
def test_a_missing_tensor_is_named(state: State, name: str) -> None:
    del state[0][name]
    assert_unchanged_by(state, f"incomplete: '{name}' is missing")


@pytest.mark.parametrize("name", ["label_space", "up", "next_id", "merged_into", "keyframes", "num_frames"])
def test_a_missing_entry_is_named(state: State, name: str) -> None:
    del state[1][name]
    assert_unchanged_by(state, f"incomplete: '{name}' is missing")


def test_a_missing_image_is_named(state: State) -> None:
    del state[0]["keyframes/000002/depth"]
    assert_unchanged_by(state, "keyframes/000002/depth")


def test_an_unreadable_image_is_named(state: State) -> None:
    state[0]["keyframes/000002/depth"] = np.zeros(100, np.uint8)
    assert_unchanged_by(state, "unreadable depth image of keyframe 2")


@pytest.mark.parametrize(
    ("name", "cut"),
    [
        ("gaussians/quats", np.s_[:, :3]),
        ("gaussians/colors", np.s_[1:]),
        ("gaussians/class_index", np.s_[1:]),
        ("queries/embeddings", np.s_[:, :16]),
        ("queries/evidence", np.s_[:, 1:]),
        ("queries/votes", np.s_[1:]),
        ("queries/counts", np.s_[:, 1:]),
        ("head/codes", np.s_[:, :8]),
    ],
)
def test_a_tensor_of_another_shape_is_named(state: State, name: str, cut: Any) -> None:
    state[0][name] = state[0][name][cut]
    assert_unchanged_by(state, f"{name}.*expected")
