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
    depth_at_centers,
    filled_depth,
    grown_gaussians,
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


def test_depth_is_read_at_the_pixels_of_the_centres() -> None:
    depth = np.fromfunction(lambda v, u: 1 + 0.01 * u + 0.1 * v, (30, 40), dtype=np.float32)
    depth[3, 7] = 0
    keyframe = make_keyframe(depth=depth.astype(np.float32))

    def at_pixel(u: float, v: float, z: float) -> tuple[float, float, float]:
        return (u - CAMERA.cx) / CAMERA.fx * z, (v - CAMERA.cy) / CAMERA.fy * z, z

    means = in_map(at_pixel(10.3, 20.4, 1.5), at_pixel(7, 3, 1.0), at_pixel(40.4, 5, 1.0), at_pixel(5, 5, -1.0))
    at = depth_at_centers(means, keyframe, keyframe.depth, CONFIG)
    assert at.valid.tolist() == [True, False, False, False]
    assert (int(at.u[0]), int(at.v[0])) == (10, 20)
    np.testing.assert_allclose(at.depth, [1.5, 1.0, 1.0, -1.0], atol=1e-5)
    np.testing.assert_allclose(at.surface[0], 3.1, rtol=1e-5)


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


def test_the_map_grows_in_holes_but_only_where_nothing_is() -> None:
    depth = torch.tensor([[0.0, 0.0, 2.0]])
    surface = torch.tensor([[2.0, 2.0, 2.0]])
    rendering = Rendering(torch.zeros(1, 3, 3), torch.tensor([[0.0, 3.0, 3.0]]), torch.tensor([[0.0, 1.0, 1.0]]))
    # The last pixel is measured in front of the map; the middle one only seems to be, for its depth is filled in.
    assert unexplained(depth, surface, rendering, CONFIG).tolist() == [[True, False, True]]
