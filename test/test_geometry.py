"""Geometry against scipy, closed forms and a tilted synthetic room."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from small_room import CAMERA, room_frames, wall_frame

from panoptic_mapper.frame import PinholeCamera
from panoptic_mapper.geometry import (
    backproject,
    estimate_up,
    inverse_pose,
    project,
    quaternions,
    rotation_matrices,
    surface_normals,
    transform,
)

LOPSIDED = PinholeCamera(50.0, 40.0, 12.3, 20.7, 33, 29)


def random_pose(seed: int) -> np.ndarray:
    T = np.eye(4)
    T[:3, :3] = Rotation.random(random_state=seed).as_matrix()
    T[:3, 3] = np.random.default_rng(seed).normal(size=3)
    return T


def wxyz(rotations: Rotation) -> torch.Tensor:
    return torch.from_numpy(np.roll(rotations.as_quat(canonical=True), 1, axis=1))


def test_rotation_matrices_are_scipys() -> None:
    rotations = Rotation.random(100, random_state=0)
    quats = wxyz(rotations) * torch.linspace(0.1, 3, 100)[:, None]  # of any length
    np.testing.assert_allclose(rotation_matrices(quats), rotations.as_matrix(), atol=1e-12)


def test_quaternions_are_scipys_also_near_half_turns() -> None:
    half_turns = Rotation.from_rotvec(np.pi * np.concatenate([np.eye(3), [[0.6, 0.8, 0]], -np.eye(3)]))
    nearly = Rotation.from_rotvec([[np.pi - 1e-7, 0, 0], [0, 1e-9, 0], [0, 0, 0]])
    rotations = Rotation.concatenate([Rotation.random(200, random_state=1), half_turns, nearly])
    quats = quaternions(torch.from_numpy(rotations.as_matrix()))
    assert (quats[:, 0] >= 0).all()
    np.testing.assert_allclose(quats.norm(dim=1), 1, atol=1e-12)
    # q and -q are the same rotation where w is 0.
    assert ((quats * wxyz(rotations)).sum(1).abs() - 1).abs().max() < 1e-12
    np.testing.assert_allclose(rotation_matrices(quats), rotations.as_matrix(), atol=1e-7)


def test_inverse_pose_and_transform() -> None:
    T = random_pose(3)
    np.testing.assert_allclose(inverse_pose(T), np.linalg.inv(T), atol=1e-12)
    points = torch.randn(4, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    homogeneous = torch.cat([points, torch.ones(4, 5, 1)], -1).numpy()
    np.testing.assert_allclose(transform(torch.from_numpy(T), points), (homogeneous @ T.T)[..., :3], atol=1e-12)


def test_backprojected_points_project_to_their_pixels() -> None:
    depth = torch.rand(29, 33, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.5
    depth[3, 4] = 0
    points = backproject(depth, LOPSIDED)
    assert points[3, 4].tolist() == [0, 0, 0]
    pixels, z = project(points, LOPSIDED)
    v, u = np.mgrid[:29, :33]
    measured = (depth > 0).numpy()
    np.testing.assert_allclose(pixels.numpy()[measured], np.stack([u, v], -1)[measured], atol=1e-9)
    np.testing.assert_array_equal(z, depth)


def test_projection_is_that_of_the_camera_matrix() -> None:
    points = torch.tensor([[0.3, -0.2, 2.0], [0.0, 0.0, 0.7]], dtype=torch.float64)
    homogeneous = points.numpy() @ LOPSIDED.matrix.T
    np.testing.assert_allclose(project(points, LOPSIDED)[0], homogeneous[:, :2] / homogeneous[:, 2:], atol=1e-12)


def plane_depth(normal: np.ndarray, distance: float, camera: PinholeCamera) -> torch.Tensor:
    """Depth image of the plane normal . x = -distance (the normal points to the camera)."""
    v, u = np.mgrid[: camera.height, : camera.width]
    rays = np.stack([(u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy, np.ones(u.shape)], -1)
    return torch.from_numpy(-distance / (rays @ normal))


def test_normals_of_a_plane() -> None:
    normal = np.array([0.3, -0.5, -1.0])
    normal /= np.linalg.norm(normal)
    depth = plane_depth(normal, 2.0, LOPSIDED)
    depth[10, 10] = 0
    normals, valid = surface_normals(backproject(depth, LOPSIDED))
    np.testing.assert_allclose(normals[valid], np.broadcast_to(normal, (int(valid.sum()), 3)), atol=1e-9)
    expected = torch.zeros_like(valid)
    expected[1:-1, 1:-1] = True
    for dv, du in ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)):
        expected[10 + dv, 10 + du] = False
    assert torch.equal(valid, expected)


def test_no_normals_across_a_depth_step() -> None:
    depth = torch.full((29, 33), 2.0)
    depth[:, 16:] = 3.0
    _, valid = surface_normals(backproject(depth, LOPSIDED))
    assert not valid[:, 15:17].any()
    assert valid[1:-1, 1:15].all()
    assert valid[1:-1, 17:-1].all()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_up_of_a_tilted_room(seed: int) -> None:
    tilt = np.eye(4)
    tilt[:3, :3] = Rotation.random(random_state=seed).as_matrix()
    frames = [replace(f, T_map_camera=tilt @ f.T_map_camera) for f in room_frames()[:5]]
    up = estimate_up(frames)
    np.testing.assert_allclose(np.linalg.norm(up), 1)
    assert np.degrees(np.arccos(min(up @ tilt[:3, 2], 1))) < 0.5


def test_up_between_surfaces_that_all_face_nearly_up() -> None:
    """Nothing faces along the mean of three surfaces: two large ones, both 7.6 degrees from a small one."""
    normal = np.array([0, -1, -1]) / np.sqrt(2)  # a floor, for a camera that looks down by 45 degrees
    floor = replace(wall_frame(), depth=plane_depth(normal, 1.0, CAMERA).float().numpy())
    upright = Rotation.from_euler("x", -135, degrees=True)
    np.testing.assert_allclose(upright.apply(normal), [0, 0, 1], atol=1e-9)
    frames = []
    for axis, count in (((0, 0, 0), 1), ((1, 0, 0), 10), ((0, 1, 0), 10)):
        pose = np.eye(4)
        pose[:3, :3] = (Rotation.from_rotvec(np.radians(7.6) * np.array(axis)) * upright).as_matrix()
        frames += [replace(floor, T_map_camera=pose)] * count
    up = estimate_up(frames)
    np.testing.assert_allclose(np.linalg.norm(up), 1)
    assert up[2] > np.cos(np.radians(7.6))


def test_no_surface_faces_up() -> None:
    with pytest.raises(ValueError, match="up direction: only 0 surface normals face up"):
        estimate_up([wall_frame()])
    empty = replace(wall_frame(), depth=np.zeros((CAMERA.height, CAMERA.width), np.float32))
    with pytest.raises(ValueError, match="up direction"):
        estimate_up([empty])
