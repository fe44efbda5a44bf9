"""Label warping: where pixels go against a plain oracle, what is hidden, and what pulls on what."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from small_room import CAMERA, CHAIR, SPACE, PassOn, mapped, wall_frame
from torch import Tensor

from panoptic_mapper.frame import PinholeCamera, Segmentation
from panoptic_mapper.label_warping import PixelGrid, one_hot_labels, warp_pixels, warped_cross_entropy
from panoptic_mapper.losses import PROBABILITY_FLOOR
from panoptic_mapper.mapper import PanopticMapper

OTHER_CAMERA = PinholeCamera(55.3, 52.1, 24.2, 20.9, 50, 44)
K = 5


def intrinsics(camera: PinholeCamera) -> Tensor:
    return PixelGrid(1).intrinsics(camera)


def plane_depth(camera: PinholeCamera, T_plane_camera: np.ndarray) -> np.ndarray:
    """Depth [H, W] of the plane z = 2, given where the camera stands: the ray's own intersection."""
    v, u = np.indices((camera.height, camera.width))
    rays = np.stack([(u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy, np.ones(u.shape)], -1)
    R, t = T_plane_camera[:3, :3], T_plane_camera[:3, 3]
    return (2 - t[2]) / (rays @ R[2])


def pose(
    rotation_deg: tuple[float, float, float] = (0, 0, 0), at: tuple[float, float, float] = (0, 0, 0)
) -> np.ndarray:
    T = np.eye(4)
    T[:3, :3] = Rotation.from_euler("xyz", rotation_deg, degrees=True).as_matrix()
    T[:3, 3] = at
    return T


def two_views() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Depth of a plane from two cameras, and the transform from the first to the second."""
    first, second = pose((8, -5, 3), (0.1, 0, 0)), pose((-2, 3, -6), (-0.1, 0.3, -0.2))
    return plane_depth(CAMERA, first), plane_depth(OTHER_CAMERA, second), np.linalg.inv(second) @ first


def oracle(depth: np.ndarray, target_depth: np.ndarray, T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each pixel's place in the other image, by 4x4 and 3x3 matrices, and whether it is seen there."""
    pixel, kept = np.zeros(depth.shape, np.int64), np.zeros(depth.shape, bool)
    for v, u in np.ndindex(*depth.shape):
        ray = np.linalg.inv(CAMERA.matrix) @ (u, v, 1)
        X = T @ (*(ray * depth[v, u]), 1)
        if depth[v, u] <= 0 or X[2] <= 0.01:
            continue
        column, row = np.floor((OTHER_CAMERA.matrix @ X[:3])[:2] / X[2] + 0.5).astype(int)
        if not (0 <= column < OTHER_CAMERA.width and 0 <= row < OTHER_CAMERA.height):
            continue
        pixel[v, u] = row * OTHER_CAMERA.width + column
        surface = target_depth[row, column]
        kept[v, u] = surface > 0 and abs(X[2] - surface) < max(0.03, 0.02 * X[2])
    return pixel, kept


def warped(depth: np.ndarray, target_depth: np.ndarray, T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    tensors = (torch.from_numpy(array) for array in (depth, target_depth, T))
    d, t, T_target_source = tensors
    pixel, kept = warp_pixels(d, intrinsics(CAMERA), t, intrinsics(OTHER_CAMERA), T_target_source)
    return pixel.numpy(), kept.numpy()


def test_pixels_of_a_plane_go_where_they_must() -> None:
    depth, target_depth, T = two_views()
    expected_pixel, expected_kept = oracle(depth, target_depth, T)
    pixel, kept = warped(depth, target_depth, T)
    assert 0.5 < expected_kept.mean() < 0.98  # some leave the image
    np.testing.assert_array_equal(kept, expected_kept)
    np.testing.assert_array_equal(pixel[kept], expected_pixel[kept])


def test_missing_and_wrong_depth_is_left_out() -> None:
    depth, target_depth, T = two_views()
    rng = np.random.default_rng(0)
    for image in (depth, target_depth):
        image[rng.random(image.shape) < 0.2] = 0
        image[rng.random(image.shape) < 0.2] *= 1.1
    expected_pixel, expected_kept = oracle(depth, target_depth, T)
    pixel, kept = warped(depth, target_depth, T)
    np.testing.assert_array_equal(kept, expected_kept)
    np.testing.assert_array_equal(pixel[kept], expected_pixel[kept])
    assert 0.1 < kept.mean() < 0.6


def test_what_stands_before_it_hides_a_surface() -> None:
    depth, target_depth, T = two_views()
    _, before = warped(depth, target_depth, T)
    pixel, _ = oracle(depth, target_depth, T)
    hidden = np.zeros(target_depth.shape, bool)
    hidden[10:30, 15:35] = True
    target_depth[hidden] -= 0.2
    _, kept = warped(depth, target_depth, T)
    is_hidden = hidden.reshape(-1)[pixel]
    assert (before & is_hidden).sum() > 100
    assert not (kept & is_hidden).any()
    np.testing.assert_array_equal(kept & ~is_hidden, before & ~is_hidden)


@pytest.mark.parametrize("T", [pose(at=(0, 0, -5)), pose((0, 180, 0)), pose(at=(50, 0, 0)), pose(at=(0, 0, 3))])
def test_without_overlap_nothing_pulls(T: np.ndarray) -> None:
    depth, target_depth, _ = two_views()
    p, q = distributions()
    loss = loss_of(p, depth, q, target_depth, T)
    loss.backward()
    assert loss == 0
    assert (p.grad == 0).all()


def distributions() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    p = torch.rand(CAMERA.height, CAMERA.width, K, generator=g, dtype=torch.float64).softmax(-1)
    q = torch.rand(OTHER_CAMERA.height, OTHER_CAMERA.width, K, generator=g, dtype=torch.float64)
    return p.requires_grad_(), q


def loss_of(p: Tensor, depth: np.ndarray, q: Tensor, target_depth: np.ndarray, T: np.ndarray) -> Tensor:
    d, t, T_target_source = (torch.from_numpy(array) for array in (depth, target_depth, T))
    return warped_cross_entropy(p, d, intrinsics(CAMERA), q, t, intrinsics(OTHER_CAMERA), T_target_source)


def test_loss_and_gradient_pixel_by_pixel() -> None:
    depth, target_depth, T = two_views()
    pixel, kept = oracle(depth, target_depth, T)
    p, q = distributions()
    loss = loss_of(p, depth, q, target_depth, T)
    loss.backward()
    total, mass, expected = 0.0, 0.0, np.zeros(p.shape)
    values, labels = p.detach().numpy(), q.reshape(-1, K).numpy()
    for v, u in zip(*kept.nonzero(), strict=True):
        for k in range(K):
            weight = labels[pixel[v, u], k]
            total -= weight * math.log(values[v, u, k] + PROBABILITY_FLOOR)
            mass += weight
            expected[v, u, k] = -weight / (values[v, u, k] + PROBABILITY_FLOOR)
    assert loss.item() == pytest.approx(total / mass)
    np.testing.assert_allclose(p.grad, expected / mass, rtol=1e-9)


def test_gradients_by_finite_differences() -> None:
    depth, target_depth, T = two_views()
    grid = PixelGrid(9)
    small = [torch.from_numpy(depth), torch.from_numpy(target_depth)]
    p, q = distributions()
    fixed = (grid.of(small[0]), grid.intrinsics(CAMERA), q, small[1], intrinsics(OTHER_CAMERA), torch.from_numpy(T))
    inputs = grid.of(p.detach()).clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: warped_cross_entropy(x, *fixed), (inputs,))


def test_gradients_flow_into_the_view_only() -> None:
    depth, target_depth, T = two_views()
    p, q = distributions()
    d, t, T_ = (torch.from_numpy(array).requires_grad_() for array in (depth, target_depth, T))
    loss = warped_cross_entropy(p, d, intrinsics(CAMERA), q, t, intrinsics(OTHER_CAMERA), T_)
    loss.backward()
    assert (p.grad != 0).any()
    assert d.grad is None
    assert t.grad is None
    assert T_.grad is None


def test_a_grid_sees_what_the_image_sees() -> None:
    depth, target_depth, T = two_views()
    image = torch.from_numpy(depth)
    whole, _ = warped(depth, target_depth, T)
    grid = PixelGrid(3, left=2, top=1)
    pixel, _ = warp_pixels(
        grid.of(image),
        grid.intrinsics(CAMERA),
        torch.from_numpy(target_depth),
        intrinsics(OTHER_CAMERA),
        torch.from_numpy(T),
    )
    np.testing.assert_array_equal(pixel, whole[1::3, 2::3])


def test_labels_as_columns() -> None:
    labels = one_hot_labels(torch.tensor([[2, -1, 0]]), torch.tensor([[0.5, 0.9, 1.0]]), 3)
    assert labels.tolist() == [[[0, 0, 0.5], [0, 0, 0], [1, 0, 0]]]


def warp_loss(mapper: PanopticMapper, neighbour: int = 1, queries: list[int] | None = None) -> float:
    """What a keyframe says about the first one's pixels, by the rendered labels; some rows of the queries, or all."""
    keyframe, optimizer = mapper.keyframes.all[0], mapper.optimizer
    view = mapper.map.view(keyframe.camera, keyframe.T_map_camera)
    if queries is not None:
        vars(view)["queries"] = mapper.map.queries.table.gather(torch.tensor(queries))  # as if it had found these
    args = (keyframe, view, view.render(), view.blend_labels(), mapper.keyframes.all[neighbour])
    return optimizer._warp_term(*args).item()


def test_labels_of_two_views_meet_by_the_ids_of_the_objects() -> None:
    frames = [wall_frame(), wall_frame(T_map_camera=pose(at=(0.12, 0, 0)), stamp_ns=1)]
    mapper = mapped(frames, "optimizer.steps_per_keyframe=0", segmenter=PassOn(SPACE))
    neighbour = mapper.keyframes.all[1]
    assert neighbour.mask_ids == [0, 1, 2]
    agreed = warp_loss(mapper)
    reordered = warp_loss(mapper, queries=[1, 0])  # other columns of the view, the same objects
    assert reordered == pytest.approx(agreed, rel=1e-5)
    neighbour.mask_ids = [0, 2, 1]
    assert warp_loss(mapper) > agreed + 1
    neighbour.mask_ids = [0, 99, 0]  # an object that is gone, and one that was never matched: only classes are known
    assert abs(warp_loss(mapper) - agreed) < 0.5


def test_a_neighbour_without_labels_for_the_pixels_says_nothing() -> None:
    frames = [wall_frame(), wall_frame(T_map_camera=pose(at=(0.12, 0, 0)), stamp_ns=1)]
    mapper = mapped(frames, "optimizer.steps_per_keyframe=0", segmenter=PassOn(SPACE))
    neighbour = mapper.keyframes.all[1]
    neighbour.semantic[:], neighbour.mask_index[:] = 0, 0
    assert warp_loss(mapper) == 0


@pytest.mark.parametrize("num_views", [0, 2])
def test_the_mapper_warps_from_as_many_neighbours_as_asked_for(num_views: int) -> None:
    frames = [wall_frame(T_map_camera=pose(at=(0.2 * i, 0, 0)), stamp_ns=i) for i in range(3)]
    mapper = mapped(frames, f"optimizer.warp_views={num_views}", segmenter=PassOn(SPACE))
    losses = mapper.stats().losses
    assert ("warp" in losses) == (num_views > 0)
    assert losses.get("warp", 1) > 0


def wall_mapper(*settings: str) -> PanopticMapper:
    """Two keyframes of the same wall; in the second, everything is one chair."""
    good = wall_frame()
    wrong = Segmentation(np.full_like(good.labels.semantic, CHAIR), np.ones_like(good.labels.instance))
    bad = replace(good, T_map_camera=pose(at=(0.2, 0, 0)), stamp_ns=1, labels=wrong)
    frames = [good, bad]
    return mapped(frames, "optimizer.steps_per_keyframe=0", *settings, segmenter=PassOn(SPACE))


def share_right_after(mapper: PanopticMapper, num_steps: int, warps: bool) -> float:
    """Share of the labelled Gaussians of the wall whose class is the first keyframe's, after steps on the second."""
    before = mapper.map.gaussians["class_index"].clone()
    first, second = mapper.keyframes.all
    for _ in range(num_steps):
        mapper.optimizer.step(second, [first] if warps else [])
    known = before > 0
    return float((mapper.map.gaussians["class_index"] == before)[known].float().mean())


def test_a_neighbour_holds_against_a_corrupted_keyframe() -> None:
    alone = share_right_after(wall_mapper(), 60, warps=False)
    helped = share_right_after(wall_mapper("losses.warp=2"), 60, warps=True)
    assert alone < 0.6
    assert helped > 0.9
