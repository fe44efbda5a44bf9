"""Growth and pruning: what is new, what a new Gaussian is like, and what goes away."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from small_room import CAMERA, CPU, gaussian_columns, wall_frame

from panoptic_mapper.density_control import (
    DensityConfig,
    count_free_space_hits,
    filled_depth,
    grown_gaussians,
    read_at_centers,
    survivors,
    tolerance,
    unexplained,
    unobstructed,
    usable_depth,
)
from panoptic_mapper.gaussian_map import WIDTHS, GaussianMap, LearningRates
from panoptic_mapper.keyframes import Keyframe, KeyframeConfig, KeyframeStore
from panoptic_mapper.rasterizers.base import Rendering

CONFIG = DensityConfig(
    stride_px=2,
    min_alpha=0.6,
    depth_tolerance_m=0.05,
    depth_tolerance=0.03,
    min_depth_m=0.15,
    max_depth_m=10,
    scale=0.5,
)
POSE = np.eye(4)
POSE[:3, :3] = Rotation.from_rotvec([0.2, -0.4, 0.1]).as_matrix()
POSE[:3, 3] = 0.5, -1.0, 2.0


def make_keyframe(depth_m: float = 2.0, depth: np.ndarray | None = None) -> Keyframe:
    frame = wall_frame(depth_m, POSE)
    if depth is not None:
        frame = replace(frame, depth=depth)
    return KeyframeStore(KeyframeConfig(), 0).add(frame, frame.labels, CPU)


def make_map(means: torch.Tensor, **columns: torch.Tensor) -> GaussianMap:
    gaussians = GaussianMap(LearningRates(), CPU)
    gaussians.append(gaussian_columns(means, **columns), anchor=0)
    return gaussians


def in_map(*camera_points: tuple[float, float, float]) -> torch.Tensor:
    """Camera-frame points in the map frame [n, 3]."""
    return torch.from_numpy(np.array(camera_points) @ POSE[:3, :3].T + POSE[:3, 3]).float()


def test_tolerance_is_the_larger_of_the_two() -> None:
    np.testing.assert_allclose(tolerance(torch.tensor([1.0, 5.0]), CONFIG), [0.05, 0.15])


def test_usable_depth_is_measured_and_neither_too_near_nor_too_far() -> None:
    depth = torch.tensor([0.0, 0.1, 0.16, 9.9, 10.0])
    assert usable_depth(depth, CONFIG).tolist() == [False, False, True, True, False]


def test_only_what_is_measured_right_before_the_lens_obstructs() -> None:
    depth = torch.tensor([0.0, 0.1, 0.16, 9.9, 10.0])
    assert unobstructed(depth, CONFIG).tolist() == [True, False, True, True, True]


def test_what_is_unexplained() -> None:
    #                    nothing there | same  | hole    | new in front | just nearer | behind | invalid | too far
    depth = torch.tensor([[2.0, 2.0, 2.0, 1.9, 1.96, 3.0, 0.0, 20.0]])
    rendered = torch.tensor([[0.0, 2.0, 2.0, 2.0, 2.0, 2.0, 0.0, 0.0]])
    alpha = torch.tensor([[0.0, 0.95, 0.5, 0.95, 0.95, 0.95, 0.0, 0.0]])
    new = unexplained(depth, depth, Rendering(torch.zeros(1, 8, 3), rendered, alpha), CONFIG)
    assert new.tolist() == [[True, False, True, True, False, False, False, False]]


def test_new_gaussians_lie_on_the_measured_surface() -> None:
    rng = np.random.default_rng(0)
    keyframe = make_keyframe(depth=rng.uniform(1, 3, (30, 40)).astype(np.float32))
    where = torch.from_numpy(rng.random((30, 40)) > 0.5)
    columns = grown_gaussians(keyframe, keyframe.depth, where, CONFIG)
    pixels = [(v, u) for v in range(1, 30, 2) for u in range(1, 40, 2) if where[v, u]]
    assert {name: tuple(c.shape) for name, c in columns.items()} == {n: (len(pixels), w) for n, w in WIDTHS.items()}
    for row, (v, u) in enumerate(pixels):
        z = float(keyframe.depth[v, u])
        point = np.array([(u - CAMERA.cx) / CAMERA.fx * z, (v - CAMERA.cy) / CAMERA.fy * z, z])
        np.testing.assert_allclose(columns["means"][row], POSE[:3, :3] @ point + POSE[:3, 3], atol=1e-5)
        # half of the footprint of 2 pixels
        np.testing.assert_allclose(columns["log_scales"][row].exp(), [z / CAMERA.fx] * 3, rtol=1e-5)
        np.testing.assert_allclose(columns["colors"][row] * 255, keyframe.color[v, u], atol=1e-4)
    np.testing.assert_allclose(columns["opacity_logits"].sigmoid(), CONFIG.opacity, rtol=1e-5)
    assert (columns["quats"] == torch.tensor([1.0, 0, 0, 0])).all()
    assert (columns["semantics"] == 0).all()
    assert (columns["instances"] == 0).all()


def test_nothing_new_gives_no_gaussians() -> None:
    columns = grown_gaussians(make_keyframe(), torch.ones(30, 40), torch.zeros(30, 40, dtype=torch.bool), CONFIG)
    assert all(len(c) == 0 for c in columns.values())


def test_images_are_read_at_the_pixels_of_the_centres() -> None:
    keyframe = make_keyframe()
    rng = np.random.default_rng(0)
    points = rng.uniform((-3, -3, -1), (3, 3, 4), (500, 3))  # some beside the image, and some behind the camera
    points[:2] = (0, 0, -1), (0.01, 0.02, -0.5)  # these, on its axis
    images = torch.from_numpy(rng.uniform(1, 2, (2, 30, 40)).astype(np.float32))
    depth, values = read_at_centers(in_map(*points), keyframe, images)
    np.testing.assert_allclose(depth, points[:, 2], atol=1e-5)
    u, v = (points[:, :2] / points[:, 2:] * (CAMERA.fx, CAMERA.fy) + (CAMERA.cx, CAMERA.cy)).T
    clear = (np.abs(u % 1 - 0.5) > 1e-3) & (np.abs(v % 1 - 0.5) > 1e-3)  # not on the border of a pixel
    num_inside = 0
    for n in np.flatnonzero(clear):
        row, column = int(np.rint(v[n])), int(np.rint(u[n]))
        inside = points[n, 2] > 0 and 0 <= row < 30 and 0 <= column < 40
        num_inside += inside
        assert torch.equal(values[:, n], images[:, row, column] if inside else torch.zeros(2))
    assert 20 < num_inside < 400


def test_floating_gaussians_are_counted_and_forgiven() -> None:
    keyframe = make_keyframe(2.0)
    # The tolerance at 2 m is 6 cm; a Gaussian floats when it is twice that in front.
    gaussians = make_map(in_map((0, 0, 1.5), (0, 0, 1.9), (0, 0, 2.0), (0, 0, 2.5), (9, 0, 1.0)))
    gaussians["free_space_hits"][:] = torch.tensor([0, 2, 1, 0, 2], dtype=torch.int32)
    everything = torch.arange(5)
    count_free_space_hits(gaussians, everything, keyframe, CONFIG)
    assert gaussians["free_space_hits"].tolist() == [1, 1, 0, 0, 2]
    count_free_space_hits(gaussians, everything[1:], keyframe, CONFIG)
    assert gaussians["free_space_hits"].tolist() == [1, 0, 0, 0, 2]


def test_survivors_are_solid() -> None:
    gaussians = make_map(torch.zeros(6, 3))
    config = DensityConfig(min_opacity=0.1, max_scale_m=0.5, free_space_hits=3)
    gaussians["opacity_logits"][0] = torch.logit(torch.tensor(0.09))
    gaussians["opacity_logits"][1] = torch.logit(torch.tensor(0.11))
    gaussians["log_scales"][2, 1] = np.log(0.51)
    gaussians["free_space_hits"][3] = 3
    gaussians["free_space_hits"][4] = 2
    gaussians["means"][5, 2] = float("nan")
    assert survivors(gaussians, config).tolist() == [False, True, False, False, True, False]


def test_holes_in_the_depth_are_filled_from_around_them_and_measurements_stay() -> None:
    column = torch.linspace(1.0, 3.0, 64)
    depth = column.expand(48, 64).clone()
    depth[10:30, 20:40] = 0
    depth[0, 0], depth[1, 1] = 0.05, 12.0  # too near and too far are measurements: they are neither filled nor spread
    filled = filled_depth(depth, CONFIG)
    measured = depth > 0
    assert torch.equal(filled[measured], depth[measured])
    hole = filled[10:30, 20:40]
    assert (hole >= 1.4).all()
    assert (hole <= 2.6).all()
    assert float((hole - column[20:40]).abs().mean()) < 0.25
    assert (filled_depth(torch.zeros(48, 64), CONFIG) == 0).all()


def test_holes_are_filled_as_level_by_level() -> None:
    """Against the pyramid in plain words: the finest level that has any depth around a pixel is what counts."""
    rng = np.random.default_rng(0)
    depth = rng.uniform(0.5, 8, (61, 83)).astype(np.float32) * (rng.random((61, 83)) > 0.5)
    depth[5:45, 10:60] = 0
    expected = depth.copy()
    weight = ((depth > CONFIG.min_depth_m) & (depth < CONFIG.max_depth_m)).astype(np.float64)
    sums, step = [depth * weight, weight], 1
    for level in range(6):
        for v, u in zip(*np.nonzero(expected == 0), strict=True):
            total, count = (image[v // step, u // step] for image in sums)
            expected[v, u] = total / count if count > 0 else 0
        if level < 5:
            step, sums = 2 * step, [halved(image) for image in sums]
    np.testing.assert_allclose(filled_depth(torch.from_numpy(depth), CONFIG), expected, rtol=1e-4)


def halved(image: np.ndarray) -> np.ndarray:
    """Means of 2 x 2 pixels; of fewer at a border."""
    height, width = image.shape
    blocks = [[image[v : v + 2, u : u + 2].mean() for u in range(0, width, 2)] for v in range(0, height, 2)]
    return np.array(blocks)


def test_the_map_grows_in_holes_but_only_where_nothing_is() -> None:
    depth = torch.tensor([[0.0, 0.0, 2.0]])
    surface = torch.tensor([[2.0, 2.0, 2.0]])
    rendering = Rendering(torch.zeros(1, 3, 3), torch.tensor([[0.0, 3.0, 3.0]]), torch.tensor([[0.0, 1.0, 1.0]]))
    # The last pixel is measured in front of the map; the middle one only seems to be, for its depth is filled in.
    assert unexplained(depth, surface, rendering, CONFIG).tolist() == [[True, False, True]]
