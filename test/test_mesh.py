"""The mesh of a map: where its surface lies, which way it faces, how it is labelled, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from small_room import CAMERA, CHAIR, FLOOR, SPACE, TABLE, mapped, room_frames

from panoptic_mapper import mesh, ply
from panoptic_mapper.label_space import distinct_color
from panoptic_mapper.mapper import PanopticMapper
from panoptic_mapper.snapshot import MapSnapshot, PanopticView

pytest.importorskip("open3d", reason="open3d or its system libraries are missing", exc_type=ImportError)

H, W = CAMERA.height, CAMERA.width
WALL_M = 2.0


def view_of(depth: np.ndarray, color: np.ndarray | None = None, alpha: float = 1.0) -> PanopticView:
    color = np.full((*depth.shape, 3), (200, 100, 50), np.uint8) if color is None else color
    labels = np.zeros(depth.shape, np.int32)
    return PanopticView(color, depth.astype(np.float32), np.full(depth.shape, alpha, np.float32), labels, labels)


def normals(vertices: np.ndarray, triangles: np.ndarray) -> np.ndarray:  # [T, 3], not normalised
    a, b, c = (vertices[triangles[:, k]] for k in range(3))
    return np.cross(b - a, c - a)


def snapshot_of(points: list[list[float]], classes: list[int], instances: list[int]) -> MapSnapshot:
    n = len(points)
    columns = (np.array(points, np.float32).reshape(n, 3), np.zeros((n, 3), np.uint8))
    labels = (np.array(classes, np.int32), np.array(instances, np.int32))
    return MapSnapshot(0, *columns, *labels, np.ones(n, np.float32), (), SPACE)


def test_a_wall_becomes_a_plane_that_faces_the_camera() -> None:
    volume = mesh.TsdfVolume(0.05)
    for x in (0.0, 0.1):
        T_camera_map = np.eye(4)
        T_camera_map[0, 3] = -x
        volume.integrate(view_of(np.full((H, W), WALL_M)), CAMERA.matrix, T_camera_map)
    vertices, triangles, colors = volume.extract(2)
    np.testing.assert_allclose(vertices[:, 2], WALL_M, atol=2e-3)
    half_width = 0.5 * W / CAMERA.fx * WALL_M
    assert 0.8 * half_width < vertices[:, 0].max() <= half_width + 0.05
    assert (normals(vertices, triangles)[:, 2] < 0).all()  # the camera looks along +z
    assert np.abs(colors.astype(int) - (200, 100, 50)).max() <= 1
    assert len(volume.extract(3)[0]) == 0  # only two views have seen it


def test_an_empty_view_adds_nothing() -> None:
    volume = mesh.TsdfVolume(0.05)
    volume.integrate(view_of(np.zeros((H, W))), CAMERA.matrix, np.eye(4))
    assert [len(part) for part in volume.extract(1)] == [0, 0, 0]


def test_rims_and_half_transparent_pixels_are_left_out() -> None:
    depth = np.full((6, 8), 2.0, np.float32)
    depth[:, 4:] = 1.0
    kept = mesh.fusible_depth(view_of(depth))
    np.testing.assert_array_equal(kept[:, [3, 4]], 0)
    np.testing.assert_array_equal(kept[:, [0, 1, 2, 5, 6, 7]], depth[:, [0, 1, 2, 5, 6, 7]])
    slope = np.tile(np.linspace(2, 2.2, 8, dtype=np.float32), (6, 1))
    np.testing.assert_array_equal(mesh.fusible_depth(view_of(slope)), slope)
    assert not mesh.fusible_depth(view_of(slope, alpha=0.5)).any()


@pytest.mark.parametrize("coloring", mesh.COLORINGS)
def test_vertices_take_the_label_of_the_nearest_gaussian(coloring: mesh.Coloring) -> None:
    vertices = np.array([[0, 0, 0.05], [1, 0, 0.05], [2, 0, 0.05], [50, 0, 0]], np.float32)
    rgb = np.arange(12, dtype=np.uint8).reshape(4, 3)
    snapshot = snapshot_of([[0, 0, 0], [1, 0, 0], [2, 0, 0]], [CHAIR, TABLE, FLOOR], [7, 3, 0])
    made = mesh.labeled_mesh(vertices, np.zeros((0, 3), np.int32), rgb, snapshot, coloring)
    assert made.class_ids.tolist() == [10, 30, 40, 0]  # the last is far from everything
    assert made.instance_ids.tolist() == [7, 3, 0, 0]
    if coloring == "rgb":
        np.testing.assert_array_equal(made.colors, rgb)
    elif coloring == "semantic":
        np.testing.assert_array_equal(made.colors, SPACE.colors[[CHAIR, TABLE, FLOOR, 0]])
    else:
        assert [tuple(c) for c in made.colors[:2].tolist()] == [distinct_color(7), distinct_color(3)]
        assert (made.colors[2].astype(int) >= SPACE.colors[FLOOR]).all()  # paled


def test_an_unlabelled_map_gives_an_unlabelled_mesh() -> None:
    vertices = np.zeros((2, 3), np.float32)
    made = mesh.labeled_mesh(vertices, np.zeros((0, 3), np.int32), vertices, snapshot_of([], [], []), "semantic")
    assert made.class_ids.tolist() == made.instance_ids.tolist() == [0, 0]


@pytest.fixture(scope="module")
def mapper() -> PanopticMapper:
    return mapped(room_frames(4), "keyframes.translation_m=0.0")


def test_the_mesh_of_a_map_lies_on_what_the_cameras_measured(mapper: PanopticMapper) -> None:
    calls: list[tuple[int, int]] = []
    made = mesh.fuse_mesh(mapper, 0.06, progress=lambda *call: calls.append(call))
    assert calls == [(k, 4) for k in (1, 2, 3, 4)]
    assert len(made.triangles) > 1000
    assert made.triangles.max() < len(made.vertices)
    frame = room_frames(4)[1]
    camera_points = (made.vertices - frame.T_map_camera[:3, 3]) @ frame.T_map_camera[:3, :3]
    u, v = ((camera_points @ frame.camera.matrix.T)[:, :2] / camera_points[:, 2:]).round().astype(int).T
    seen = (u > 0) & (u < frame.camera.width - 1) & (v > 0) & (v < frame.camera.height - 1)
    error = np.abs(frame.depth[v[seen], u[seen]] - camera_points[seen, 2])
    assert seen.sum() > 1000
    assert np.median(error) < 0.05  # m; a voxel has 0.06
    assert set(np.unique(made.instance_ids)) - {0} <= {o.id for o in mapper.objects()} | set(
        mapper.map.queries.ids.tolist()
    )
    assert (made.class_ids > 0).mean() > 0.8


def test_one_keyframe_is_enough() -> None:
    assert len(mesh.fuse_mesh(mapped(room_frames(1)), 0.1).vertices)


def test_refusals(mapper: PanopticMapper, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"voxel_m: expected 0.002..1 m, got 0"):
        mesh.fuse_mesh(mapper, 0)
    with pytest.raises(ValueError, match="coloring: expected one of instance, semantic, rgb, got 'pink'"):
        mesh.fuse_mesh(mapper, coloring="pink")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the map is empty"):
        mesh.fuse_mesh(mapped([]))
    monkeypatch.setitem(sys.modules, "open3d", None)
    with pytest.raises(ValueError, match=r"needs Open3D.*panoptic-mapper doctor"):
        mesh.fuse_mesh(mapper)


def test_the_file_is_read_by_open3d(tmp_path: Path) -> None:
    import open3d

    vertices = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    triangles = np.array([[0, 1, 2], [2, 3, 4]], np.int32)
    colors = np.arange(15, dtype=np.uint8).reshape(5, 3) * 10
    ply.save_mesh_ply(tmp_path / "a.ply", vertices, triangles, colors, np.arange(5), np.arange(5) + 10)
    read = open3d.io.read_triangle_mesh(str(tmp_path / "a.ply"))
    np.testing.assert_allclose(np.asarray(read.vertices), vertices, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(read.triangles), triangles)
    np.testing.assert_allclose(np.asarray(read.vertex_colors) * 255, colors, atol=1e-3)
    head = (tmp_path / "a.ply").read_bytes().split(b"end_header")[0].decode()
    assert "element vertex 5" in head
    assert "property int class\nproperty int instance" in head
    assert "element face 2" in head
    with pytest.raises(ValueError, match=r"nowhere/a\.ply: the PLY file cannot be written"):
        ply.save_mesh_ply(tmp_path / "nowhere/a.ply", vertices, triangles, colors, np.arange(5), np.arange(5))
