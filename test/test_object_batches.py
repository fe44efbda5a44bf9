"""Boxes of many objects at once against those of one object after the other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from panoptic_mapper import object_batches
from panoptic_mapper.object_batches import BatchExtractor, fingerprints
from panoptic_mapper.objects import ObjectGeometry, extract_objects

UP = np.array([0.0, 0.0, 1.0])
ON_GPU = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
DEVICES = ["cpu", pytest.param("cuda", marks=ON_GPU)]


def extract(extractor: BatchExtractor, points: np.ndarray, rows: np.ndarray, ids: list[int], up: np.ndarray, device):
    on_device = torch.from_numpy(points).to(device), torch.from_numpy(rows).to(device)
    marks = fingerprints(*on_device, len(ids)).cpu()
    return extractor.extract(*on_device, ids, marks, up)


def furniture(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Points [N, 3] float32 of tables, parts behind occlusions, strays and tiny objects; rows [N], -1 = none."""
    rng = np.random.default_rng(seed)
    objects = []
    for k, num in enumerate((1, 2, 3, 49, 50, 300, 1001, 2500, 4000)):
        size = rng.uniform(0.3, 2, 3)
        R = Rotation.from_euler("z", rng.uniform(0, 180), degrees=True).as_matrix()
        points = rng.uniform(-0.5, 0.5, (num, 3))
        axis = rng.integers(3, size=num)
        points[np.arange(num), axis] = rng.choice([-0.5, 0.5], num)
        points = (points * size) @ R.T + rng.uniform(-20, 20, 3)
        if num > 300:
            strays = rng.uniform(-6, 6, (num // 50, 3)) + points.mean(0)
            part = points[: num // 4] + np.array([0, 0, 2.5])  # large enough to belong to it
            points = np.concatenate([points, strays, part])
        objects.append((points, np.full(len(points), k)))
    objects.append((rng.uniform(-20, 20, (500, 3)), np.full(500, -1)))
    points, rows = (np.concatenate(parts) for parts in zip(*objects, strict=True))
    order = rng.permutation(len(points))
    return points[order].astype(np.float32), rows[order]


def assert_equal(actual: dict[int, ObjectGeometry], expected: dict[int, ObjectGeometry]) -> None:
    assert sorted(actual) == sorted(expected)
    for id, geometry in expected.items():
        for name in ("centroid", "aabb_min", "aabb_max"):
            np.testing.assert_allclose(getattr(actual[id], name), getattr(geometry, name), atol=1e-5, err_msg=f"{id}")
        assert actual[id].num_points == geometry.num_points
        for name in ("center", "size", "quaternion"):
            values = getattr(actual[id].box, name), getattr(geometry.box, name)
            np.testing.assert_allclose(*values, atol=1e-4, err_msg=f"{name} of {id}")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("seed", "up"), [(0, UP), (1, np.array([0.0, -2.0, 0.0])), (2, np.array([0.3, 0.2, 0.8]))])
def test_batches_are_the_same_as_one_after_the_other(device: str, seed: int, up: np.ndarray, monkeypatch) -> None:
    monkeypatch.setattr(object_batches, "BATCH", 4)  # several batches, the last of them not full
    points, rows = furniture(seed)
    ids = [3, 5, 8, 9, 12, 70_000, 70_001, 70_002, 70_003, 70_004]  # the last has no point
    expected = extract_objects(points, np.where(rows < 0, 0, np.array(ids)[rows]), up)
    assert_equal(extract(BatchExtractor(), points, rows, ids, up, device), expected)


@pytest.mark.parametrize("device", DEVICES)
def test_only_objects_that_changed_are_computed(device: str, monkeypatch) -> None:
    points, rows = furniture(3)
    ids, extractor, computed = list(range(1, 10)), BatchExtractor(), []
    real = object_batches._geometries

    def counted(points, rows, chosen, *more):
        computed.append([ids[row] for row in chosen])
        return real(points, rows, chosen, *more)

    monkeypatch.setattr(object_batches, "_geometries", counted)
    extract(extractor, points, rows, ids, UP, device)
    moved, swapped, relabelled = points.copy(), points.copy(), rows.copy()
    moved[np.flatnonzero(rows == 4)[0], 1] += 1e-6 * 32
    first, second = np.flatnonzero(rows == 6)[:2]
    swapped[[first, second]] = swapped[[second, first]]
    relabelled[np.flatnonzero(rows == 7)[0]] = -1
    for new_points, new_rows, up in [
        (points, rows, UP),
        (moved, rows, UP),
        (points, rows, UP),
        (swapped, rows, UP),  # the same points in another order
        (points, relabelled, UP),
        (points, relabelled, np.array([0.0, 1.0, 0.0])),
    ]:
        actual = extract(extractor, new_points, new_rows, ids, up, device)
        assert_equal(actual, extract_objects(new_points, new_rows + 1, up))
    assert computed == [ids, [5], [5], [8], ids]


def test_no_object_has_no_geometry() -> None:
    nothing = np.zeros((0, 3), np.float32), np.zeros(0, np.int64)
    assert extract(BatchExtractor(), *nothing, [], UP, "cpu") == {}
    assert extract(BatchExtractor(), *nothing, [4, 7], UP, "cpu") == {}
    points = np.zeros((3, 3), np.float32)
    assert extract(BatchExtractor(), points, np.full(3, -1), [4], UP, "cpu") == {}


def test_a_fingerprint_tells_sets_of_points_apart() -> None:
    points = torch.tensor([[0.0, 1.0, 2.0], [2.0, 1.0, 0.0], [-0.0, 1.0, 2.0], [0.0, 1.0, 2.0]])
    rows = torch.tensor([0, 1, 2, 3])
    counts, marks = fingerprints(points, rows, 5).unbind(1)
    assert counts.tolist() == [1, 1, 1, 1, 0]
    assert marks[0] == marks[3]
    assert len(set(marks[[0, 1, 2]].tolist())) == 3
    pair = fingerprints(points[[0, 1, 0, 1]], torch.tensor([0, 0, 1, 1]), 2)
    assert torch.equal(pair[0], pair[1])
