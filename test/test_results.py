"""The folder of results: every file is there, readable by others, and agrees with the map."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from safetensors.numpy import load_file
from small_room import CAMERA, ROOM_SPACE, SPACE, PassOn, mapped, room_frames, wall_frame

from panoptic_mapper import map_io
from panoptic_mapper.frame import Frame
from panoptic_mapper.label_space import LabelSpace
from panoptic_mapper.mapper import PanopticMapper
from panoptic_mapper.results import (
    GAUSSIANS_FILE,
    MAP_FILE,
    OBJECTS_FILE,
    OVERVIEW_FILE,
    POINTS_FILE,
    REPORT_FILE,
    load_mapper,
    make_report,
    object_as_dict,
    save_mapper,
    writable_folder,
    write_json,
    write_results,
    write_view,
)


class Sequence:
    """Frames as a dataset."""

    def __init__(self, frames: tuple[Frame, ...], label_space: LabelSpace) -> None:
        self.name, self.frames = "some frames", frames
        self.label_space: LabelSpace | None = label_space

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> Frame:
        return self.frames[index]


ROOM = Sequence(room_frames()[:4], ROOM_SPACE)


@pytest.fixture(scope="module")
def mapper() -> PanopticMapper:
    return mapped(ROOM.frames)


@pytest.fixture(scope="module")
def wall_mapper() -> PanopticMapper:
    return mapped([wall_frame()], segmenter=PassOn(SPACE))


def vertices(ply: Path) -> int:
    header = ply.read_bytes().split(b"end_header")[0].decode()
    return int(header.split("element vertex ")[1].split()[0])


def test_every_file_is_there_and_agrees_with_the_map(mapper: PanopticMapper, tmp_path: Path) -> None:
    report = make_report(mapper, ROOM, {"train": [0, 1, 2], "test": [3]}, wall_s=2.0, noise="clean")
    write_results(tmp_path / "out", mapper, ROOM, [0, 1, 2], report)
    out = tmp_path / "out"
    names = {MAP_FILE, OBJECTS_FILE, REPORT_FILE, OVERVIEW_FILE, POINTS_FILE, GAUSSIANS_FILE}
    assert set(os.listdir(out)) == names
    assert json.loads((out / REPORT_FILE).read_text()) == json.loads(json.dumps(report))
    objects = json.loads((out / OBJECTS_FILE).read_text())
    assert [o["id"] for o in objects] == [o.id for o in mapper.objects()]
    assert vertices(out / POINTS_FILE) == len(mapper.snapshot().points)
    assert vertices(out / GAUSSIANS_FILE) == len(mapper.map.gaussians)
    picture = cv2.imread(str(out / OVERVIEW_FILE))
    assert picture.shape[1] > 1000
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 1000
    assert load_file(out / MAP_FILE)["gaussians/means"].shape == (len(mapper.map.gaussians), 3)


def test_the_report_holds_what_is_promised(mapper: PanopticMapper) -> None:
    report = make_report(mapper, ROOM, {"train": [0, 1, 2], "test": [3]}, wall_s=2.0, noise="clean")
    assert report["frames"] == 4
    assert report["fps"] == 2.0
    assert report["keyframes"] == len(mapper.keyframes)
    assert report["gaussians"] == len(mapper.map.gaussians)
    assert report["objects"] == len(mapper.objects())
    assert report["noise"] == "clean"
    assert report["device"] == "cpu"
    assert report["sequence"] == "some frames"
    assert 50 < report["peak_rss_mb"] < 1e5
    metrics = {"pq", "sq", "rq", "miou", "mcov", "pq_frame", "id_switches", "psnr", "depth_l1_m"}
    for split, num_frames in (("train", 3), ("test", 1)):
        assert metrics <= set(report[split])
        assert report[split]["frames"] == num_frames
        assert report[split]["psnr"] > 15
    assert {"pq", "matching", "void", "psnr"} <= set(report["protocol"])
    assert "test" not in make_report(mapper, ROOM, {"train": [0], "test": []}, wall_s=1.0)


def test_objects_carry_public_class_ids(wall_mapper: PanopticMapper) -> None:
    table, chair = (object_as_dict(o, SPACE) for o in wall_mapper.objects())
    assert (table["class_id"], table["class_name"]) == (30, "table")
    assert (chair["class_id"], chair["class_name"]) == (10, "chair")
    assert "class_index" not in table
    assert len(table["box"]["quaternion"]) == 4
    assert len(table["centroid"]) == len(table["aabb_min"]) == len(table["box"]["size"]) == 3
    assert json.loads(json.dumps(table)) == table


def test_a_saved_mapper_comes_back(wall_mapper: PanopticMapper, tmp_path: Path) -> None:
    save_mapper(tmp_path / "a.pmap", wall_mapper)
    loaded = load_mapper(tmp_path / "a.pmap")
    assert loaded.config == wall_mapper.config
    assert loaded.label_space == SPACE
    actual, expected = (m.render(CAMERA, np.eye(4)) for m in (loaded, wall_mapper))
    np.testing.assert_array_equal(actual.color, expected.color)
    np.testing.assert_array_equal(actual.instance, expected.instance)
    assert [o.id for o in loaded.objects()] == [o.id for o in wall_mapper.objects()]


def test_a_map_file_without_its_description_is_named(wall_mapper: PanopticMapper, tmp_path: Path) -> None:
    tensors, meta = wall_mapper.export_state()
    map_io.save_map(tmp_path / "a.pmap", tensors, meta)
    with pytest.raises(ValueError, match=r"a\.pmap.*'config' is missing"):
        load_mapper(tmp_path / "a.pmap")
    map_io.save_map(tmp_path / "b.pmap", tensors, meta | {"config": {"speed": 3}})
    with pytest.raises(ValueError, match=r"b\.pmap: configuration: unknown key 'speed'"):
        load_mapper(tmp_path / "b.pmap")


@pytest.mark.parametrize("depth_m", [0.0, 2.0])
def test_a_map_of_one_gaussian_or_none_can_be_written(tmp_path: Path, depth_m: float) -> None:
    depth = np.full((CAMERA.height, CAMERA.width), 100, np.float32)  # too far to be mapped, and no hole to be filled
    depth[15, 15] = depth_m or 100
    frame = replace(wall_frame(), depth=depth)
    settings = ("density.stride_px=1", "density.min_usable_share=0", "optimizer.steps_per_keyframe=0")
    mapper = mapped([frame], *settings, segmenter=PassOn(SPACE))
    num_gaussians = int(depth_m > 0)
    assert len(mapper.map.gaussians) == num_gaussians
    sequence = Sequence((frame,), SPACE)
    report = make_report(mapper, sequence, {"train": [0]}, wall_s=1.0)
    write_results(tmp_path, mapper, sequence, [0], report)
    assert vertices(tmp_path / GAUSSIANS_FILE) == num_gaussians
    assert json.loads((tmp_path / OBJECTS_FILE).read_text()) == []


def test_views_are_images_that_others_read(wall_mapper: PanopticMapper, tmp_path: Path) -> None:
    write_view(tmp_path, wall_mapper, None, None)
    images = {name: cv2.imread(str(tmp_path / f"{name}.png"), cv2.IMREAD_UNCHANGED) for name in
              ("color", "depth", "semantic", "instance")}  # fmt: skip
    view = wall_mapper.render(CAMERA, np.eye(4))
    np.testing.assert_array_equal(images["color"][..., ::-1], view.color)
    np.testing.assert_allclose(images["depth"] / 1000, view.depth, atol=1.01e-3)
    np.testing.assert_array_equal(images["semantic"], SPACE.ids[view.semantic])
    np.testing.assert_array_equal(images["instance"], view.instance)
    assert {image.dtype for name, image in images.items() if name != "color"} == {np.dtype(np.uint16)}
    assert {10, 30, 40} <= set(np.unique(images["semantic"]).tolist())


def test_views_from_a_pose_file_and_of_another_size(wall_mapper: PanopticMapper, tmp_path: Path) -> None:
    pose = np.eye(4)
    pose[2, 3] = 0.5
    np.savetxt(tmp_path / "pose.txt", pose)
    write_view(tmp_path, wall_mapper, tmp_path / "pose.txt", (20, 15))
    depth = cv2.imread(str(tmp_path / "depth.png"), cv2.IMREAD_UNCHANGED)
    assert depth.shape == (15, 20)
    np.testing.assert_allclose(np.median(depth), 1500, atol=20)


@pytest.mark.parametrize("text", ["1 2 3", "a b", "2 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1", None])
def test_unreadable_poses_are_named(wall_mapper: PanopticMapper, tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "pose.txt"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ValueError, match=r"pose\.txt: not a readable pose"):
        write_view(tmp_path, wall_mapper, file, None)


def test_an_empty_map_shows_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the map is empty"):
        write_view(tmp_path, mapped([]), None, None)


def test_unwritable_places_are_named(mapper: PanopticMapper, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    for call in (
        lambda: writable_folder(tmp_path / "file"),
        lambda: writable_folder(tmp_path / "file" / "sub"),
        lambda: write_view(tmp_path / "file", mapper, None, None),
        lambda: write_json(tmp_path / "file" / "x.json", {}),
        lambda: save_mapper(tmp_path / "file" / "a.pmap", mapper),
    ):
        with pytest.raises(ValueError, match="file"):
            call()
    assert writable_folder(tmp_path / "a" / "b").is_dir()
    assert list((tmp_path / "a" / "b").iterdir()) == []
