"""Keyframes: when a frame is kept, what is kept of it, and which are replayed."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from small_room import CHAIR, CPU, FLOOR, TABLE, wall_frame

from panoptic_mapper.frame import Segmentation
from panoptic_mapper.keyframes import KeyframeConfig, KeyframeStore


def pose(x_m: float = 0.0, turn_deg: float = 0.0) -> np.ndarray:
    T = np.eye(4)
    T[:3, :3] = Rotation.from_euler("y", turn_deg, degrees=True).as_matrix()
    T[0, 3] = x_m
    return T


def make_store(num_keyframes: int = 0) -> KeyframeStore:
    store = KeyframeStore(KeyframeConfig(translation_m=0.2, rotation_deg=10, recent=3), seed=0)
    for i in range(num_keyframes):
        frame = wall_frame(T_map_camera=pose(i), stamp_ns=i)
        store.add(frame, frame.labels, CPU)
    return store


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


def test_masks_are_numbered_from_one() -> None:
    frame = wall_frame()
    keyframe = make_store().add(frame, frame.labels, CPU)
    assert len(keyframe.mask_classes) == len(keyframe.mask_scores) == len(keyframe.mask_ids) == 3
    assert keyframe.mask_ids == [0, 0, 0]
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


def test_the_latest_the_recent_and_all_are_replayed() -> None:
    store = make_store(10)
    sampled = [[], [], []]
    for step in range(600):
        sampled[step % 3].append(store.sample(step).id)
    latest, recent, any_one = (Counter(ids) for ids in sampled)
    assert set(latest) == {9}
    assert set(recent) == {7, 8, 9}
    assert set(any_one) == set(range(10))
    assert max(any_one.values()) < 3 * min(any_one.values())
    other, same = make_store(10), make_store(10)
    assert [other.sample(i).id for i in range(50)] == [same.sample(i).id for i in range(50)]


def test_ids_follow_merges() -> None:
    store = make_store(2)
    store.all[0].mask_ids, store.all[1].mask_ids = [0, 3, 1], [0, 2, 7]
    store.resolve_ids({3: 1, 2: 0})
    assert [k.mask_ids for k in store.all] == [[0, 1, 1], [0, 0, 7]]


def test_memory_is_that_of_all_images() -> None:
    store = make_store(3)
    assert store.nbytes == sum(k.nbytes for k in store.all) == 3 * store.all[0].nbytes
    assert isinstance(store.all[0].color, torch.Tensor)
