"""The ScanNet v2 reader against files that the tests write byte for byte."""

import json
import logging
import re
import struct
import zipfile

import numpy as np
import pytest
from scannet_files import (
    K_DEPTH,
    LABEL_MAP,
    depth_bytes,
    jpeg,
    png,
    sens_frame,
    sens_header,
    write_mesh,
    write_zip,
)

from panoptic_mapper.datasets import open_dataset
from panoptic_mapper.datasets.scannet_labels import ScanNetClasses, read_label_map
from panoptic_mapper.datasets.scannet_mesh import (
    read_labeled_vertices,
    read_mesh_vertices,
    read_vertex_instances,
    read_vertex_labels,
)
from panoptic_mapper.datasets.scannet_scene import ScanNetScene
from panoptic_mapper.datasets.scannet_sens import SensFile
from panoptic_mapper.label_space import SemanticClass

NAME = "scene0000_00"
COLOR = np.full((12, 16, 3), (200, 100, 50), np.uint8)
DEPTH_MM = np.arange(12 * 16, dtype=np.uint16).reshape(12, 16) + 1000
DEPTH_MM[0, 0], DEPTH_MM[0, 1] = 0, 65535
LOST = np.full((4, 4), -np.inf)


def pose(x: float) -> np.ndarray:
    T = np.eye(4)
    T[:3, :3] = [[0, -1, 0], [1, 0, 0], [0, 0, 1]]
    T[:3, 3] = (x, 2, 3)
    return T


def frame_bytes(x: float = 0.0, stamp_us: int = 0, T=None) -> bytes:
    return sens_frame(pose(x) if T is None else T, jpeg(COLOR), depth_bytes(DEPTH_MM), stamp_us)


def write_sens(folder, frames=None, **header):
    folder.mkdir(exist_ok=True)
    frames = [frame_bytes(0, 10), frame_bytes(1, 20)] if frames is None else frames
    imu = struct.pack("<Q", 1) + struct.pack("<15d", *range(15)) + struct.pack("<Q", 7)
    (folder / f"{NAME}.sens").write_bytes(sens_header(len(frames), **header) + b"".join(frames) + imu)
    return folder


def write_labels(scene):
    (scene.parent / "scannetv2-labels.combined.tsv").write_text(LABEL_MAP)
    raw = np.full((12, 16), 1, np.uint16)
    raw[:, 8:] = 1191
    raw[0] = 40  # a category that is no class
    instance = np.full((12, 16), 4, np.uint8)
    write_zip(scene / f"{NAME}_2d-label-filt.zip", "label-filt", {0: raw, 1: raw})
    write_zip(scene / f"{NAME}_2d-instance-filt.zip", "instance-filt", {0: instance, 1: instance})
    return scene


def test_header_frames_and_images(tmp_path):
    sens = SensFile(write_sens(tmp_path / "s", depth_shift=2000.0) / f"{NAME}.sens")
    assert sens.sensor_name == "StructureSensor"
    assert len(sens.frames) == 2
    assert [f.stamp_us for f in sens.frames] == [10, 20]
    np.testing.assert_allclose(sens.frames[1].T_world_base, pose(1))
    np.testing.assert_allclose(sens.read_color(1), COLOR, atol=2)
    depth = sens.read_depth(1)
    assert depth[0, 0] == depth[0, 1] == 0
    np.testing.assert_allclose(depth[1:], DEPTH_MM[1:] / 2000)


def test_raw_images(tmp_path):
    frame = sens_frame(pose(0), COLOR.tobytes(), DEPTH_MM.astype("<u2").tobytes())
    sens = SensFile(write_sens(tmp_path / "s", [frame], compressions=(0, 0)) / f"{NAME}.sens")
    np.testing.assert_array_equal(sens.read_color(0), COLOR)
    np.testing.assert_allclose(sens.read_depth(0)[1:], DEPTH_MM[1:] / 1000)


def test_images_are_read_when_asked_for_only(tmp_path):
    broken = sens_frame(pose(1), b"no jpeg", b"no zlib")
    dataset = ScanNetScene(write_sens(tmp_path / "s", [frame_bytes(), broken]))
    assert dataset[0].depth[5, 5] > 0
    with pytest.raises(ValueError, match=r"scene0000_00.sens: colour image of frame 1: cannot be decoded"):
        dataset[1]
    with pytest.raises(ValueError, match=r"depth image of frame 1: 7 bytes cannot be decompressed"):
        SensFile(tmp_path / "s" / f"{NAME}.sens").read_depth(1)


def test_frames_of_one_camera(tmp_path):
    dataset = open_dataset(write_sens(tmp_path / "s"))
    assert isinstance(dataset, ScanNetScene)
    assert (dataset.name, len(dataset), dataset.label_space) == (NAME, 2, None)
    frame = dataset[1]
    assert frame.stamp_ns == 20_000
    np.testing.assert_allclose(frame.color, COLOR, atol=2)
    np.testing.assert_allclose(frame.depth[1:], DEPTH_MM[1:] / 1000)
    np.testing.assert_allclose(frame.T_map_camera, pose(1), atol=1e-7)
    np.testing.assert_allclose(frame.camera.matrix, K_DEPTH[:3, :3])
    assert isinstance(open_dataset(tmp_path / "s" / f"{NAME}.sens"), ScanNetScene)
    with pytest.raises(IndexError):
        dataset[2]


def test_depth_is_registered_to_the_colour_camera(tmp_path):
    """The depth camera sits 0.2 m beside the rig's base, the colour camera in it and twice as sharp."""
    K_color = K_DEPTH.copy()
    K_color[0, 0], K_color[1, 1], K_color[0, 2], K_color[1, 2] = 20, 20, 15.5, 11.5
    T_depth = np.eye(4)
    T_depth[0, 3] = 0.2
    depth_mm = np.full((12, 16), 2000, np.uint16)
    big = np.zeros((24, 32, 3), np.uint8)
    big[:, 16:] = 250
    frame = sens_frame(pose(0), jpeg(big), depth_bytes(depth_mm))
    scene = write_sens(tmp_path / "s", [frame], K_color=K_color, T_depth=T_depth, color_size=(32, 24))
    result = ScanNetScene(scene)[0]
    assert result.color.shape == (12, 16, 3)
    assert result.color[5, 3].max() < 30
    assert result.color[5, 12].min() > 220
    assert result.camera.fx == pytest.approx(10)
    assert result.camera.cx == pytest.approx(7.5)
    np.testing.assert_allclose(result.T_map_camera, pose(0), atol=1e-7)
    # 10 px * 0.2 m / 2 m = 1 px to the right; nothing was seen left of that
    assert not result.depth[:, 0].any()
    np.testing.assert_allclose(result.depth[:, 1:], 2.0, rtol=1e-6)


def test_the_pose_is_that_of_the_colour_camera(tmp_path):
    T_color = np.eye(4)
    T_color[0, 3] = 0.5
    frame = ScanNetScene(write_sens(tmp_path / "s", T_color=T_color, T_depth=T_color))[0]
    np.testing.assert_allclose(frame.T_map_camera[:3, 3], (0, 2.5, 3), atol=1e-6)  # the rig's x is the world's y
    np.testing.assert_allclose(frame.depth[1:], DEPTH_MM[1:] / 1000)


def test_lost_frames_are_left_out_and_counted(tmp_path, caplog):
    frames = [frame_bytes(0), frame_bytes(T=LOST), frame_bytes(2)]
    with caplog.at_level(logging.WARNING):
        dataset = ScanNetScene(write_sens(tmp_path / "s", frames), fps=10)
    assert "1 of 3 frames" in caplog.text
    assert [round(frame.T_map_camera[0, 3]) for frame in dataset] == [0, 2]
    assert [frame.stamp_ns for frame in dataset] == [0, 200_000_000]  # the file's stamps are all 0
    with pytest.raises(ValueError, match=r"none of 1 frames has a finite pose"):
        ScanNetScene(write_sens(tmp_path / "t", [frame_bytes(T=LOST)]))


def test_labels_from_the_zips(tmp_path):
    scene = write_labels(write_sens(tmp_path / "s"))
    dataset = ScanNetScene(scene)
    space = dataset.label_space
    assert len(space) == 21
    assert not space.classes[space.index_of("wall")].is_thing
    labels = dataset[0].labels
    assert (labels.semantic[0] == 0).all()
    assert (labels.semantic[1:, :8] == space.index_of("wall")).all()
    assert (labels.semantic[1:, 8:] == space.index_of("chair")).all()
    np.testing.assert_array_equal(labels.instance, np.where(labels.semantic == space.index_of("chair"), 4, 0))
    assert len(ScanNetScene(scene, labels="nyu40").label_space) == 41
    assert ScanNetScene(scene, labels=None)[0].labels is None


def test_classes_of_ones_own_need_no_label_map(tmp_path):
    scene = write_labels(write_sens(tmp_path / "s"))
    (tmp_path / "scannetv2-labels.combined.tsv").unlink()
    with pytest.raises(ValueError, match=r"no scannetv2-labels.combined.tsv .* --label_map"):
        ScanNetScene(scene)
    seats = ScanNetClasses.from_raw_ids([SemanticClass(7, "seat", True)], {7: (2, 1191)})
    labels = ScanNetScene(scene, labels=seats)[0].labels
    assert (labels.semantic[1:, 8:] == 1).all()
    assert not labels.semantic[:, :8].any()


def test_labels_of_another_size_than_the_depth(tmp_path):
    scene = write_labels(write_sens(tmp_path / "s"))
    raw = np.full((24, 32), 1, np.uint16)
    raw[:, 16:] = 2
    for what in ("label", "instance"):
        write_zip(scene / f"{NAME}_2d-{what}-filt.zip", f"{what}-filt", {0: raw, 1: raw})
    semantic = ScanNetScene(scene)[0].labels.semantic
    assert semantic.shape == (12, 16)
    assert len(np.unique(semantic[:, :8])) == len(np.unique(semantic[:, 8:])) == 1


@pytest.mark.parametrize("cut", [2, 10, 20, 60, 300, 330, 400, -700])
def test_truncated_recordings_say_where(tmp_path, cut):
    file = write_sens(tmp_path / "s") / f"{NAME}.sens"
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(
        ValueError, match=rf"{re.escape(str(file))}: .*expected .* bytes.* at byte \d+, but the file ends"
    ):
        SensFile(file)


def test_other_versions_and_compressions_are_refused(tmp_path):
    cases = {
        "version 4, got version 3": {"version": 3},
        "depth compression: expected raw_ushort, zlib_ushort, got occi_ushort": {"compressions": (2, 2)},
        "colour compression: expected raw, png, jpeg, got unknown": {"compressions": (-1, 1)},
        "depth shift: expected a positive number of units per metre, got 0.0": {"depth_shift": 0.0},
        "colour camera: intrinsics: expected finite": {"K_color": np.zeros((4, 4))},
    }
    for message, header in cases.items():
        with pytest.raises(ValueError, match=message):
            SensFile(write_sens(tmp_path / "s", **header) / f"{NAME}.sens")


def test_images_that_contradict_the_header_are_refused(tmp_path):
    frame = sens_frame(pose(0), jpeg(COLOR[:5]), depth_bytes(DEPTH_MM[:5]))
    sens = SensFile(write_sens(tmp_path / "s", [frame]) / f"{NAME}.sens")
    with pytest.raises(ValueError, match=r"colour image of frame 0: expected \(12, 16, 3\) as the header says"):
        sens.read_color(0)
    with pytest.raises(ValueError, match=r"depth image of frame 0: expected 384 bytes for \(12, 16\), got 160"):
        sens.read_depth(0)


def test_damaged_label_files_are_named(tmp_path):
    scene = write_labels(write_sens(tmp_path / "s"))
    zip_file = scene / f"{NAME}_2d-instance-filt.zip"
    zip_file.write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(ValueError, match=r"instance-filt.zip: cannot be read as a zip"):
        ScanNetScene(scene)
    with zipfile.ZipFile(zip_file, "w") as archive:
        archive.writestr("instance-filt/0.png", b"no image")
    dataset = ScanNetScene(scene)
    with pytest.raises(ValueError, match=r"instance-filt.zip: instance-filt/0.png: cannot be decoded"):
        dataset[0]
    with pytest.raises(ValueError, match=r"instance-filt.zip: no image 1.png"):
        dataset[1]
    write_zip(zip_file, "instance-filt", {0: np.zeros((3, 4), np.uint8)})
    with pytest.raises(ValueError, match=r"image 0: expected \(12, 16\) as the label image, got \(3, 4\)"):
        ScanNetScene(scene)[0]
    content = bytearray(png(np.zeros((12, 16), np.uint8)))
    with zipfile.ZipFile(zip_file, "w") as archive:
        archive.writestr("instance-filt/0.png", bytes(content))
    damaged = bytearray(zip_file.read_bytes())
    damaged[60] ^= 255
    zip_file.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"instance-filt/0.png: damaged \(Bad CRC-32"):
        ScanNetScene(scene)[0]


def test_label_map(tmp_path):
    file = tmp_path / "scannetv2-labels.combined.tsv"
    file.write_text(LABEL_MAP)
    categories = read_label_map(file)
    assert [(c.id, c.nyu40_id) for c in categories] == [(1, 1), (2, 5), (1191, 5), (3, 2), (13, 40), (40, 0)]
    assert categories[2].name == 'armchair "old"'
    scannet20 = ScanNetClasses.of_set("scannet20", categories)
    assert scannet20.label_space.ids[scannet20.index_of_raw[[1, 2, 1191, 13, 40]]].tolist() == [1, 5, 5, 0, 0]
    nyu40 = ScanNetClasses.of_set("nyu40", categories)
    assert nyu40.label_space.ids[nyu40.index_of_raw[[13, 40]]].tolist() == [40, 0]
    with pytest.raises(ValueError, match="expected one of scannet20, nyu40, got 'ade'"):
        ScanNetClasses.of_set("ade", categories)
    file.write_text("id\traw_category\tnyu40id\n1\twall\t1\nx\tdoor\t8\n")
    with pytest.raises(ValueError, match=r"combined.tsv: line 3: expected columns id, raw_category, nyu40id"):
        read_label_map(file)
    file.write_text("id,raw_category,nyu40id\n1,wall,1\n")
    with pytest.raises(ValueError, match=r"line 2: expected columns"):
        read_label_map(file)


POINTS = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [2, 2, 2]], float)
GROUPS = [
    {"id": 0, "objectId": 0, "segments": [9], "label": "wall"},
    {"id": 1, "objectId": 4, "segments": [3, 77], "label": 'armchair "old"'},
    {"id": 2, "objectId": 5, "segments": [12], "label": "no category of the map"},
]


def write_scene_mesh(tmp_path):
    scene = tmp_path / NAME
    scene.mkdir()
    (tmp_path / "scannetv2-labels.combined.tsv").write_text(LABEL_MAP)
    write_mesh(scene, POINTS, np.array([1, 5, 5, 0, 40]), [9, 3, 3, 5, 12], GROUPS)
    return scene


def test_mesh_vertices_labels_and_instances(tmp_path):
    scene = write_scene_mesh(tmp_path)
    np.testing.assert_array_equal(read_mesh_vertices(scene / f"{NAME}_vh_clean_2.ply"), POINTS)
    np.testing.assert_array_equal(read_vertex_labels(scene / f"{NAME}_vh_clean_2.labels.ply"), [1, 5, 5, 0, 40])
    segments = scene / f"{NAME}_vh_clean_2.0.010000.segs.json"
    ids, names = read_vertex_instances(segments, scene / f"{NAME}.aggregation.json")
    np.testing.assert_array_equal(ids, [1, 5, 5, 0, 6])
    assert names == {1: "wall", 5: 'armchair "old"', 6: "no category of the map"}
    labeled = read_labeled_vertices(scene)
    space = ScanNetClasses.of_set("scannet20", []).label_space
    np.testing.assert_array_equal(space.ids[labeled.semantic], [1, 5, 5, 0, 0])
    np.testing.assert_array_equal(labeled.instance, [0, 5, 5, 0, 0])
    np.testing.assert_array_equal(labeled.points, POINTS)


def test_ascii_vertices(tmp_path):
    file = tmp_path / "a.ply"
    head = (
        "ply\nformat ascii 1.0\nelement vertex 2\nproperty float x\nproperty double y\nproperty float z\nend_header\n"
    )
    file.write_text(head + "1 2 3\n4 5 6.5\n")
    np.testing.assert_array_equal(read_mesh_vertices(file), [[1, 2, 3], [4, 5, 6.5]])
    file.write_text(head + "1 2 3\n")
    with pytest.raises(ValueError, match=r"a.ply: expected 2 lines of 3 numbers"):
        read_mesh_vertices(file)


def test_damaged_mesh_files_are_named(tmp_path):
    scene = write_scene_mesh(tmp_path)
    ply = scene / f"{NAME}_vh_clean_2.ply"
    whole = ply.read_bytes()
    ply.write_bytes(whole[: whole.index(b"end_header") + 40])
    with pytest.raises(ValueError, match=r"vh_clean_2.ply: expected 5 vertices of 16 bytes .* has 29 bytes"):
        read_mesh_vertices(ply)
    ply.write_bytes(whole[:60])
    with pytest.raises(ValueError, match=r"the PLY header is incomplete"):
        read_mesh_vertices(ply)
    ply.write_bytes(b"solid stl")
    with pytest.raises(ValueError, match=r"expected a PLY file"):
        read_mesh_vertices(ply)
    ply.write_bytes(whole)
    with pytest.raises(ValueError, match=r"expected the vertex properties label, got x, y, z"):
        read_vertex_labels(ply)
    segments = scene / f"{NAME}_vh_clean_2.0.010000.segs.json"
    segments.write_text(json.dumps({"segIndices": [1, 2]}))
    with pytest.raises(ValueError, match=r"segs.json: expected 5 segIndices as vertices, got 2"):
        read_labeled_vertices(scene)
    (scene / f"{NAME}.aggregation.json").write_text(json.dumps({"segGroups": [{"objectId": 1}]}))
    with pytest.raises(ValueError, match=r"aggregation.json: segGroups\[0\]: expected objectId, label and segments"):
        read_labeled_vertices(scene)
    segments.write_text("{")
    with pytest.raises(ValueError, match=r"segs.json: expected JSON with 'segIndices'"):
        read_labeled_vertices(scene)


def test_a_folder_with_several_recordings_is_refused(tmp_path):
    scene = write_sens(tmp_path / "s")
    (scene / "other.sens").write_bytes(b"")
    with pytest.raises(ValueError, match=r"expected a folder with one .sens file, found other.sens, scene0000_00.sens"):
        ScanNetScene(scene)
