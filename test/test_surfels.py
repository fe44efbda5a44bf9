"""Surfels: discs that lie in the surface, their normals, and the terms that keep them there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from small_room import CAMERA, SPACE, PassOn, make_mapper, mapped, room_frames, wall_frame, without_labels
from torch import Tensor

from panoptic_mapper.frame import Frame
from panoptic_mapper.geometry import backproject, rotation_matrices
from panoptic_mapper.mapper import PanopticMapper
from panoptic_mapper.rasterizers.base import Rendering
from panoptic_mapper.rasterizers.torch_reference import TorchRasterizer
from panoptic_mapper.surfels import (
    THICKNESS_M,
    SurfaceRendering,
    disc_shapes,
    facing_normals,
    render_surface,
    surface_terms,
)

NORMAL = np.array([0.6, 0.0, -0.8])  # of a plane through (0, 0, 2), camera frame
POSE = np.eye(4)
POSE[:3, :3] = Rotation.from_rotvec([0.3, -0.5, 0.2]).as_matrix()
POSE[:3, 3] = 1.0, 2.0, -1.0


def tilted_depth() -> np.ndarray:
    """Depth [H, W] of the plane with NORMAL from the origin."""
    rays = backproject(torch.ones(CAMERA.height, CAMERA.width), CAMERA).numpy()
    return (2 * NORMAL[2] / (rays @ NORMAL)).astype(np.float32)


def tilted_frame() -> Frame:
    return replace(without_labels(wall_frame()), depth=tilted_depth(), T_map_camera=POSE)


def surfel_normals(mapper: PanopticMapper) -> np.ndarray:
    return rotation_matrices(mapper.map.gaussians["quats"])[..., 2].numpy()


def tilted_mapper(*settings: str) -> PanopticMapper:
    settings = ("gaussians.base=surfel", "optimizer.steps_per_keyframe=0", "losses.color=0", *settings)
    return mapped([tilted_frame()], *settings, segmenter=PassOn(SPACE))


def angles_deg(mapper: PanopticMapper) -> np.ndarray:
    """Angles of all surfels to the plane."""
    cosine = np.abs(surfel_normals(mapper) @ (POSE[:3, :3] @ NORMAL))
    return np.degrees(np.arccos(np.clip(cosine, 0, 1)))


def test_new_surfels_lie_in_the_surface_and_look_round() -> None:
    points = backproject(torch.from_numpy(tilted_depth()), CAMERA)
    u, v = torch.tensor([10, 20, 30]), torch.tensor([5, 15, 20])
    T, radii = torch.from_numpy(POSE).float(), torch.tensor([0.01, 0.02, 0.03])
    quats, log_scales = disc_shapes(points, T, radii, u, v)
    axes = rotation_matrices(quats)
    np.testing.assert_allclose(axes[..., 2], np.tile(POSE[:3, :3] @ NORMAL, (3, 1)), atol=1e-4)
    to_camera = torch.nn.functional.normalize(-points[v, u], dim=1).double().numpy()
    cosine = to_camera @ NORMAL
    np.testing.assert_allclose(log_scales.exp()[:, 0].numpy(), radii.numpy() / cosine, rtol=1e-4)
    np.testing.assert_allclose(log_scales.exp()[:, 1], radii, rtol=1e-5)
    np.testing.assert_allclose(log_scales.exp()[:, 2], THICKNESS_M, rtol=1e-5)
    # The short axis is across the slope: at right angles to the ray.
    across = np.einsum("ni,ni->n", axes[..., 1].numpy(), to_camera @ POSE[:3, :3].T)
    np.testing.assert_allclose(across, 0, atol=1e-4)


def test_without_neighbours_a_disc_faces_the_camera() -> None:
    depth = torch.zeros(CAMERA.height, CAMERA.width)
    depth[4, 7] = 2
    points = backproject(depth, CAMERA)
    quats, log_scales = disc_shapes(points, torch.eye(4), torch.tensor([0.01]), torch.tensor([7]), torch.tensor([4]))
    expected = -points[4, 7] / points[4, 7].norm()
    torch.testing.assert_close(rotation_matrices(quats)[0, :, 2], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(log_scales.exp()[0], torch.tensor([0.01, 0.01, THICKNESS_M]))


def test_normals_face_the_camera() -> None:
    T_camera_map = torch.from_numpy(np.linalg.inv(POSE)).float()
    quats = torch.tensor([[1.0, 0, 0, 0], [0.3, -0.4, 0.1, 0.2]])
    points = torch.tensor([[0.1, 0.2, 3.0], [-0.3, 0.5, 2.0]])
    normals = facing_normals(points, quats, T_camera_map)
    assert ((normals * points).sum(1) < 0).all()
    axis = Rotation.from_quat(quats[:, [1, 2, 3, 0]].numpy()).as_matrix()[..., 2] @ T_camera_map[:3, :3].numpy().T
    signs = np.sign(np.einsum("ni,ni->n", axis, normals.numpy()))
    np.testing.assert_allclose(normals, signs[:, None] * axis, atol=1e-6)


def random_surfels(n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(3)
    means = torch.rand(n, 3, generator=g, dtype=torch.float64) - 0.5 + torch.tensor([0.0, 0, 2])
    quats = torch.randn(n, 4, generator=g, dtype=torch.float64)
    scales = torch.tensor([0.3, 0.2, THICKNESS_M], dtype=torch.float64).expand(n, 3)
    return means, quats, scales, torch.full((n,), 0.6, dtype=torch.float64)


def test_distortion_and_normals_are_the_sums_over_each_ray() -> None:
    means, quats, scales, opacities = random_surfels(6)
    means.requires_grad_()
    T = torch.eye(4, dtype=torch.float64)
    projection = TorchRasterizer().project(means, quats, scales, opacities, T, CAMERA)
    assert projection.visible.tolist() == list(range(6))
    colors = torch.rand(6, 3, dtype=torch.float64)
    surface = render_surface(projection, colors, means, quats, T)
    weights = projection._splat(torch.eye(6, dtype=torch.float64), detach=False)  # [H, W, 6]
    pairs = weights[..., :, None] * weights[..., None, :] * (means[:, None, 2] - means[:, 2]).square()
    expected = pairs.sum((-1, -2))
    assert expected.max() > 0.01
    torch.testing.assert_close(surface.distortion, expected)
    torch.testing.assert_close(surface.normals, weights @ facing_normals(means, quats, T))
    torch.testing.assert_close(surface.rendering.color, weights @ colors)
    for image, oracle in ((surface.distortion, expected), (surface.rendering.alpha, weights.sum(-1))):
        (gradient,) = torch.autograd.grad(image.sum(), means, retain_graph=True)
        (by_pairs,) = torch.autograd.grad(oracle.sum(), means, retain_graph=True)
        torch.testing.assert_close(gradient, by_pairs)


def plane_seen_with(normal: np.ndarray, alpha: float) -> SurfaceRendering:
    depth = torch.from_numpy(tilted_depth())
    normals = alpha * torch.tensor(normal).float().expand(*depth.shape, 3)
    rendering = Rendering(torch.zeros(*depth.shape, 3), depth, torch.full_like(depth, alpha))
    return SurfaceRendering(rendering, normals, torch.zeros_like(depth))


def test_the_normal_loss_is_one_minus_the_cosine() -> None:
    assert float(surface_terms(plane_seen_with(NORMAL, 0.9), CAMERA)["normal"]) == pytest.approx(0, abs=1e-4)
    turned = Rotation.from_rotvec(np.radians(30) * np.array([0.0, 1, 0])).apply(NORMAL)
    expected = 0.9 * (1 - np.cos(np.radians(30)))
    terms = surface_terms(plane_seen_with(turned, 0.9), CAMERA)
    assert float(terms["normal"]) == pytest.approx(expected, rel=1e-3)


def test_steps_of_the_depth_count_in_no_term() -> None:
    surface = plane_seen_with(NORMAL, 0.9)
    surface.rendering.depth[:, 20:] *= 1.5  # a parallel plane
    surface.distortion[:, 19:21] = 7.0
    surface.normals[:, 19:21] *= -1
    terms = surface_terms(surface, CAMERA)
    assert float(terms["normal"]) == pytest.approx(0, abs=1e-4)
    assert float(terms["distortion"]) == 0
    surface.distortion[10, 10] = 7.0
    num_valid = 28 * 36  # without the border and the two columns on either side of the step
    assert float(surface_terms(surface, CAMERA)["distortion"]) == pytest.approx(7 / num_valid)


def test_surfels_of_a_plane_have_its_normal_and_keep_it() -> None:
    mapper = tilted_mapper()
    free = tilted_mapper("losses.normal=0")
    assert np.median(angles_deg(mapper)) < 0.5
    mapper.refine(30)
    free.refine(30)  # turned to the camera by the opacity loss, to fill the gaps between them
    assert np.median(angles_deg(mapper)) < min(5, 0.6 * np.median(angles_deg(free)))


def test_turned_surfels_align_with_the_plane() -> None:
    mapper = tilted_mapper("learning_rates.quats=0.01", "losses.normal=1")
    quats = mapper.map.gaussians["quats"]
    quats += 0.25 * torch.randn(quats.shape, generator=torch.Generator().manual_seed(0))
    before = np.median(angles_deg(mapper))
    assert before > 15
    mapper.refine(60)
    assert np.median(angles_deg(mapper)) < 0.5 * before


def test_the_distortion_term_gathers_the_depths_of_a_ray() -> None:
    spreads = {}
    for weight in (0, 100):
        mapper = tilted_mapper(f"losses.distortion={weight}", "losses.normal=0", "losses.depth=0")
        means = mapper.map.gaussians["means"]
        along = torch.from_numpy(POSE[:3, :3] @ NORMAL).float()
        noise = 0.03 * torch.randn(len(means), 1, generator=torch.Generator().manual_seed(0))
        means += noise * along
        mapper.refine(40)
        mapper.optimizer.step(mapper.keyframes.all[0])
        spreads[weight] = mapper.stats().losses["distortion"]
    assert spreads[100] < 0.7 * spreads[0]


def test_the_thickness_is_not_learned() -> None:
    mapper = mapped([wall_frame()], "gaussians.base=surfel", "optimizer.steps_per_keyframe=0", segmenter=PassOn(SPACE))
    before = mapper.map.gaussians["log_scales"].clone()
    mapper.refine(5)
    after = mapper.map.gaussians["log_scales"]
    assert torch.equal(after[:, 2], before[:, 2])
    assert (after[:, :2] != before[:, :2]).any(1).float().mean() > 0.9
    assert set(mapper.stats().losses) >= {"normal", "distortion", "color", "semantic"}


def test_the_depth_of_a_room_is_as_good_as_with_ellipsoids() -> None:
    errors = {}
    for base in ("3dgs", "surfel"):
        settings = (f"gaussians.base={base}", "optimizer.steps_per_keyframe=6", "optimizer.label_every=3")
        mapper = mapped(room_frames()[:6:2], *settings)
        differences = []
        for frame in room_frames()[1:6:2]:
            view = mapper.render(frame.camera, frame.T_map_camera)
            both = (view.depth > 0) & (frame.depth > 0)
            assert both.mean() > 0.9
            assert np.median(np.abs(view.depth - frame.depth)[both]) < 0.03
            differences.append(np.abs(view.depth - frame.depth)[both].mean())
        errors[base] = np.mean(differences)
        objects = {o.class_name for o in mapper.objects()}
        assert len(objects) >= 3  # the same panoptic code on both
    assert errors["surfel"] < errors["3dgs"] + 0.005


def test_a_surfel_map_is_a_setting() -> None:
    with pytest.raises(ValueError, match="expected one of 3dgs, surfel"):
        make_mapper("gaussians.base=triangle")
