"""PLY files, read back by a plain parser of the format and, where it is installed, by Open3D."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from panoptic_mapper.label_space import LabelSpace, SemanticClass
from panoptic_mapper.ply import save_gaussian_ply, save_labeled_ply
from panoptic_mapper.snapshot import MapSnapshot

FORMATS = {"float": "f", "uchar": "B", "int": "i"}


def read_ply(path: Path) -> tuple[list[tuple[str, str]], list[tuple]]:
    """Properties (type, name) and rows, following the PLY format word by word."""
    header, body = path.read_bytes().split(b"end_header\n", 1)
    lines = header.decode("ascii").splitlines()
    assert lines[:2] == ["ply", "format binary_little_endian 1.0"]
    assert lines[2].startswith("element vertex ")
    properties = [(line.split()[1], line.split()[2]) for line in lines[3:]]
    rows = list(struct.iter_unpack("<" + "".join(FORMATS[kind] for kind, _ in properties), body))
    assert len(rows) == int(lines[2].split()[-1])
    return properties, rows


def snapshot(num_points: int) -> MapSnapshot:
    rng = np.random.default_rng(1)
    space = LabelSpace.from_classes([SemanticClass(3, "cabinet", True), SemanticClass(22, "ceiling", False)])
    return MapSnapshot(
        stamp_ns=0,
        points=rng.normal(size=(num_points, 3)).astype(np.float32),
        colors=rng.integers(0, 256, (num_points, 3)).astype(np.uint8),
        class_indices=rng.integers(0, 3, num_points).astype(np.int32),
        instance_ids=rng.integers(0, 100_000, num_points).astype(np.int32),
        confidences=rng.random(num_points).astype(np.float32),
        objects=(),
        label_space=space,
    )


@pytest.mark.parametrize("num_points", [0, 7])
def test_labeled_cloud(tmp_path: Path, num_points: int) -> None:
    cloud = snapshot(num_points)
    save_labeled_ply(tmp_path / "a.ply", cloud)
    properties, rows = read_ply(tmp_path / "a.ply")
    assert " ".join(name for _, name in properties) == "x y z red green blue class instance confidence"
    assert [kind for kind, _ in properties] == ["float"] * 3 + ["uchar"] * 3 + ["int", "int", "float"]
    for row, i in zip(rows, range(num_points), strict=True):
        assert row[:3] == tuple(cloud.points[i].tolist())
        assert row[3:6] == tuple(cloud.colors[i].tolist())
        assert row[6] == [0, 3, 22][cloud.class_indices[i]]
        assert row[7:] == (cloud.instance_ids[i], cloud.confidences[i])


def test_gaussians(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    means, quats, scales = (rng.normal(size=(5, k)).astype(np.float32) for k in (3, 4, 3))
    opacities, colors = rng.normal(size=5).astype(np.float32), rng.random((5, 3)).astype(np.float32)
    save_gaussian_ply(tmp_path / "g.ply", means, quats, scales, opacities, colors)
    properties, rows = read_ply(tmp_path / "g.ply")
    assert " ".join(name for _, name in properties) == (
        "x y z nx ny nz f_dc_0 f_dc_1 f_dc_2 opacity scale_0 scale_1 scale_2 rot_0 rot_1 rot_2 rot_3"
    )
    values = np.array(rows, np.float32)
    np.testing.assert_array_equal(values[:, 0:3], means)
    np.testing.assert_array_equal(values[:, 3:6], 0)
    np.testing.assert_allclose(0.5 + 0.28209479177387814 * values[:, 6:9], colors, atol=1e-6)
    np.testing.assert_array_equal(values[:, 9], opacities)
    np.testing.assert_array_equal(values[:, 10:13], scales)
    np.testing.assert_array_equal(values[:, 13:17], quats)


def test_higher_bands_come_channel_by_channel(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    columns = [rng.normal(size=(4, k)).astype(np.float32) for k in (3, 4, 3)]
    harmonics = rng.normal(size=(4, 45)).astype(np.float32)
    save_gaussian_ply(tmp_path / "g.ply", *columns, np.zeros(4), rng.random((4, 3)), harmonics)
    properties, rows = read_ply(tmp_path / "g.ply")
    names = [name for _, name in properties]
    assert names[9:54] == [f"f_rest_{k}" for k in range(45)]
    assert names[54:] == ["opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]
    values = np.array(rows, np.float32)[:, 9:54]
    for channel in range(3):
        np.testing.assert_array_equal(values[:, 15 * channel : 15 * channel + 15], harmonics[:, channel::3])
    np.testing.assert_array_equal(np.array(rows, np.float32)[:, 55:58], columns[2])


def test_open3d_reads_both(tmp_path: Path) -> None:
    open3d = pytest.importorskip("open3d", reason="open3d or its system libraries are missing", exc_type=ImportError)
    cloud = snapshot(7)
    save_labeled_ply(tmp_path / "a.ply", cloud)
    read = open3d.t.io.read_point_cloud(str(tmp_path / "a.ply")).point
    np.testing.assert_array_equal(read["positions"].numpy(), cloud.points)
    np.testing.assert_array_equal(read["colors"].numpy(), cloud.colors)
    np.testing.assert_array_equal(read["instance"].numpy()[:, 0], cloud.instance_ids)

    quats, log_scales = np.tile([[0.5, 0.5, 0.5, 0.5]], (7, 1)), np.full((7, 3), -3.0)
    save_gaussian_ply(tmp_path / "g.ply", cloud.points, quats, log_scales, np.full(7, 2.0), cloud.colors / 255)
    splats = open3d.t.io.read_point_cloud(str(tmp_path / "g.ply"))
    np.testing.assert_array_equal(splats.point["opacity"].numpy(), np.full((7, 1), 2, np.float32))
    np.testing.assert_array_equal(splats.point["rot"].numpy(), quats.astype(np.float32))
    np.testing.assert_allclose(np.log(splats.point["scale"].numpy()), log_scales.astype(np.float32))


def test_unwritable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.ply: the PLY file cannot be written"):
        save_labeled_ply(tmp_path / "missing" / "a.ply", snapshot(1))
