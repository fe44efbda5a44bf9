"""Keyframes: when a frame is kept, what is kept of it, which show the same, and which are replayed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from small_room import CHAIR, CPU, FLOOR, TABLE, make_mapper, room_frames, wall_frame

from panoptic_mapper.covisibility import POINTS, CovisibilityGraph
from panoptic_mapper.frame import Frame, Segmentation, nearest
from panoptic_mapper.keyframes import KeyframeConfig, KeyframeStore, _numbered_masks


def pose(x_m: float = 0.0, turn_deg: float = 0.0) -> np.ndarray:
    T = np.eye(4)
    T[:3, :3] = Rotation.from_euler("y", turn_deg, degrees=True).as_matrix()
    T[0, 3] = x_m
    return T


def make_store(num_keyframes: int = 0) -> KeyframeStore:
    return store_at(range(num_keyframes))


def store_at(places_m: Iterable[float], seed: int = 0) -> KeyframeStore:
    """Keyframes of a wall that is 2 m wide in the image, at places along it."""
    store = KeyframeStore(KeyframeConfig(translation_m=0.2, rotation_deg=10, recent=3), seed=seed)
    for i, x_m in enumerate(places_m):
        frame = wall_frame(T_map_camera=pose(x_m), stamp_ns=i)
        store.add(frame, frame.labels, CPU)
    return store


def shares(*frames: Frame) -> list[dict[int, float]]:
    graph = CovisibilityGraph()
    for frame in frames:
        graph.add(frame.depth, frame.camera, frame.T_map_camera)
    return graph.seen_by


def test_motion_makes_a_keyframe() -> None:
    store = make_store()
    assert store.moved_enough(pose())
    store = make_store(2)
    assert not store.moved_enough(pose(1.19, 0))
    assert store.moved_enough(pose(1.21, 0))
    assert store.moved_enough(pose(0.0, 0))  # back at the first one, far from the last
    assert not store.moved_enough(pose(1, 9.9))
    assert store.moved_enough(pose(1, -10.1))
    assert store.moved_enough(pose(1, 180))


def test_what_is_kept_of_a_frame() -> None:
    frame = wall_frame(depth_m=1.5, T_map_camera=pose(2, 5), stamp_ns=77)
    keyframe = make_store(3).add(frame, frame.labels, CPU)
    assert keyframe.id == 3
    assert keyframe.stamp_ns == 77
    np.testing.assert_array_equal(keyframe.color, frame.color)
    np.testing.assert_array_equal(keyframe.depth, frame.depth)
    np.testing.assert_array_equal(keyframe.semantic, frame.labels.semantic)
    assert (keyframe.confidence == 1).all()
    assert keyframe.has_labels
    np.testing.assert_allclose(keyframe.T_camera_map(), np.linalg.inv(frame.T_map_camera), atol=1e-6)
    pixels = 30 * 40
    assert keyframe.nbytes == pixels * (3 + 4 + 4 + 4 + 4)
    keyframe.disputed = torch.zeros(30, 40, dtype=torch.bool)
    assert keyframe.nbytes == pixels * (3 + 4 + 4 + 4 + 4 + 1)


def test_masks_are_numbered_from_one() -> None:
    frame = wall_frame()
    keyframe = make_store().add(frame, frame.labels, CPU)
    assert len(keyframe.mask_classes) == len(keyframe.mask_scores) == len(keyframe.mask_ids) == 3
    assert keyframe.mask_ids == [0, 0, 0]
    assert keyframe.mask_px[1:] == [24 * 20, 24 * 20]
    for mask in (1, 2):
        ids = np.unique(frame.labels.instance[keyframe.mask_index.numpy() == mask])
        assert len(ids) == 1
        assert keyframe.mask_classes[mask] == {5: CHAIR, 3: TABLE}[int(ids[0])]
    assert (keyframe.mask_index[24:] == 0).all()  # the floor
    assert (keyframe.mask_index[:24] > 0).all()


def test_a_mask_has_the_class_of_most_of_its_pixels_and_its_mean_confidence() -> None:
    semantic = np.array([[0, CHAIR, CHAIR, TABLE, FLOOR]], np.int32)
    instance = np.array([[9, 9, 9, 9, 0]], np.int32)
    confidence = np.array([[0.0, 0.9, 0.6, 0.3, 0.1]], np.float32)
    frame = replace(wall_frame().resized(5, 1), labels=None)
    keyframe = make_store().add(frame, Segmentation(semantic, instance, confidence), CPU)
    assert keyframe.mask_index.tolist() == [[0, 1, 1, 1, 0]]  # an unlabeled pixel belongs to no mask
    assert keyframe.mask_px[1] == 3
    assert keyframe.mask_classes[1] == CHAIR
    np.testing.assert_allclose(keyframe.mask_scores[1], 0.6, rtol=1e-6)
    np.testing.assert_array_equal(keyframe.confidence, confidence)


def test_masks_everywhere_and_nowhere() -> None:
    frame = wall_frame()
    full = Segmentation(np.full((30, 40), CHAIR, np.int32), np.full((30, 40), 4, np.int32))
    keyframe = make_store().add(frame, full, CPU)
    assert (keyframe.mask_index == 1).all()
    assert keyframe.mask_classes[1:] == [CHAIR]
    for segmentation in (None, Segmentation(*np.zeros((2, 30, 40), np.int32))):
        keyframe = make_store().add(frame, segmentation, CPU)
        assert (keyframe.mask_index == 0).all()
        assert len(keyframe.mask_ids) == 1
        assert not keyframe.has_labels


def test_a_keyframe_is_a_copy() -> None:
    frame = wall_frame()
    keyframe = make_store().add(frame, frame.labels, CPU)
    frame.color[:] = 0
    frame.labels.semantic[:] = 0
    assert keyframe.color.sum() > 0
    assert keyframe.semantic.sum() > 0


@pytest.mark.parametrize("shift_m", [0.0, 0.5, 1.0, 1.7])
def test_the_share_of_a_wall_that_another_keyframe_sees(shift_m: float) -> None:
    there, back = shares(wall_frame(), wall_frame(T_map_camera=pose(shift_m)))
    assert there[1] == pytest.approx(1 - shift_m / 2, abs=1 / 16)
    assert back[0] == pytest.approx(1 - shift_m / 2, abs=1 / 16)


def test_a_close_up_is_seen_whole_and_sees_a_part() -> None:
    closer = np.eye(4)
    closer[2, 3] = 1.0
    overview, close_up = shares(wall_frame(2.0), wall_frame(1.0, T_map_camera=closer))
    assert overview[1] == pytest.approx(0.25, abs=0.05)  # half of each side
    assert close_up[0] == 1


def test_what_is_hidden_is_not_shared() -> None:
    hidden = [wall_frame(2.0), wall_frame(1.2, T_map_camera=pose(0.3))]  # something stands before the wall
    apart = [wall_frame(), wall_frame(T_map_camera=pose(1.9))]
    turned = [wall_frame(), wall_frame(T_map_camera=pose(0, 180))]
    blind = [wall_frame(), wall_frame(0.0)]
    for frames in (hidden, apart, turned, blind):
        assert shares(*frames) == [{}, {}]


def test_what_no_keyframe_sees_is_new() -> None:
    """A wall at 2 m, 2 m wide in the image, seen from steps to the right."""
    store, wall = make_store(3), wall_frame()
    positions_m = [keyframe.T_map_camera[0, 3] for keyframe in store.all]
    covis = store.covisibility
    for shift_m in (0.0, 0.5, 1.0, 3.0):
        pose = np.eye(4)
        pose[0, 3] = max(positions_m) + shift_m
        share = covis.unseen_share(wall.depth, wall.camera, pose)
        assert share == pytest.approx(min(shift_m / 2, 1), abs=0.05)
        assert store.shows_enough_new(wall.depth, wall.camera, pose) == (shift_m > 0)
        half = wall.depth.copy()
        half[:15] = 0  # what is not measured is not new
        assert covis.unseen_share(half, wall.camera, pose) == pytest.approx(min(shift_m / 2, 1) / 2, abs=0.05)
        nearer = covis.unseen_share(wall.depth - 0.5, wall.camera, pose)
        assert nearer == 1  # and what stands before the wall is


def test_keyframes_of_different_sizes_meet() -> None:
    frame = wall_frame(T_map_camera=pose(0.5))
    small, large = shares(wall_frame(), frame.resized(24, 18))
    assert small[1] == pytest.approx(0.75, abs=1 / 16)
    assert large[0] == pytest.approx(0.75, abs=1 / 16)


def test_shares_in_a_room_are_those_of_all_pixels() -> None:
    frames = room_frames()[::3]
    graph = shares(*frames)
    for i, a in enumerate(frames):
        for j, b in enumerate(frames):
            if i != j:
                assert graph[i].get(j, 0) == pytest.approx(exact_share(a, b), abs=0.1)


def exact_share(a: Frame, b: Frame) -> float:
    """Pixel by pixel at full resolution."""
    v, u = np.indices(a.depth.shape)
    rays = np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(a.camera.matrix).T
    T = np.linalg.inv(b.T_map_camera) @ a.T_map_camera
    points = (rays * a.depth[..., None]).reshape(-1, 3) @ T[:3, :3].T + T[:3, 3]
    seen = 0
    for point in points[points[:, 2] > 0.05]:
        column, row = np.rint((b.camera.matrix @ point)[:2] / point[2]).astype(int)
        if 0 <= column < b.camera.width and 0 <= row < b.camera.height:
            seen += abs(b.depth[row, column] - point[2]) < max(0.1, 0.05 * point[2])
    return seen / len(points)


def test_the_latest_the_recent_and_all_are_replayed() -> None:
    store = make_store(10)  # 1 m apart: the latest sees nothing of those before the recent ones
    sampled = [[], [], []]
    for step in range(1500):
        sampled[step % 3].append(store.sample(step).id)
    latest, recent, any_one = (Counter(ids) for ids in sampled)
    assert set(latest) == {9}
    assert set(recent) == {7, 8, 9}
    assert set(any_one) == set(range(10))
    assert latest.total() == recent.total() == 500
    other, same = make_store(10), make_store(10)
    assert [other.sample(i).id for i in range(50)] == [same.sample(i).id for i in range(50)]


def test_back_at_a_place_its_old_keyframes_are_replayed_more() -> None:
    there_and_back = [0.0, 0.2, *range(5, 55, 5), 0.4, 0.3, 0.2, 0.1]
    store = store_at(there_and_back)
    old = Counter(store.sample(step).id for step in range(2, 1802, 3))
    same_place, elsewhere = [old[0], old[1]], [old[i] for i in range(2, 12)]
    assert min(same_place) > 2 * max(elsewhere)
    assert min(elsewhere) > 0  # and nothing is forgotten


def test_what_was_optimised_least_gets_its_turn() -> None:
    store = make_store(10)
    for keyframe in store.all:
        keyframe.num_steps = 100
    store.all[4].num_steps = 0
    first = Counter(store.sample(2).id for _ in range(30))
    assert first[4] >= 10
    for step in range(3000):
        store.sample(step)
    steps = [keyframe.num_steps for keyframe in store.all[:7]]  # those before the recent ones
    assert max(steps) < 1.5 * min(steps)


def test_neighbours_see_the_same_and_the_nearest_most_often() -> None:
    store = store_at([0.0, 0.2, 1.4, 9.0])
    assert sorted(k.id for k in store.neighbours(store.all[0], 5)) == [1, 2]
    assert store.neighbours(store.all[3], 2) == []
    assert store.neighbours(store.all[0], 0) == []
    chosen = Counter(store.neighbours(store.all[0], 1)[0].id for _ in range(400))
    assert chosen[1] / chosen[2] == pytest.approx(0.9 / 0.3, rel=0.3)


def test_shares_stay_however_many_keyframes_there_are() -> None:
    frame = wall_frame()
    graph = shares(*[frame] * 140)
    assert all(seen_by == dict.fromkeys(set(range(140)) - {i}, 1) for i, seen_by in enumerate(graph))


def test_no_more_than_a_grid_of_points_is_asked_about_a_frame() -> None:
    frame = wall_frame(T_map_camera=pose(2.7)).resized(80, 60)
    covis = make_store(3).covisibility
    grid = nearest(frame.depth, *POINTS)
    assert grid.shape == (12, 16)
    share = covis.unseen_share(frame.depth, frame.camera, frame.T_map_camera)
    assert covis.unseen_share(grid, frame.camera, frame.T_map_camera) == share > 0


def test_a_restored_store_knows_what_shows_the_same() -> None:
    frames = room_frames()
    whole = make_mapper("optimizer.steps_per_keyframe=2")
    for frame in frames[:6]:
        whole.integrate(frame)
    restored = make_mapper("optimizer.steps_per_keyframe=2")
    restored.restore_state(*whole.export_state())
    assert restored.keyframes.covisibility.seen_by == whole.keyframes.covisibility.seen_by
    assert [k.num_steps for k in restored.keyframes.all] == [k.num_steps for k in whole.keyframes.all]
    for mapper in (whole, restored):
        mapper.integrate(frames[8])
    (*_, latest), (*_, expected) = (m.keyframes.covisibility.seen_by for m in (restored, whole))
    assert latest.keys() == expected.keys()
    assert len(expected) == len(whole.keyframes) - 1
    np.testing.assert_allclose(list(latest.values()), list(expected.values()), atol=0.02)  # depth is kept in mm


def three_masks(scores: list[float]) -> KeyframeStore:
    """Three keyframes of a chair in two masks, 30 and 10 pixels, and a table of 20."""
    store = KeyframeStore(KeyframeConfig(), seed=0)
    for stamp_ns in (7, 8, 9):
        instance = np.zeros((30, 40), np.int32)
        instance[0, :30], instance[1, :10], instance[2, :20] = 4, 6, 8
        semantic = np.choose(instance // 2, [FLOOR, FLOOR, CHAIR, CHAIR, TABLE]).astype(np.int32)
        confidence = np.choose(instance // 2, [1, 1, *scores]).astype(np.float32)
        store.add(wall_frame(stamp_ns=stamp_ns), Segmentation(semantic, instance, confidence), CPU)
    return store


def test_masks_of_one_object_share_its_weight_by_pixels() -> None:
    store = three_masks([1.0, 0.5, 0.25])
    apart, together, unknown = store.all
    apart.mask_ids, together.mask_ids, unknown.mask_ids = [0, 1, 2, 3], [0, 1, 1, 3], [0, 0, 0, 3]
    told = store.observations()
    assert told.stamps_ns.tolist() == [7, 8, 9]
    seen = list(zip(told.frames.tolist(), told.ids.tolist(), told.classes.tolist(), strict=True))
    classes = [CHAIR, CHAIR, TABLE]
    assert seen == [(n, id, c) for n, k in enumerate(store.all) for id, c in zip(k.mask_ids[1:], classes, strict=True)]
    np.testing.assert_allclose(told.weights[:3], [1, 0.5, 0.25], rtol=1e-6)  # each the whole of its object
    np.testing.assert_allclose(told.weights[3:6], [0.75, 0.25 * 0.5, 0.25], rtol=1e-6)  # 30 and 10 of 40 pixels
    np.testing.assert_allclose(told.weights[8], 0.25, rtol=1e-6)


def test_observations_follow_the_ids_of_masks() -> None:
    store = three_masks([1.0, 1.0, 1.0])
    for keyframe in store.all:
        keyframe.mask_ids = [0, 1, 2, 3]
    store.resolve_ids({2: 1})
    told = store.observations()
    assert told.ids.tolist() == [1, 1, 3] * 3
    np.testing.assert_allclose(told.weights, [0.75, 0.25, 1] * 3, rtol=1e-6)


def test_without_masks_nothing_is_observed() -> None:
    store = make_store()
    assert len(store.observations().ids) == len(store.observations().stamps_ns) == 0
    store.add(wall_frame(stamp_ns=4), None, CPU)
    assert len(store.observations().ids) == 0
    assert store.observations().stamps_ns.tolist() == [4]


def test_ids_follow_merges() -> None:
    store = make_store(2)
    store.all[0].mask_ids, store.all[1].mask_ids = [0, 3, 1], [0, 2, 7]
    store.resolve_ids({3: 1, 2: 0})
    assert [k.mask_ids for k in store.all] == [[0, 1, 1], [0, 0, 7]]


def test_memory_is_that_of_all_images() -> None:
    store = make_store(3)
    assert store.nbytes == sum(k.nbytes for k in store.all) == 3 * store.all[0].nbytes
    assert isinstance(store.all[0].color, torch.Tensor)


@pytest.mark.parametrize("largest", [7, 10**6])  # numbered by a table, and by sorting
@pytest.mark.parametrize("has_rest", [True, False])
def test_masks_are_numbered_in_the_order_of_their_ids(largest: int, has_rest: bool) -> None:
    instance = np.array([[3, largest, 3], [0 if has_rest else 5, 5, largest]], np.int32)
    semantic = np.array([[1, 2, 1], [2, 2, 2]], np.int32)
    masks, fields = _numbered_masks(Segmentation(semantic, instance))
    assert masks.image().dtype == np.int32
    assert masks.image().tolist() == [[1, 3, 1], [0 if has_rest else 2, 2, 3]]
    assert fields["mask_classes"][1:] == [1, 2, 2]
    assert fields["mask_px"] == [int(has_rest), 2, 2 - has_rest, 2]
