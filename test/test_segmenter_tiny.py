"""The `tiny` segmenter: input and output of the networks, the merging rules, and (with the weights) whole images."""

import os
import sys

import numpy as np
import pytest

from panoptic_mapper.datasets.scannet_folder import ScanNetFolder
from panoptic_mapper.frame import Frame, PinholeCamera
from panoptic_mapper.segmenters import SegmenterConfig, check_segmentation, create_segmenter, tiny_models
from panoptic_mapper.segmenters.tiny_classes import CLASSES, FROM_COCO, FROM_MOSAIC, TINY_LABEL_SPACE
from panoptic_mapper.segmenters.tiny_merge import (
    merge_fragments,
    merge_panoptic,
    near_median_depth,
    thing_components,
)
from panoptic_mapper.segmenters.tiny_models import COCO_CLASSES, MOSAIC_CLASSES, Detection, decode_boxes, letterbox
from panoptic_mapper.segmenters.tiny_patches import DepthPatches
from panoptic_mapper.segmenters.tiny_segment import Segment, snap_to_patches

CAMERA = PinholeCamera(250.0, 250.0, 159.5, 119.5, 320, 240)
# Looks along +y of a z-up map, level, 1.2 m high.
T_MAP_CAMERA = np.array([[1, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 1.2], [0, 0, 0, 1.0]])
UP = np.array([0.0, 0.0, 1.0])
WEIGHTS = os.environ.get("PANOPTIC_MAPPER_MODELS")
DATA = os.environ.get("PANOPTIC_MAPPER_DATA")
needs_weights = pytest.mark.skipif(not WEIGHTS, reason="PANOPTIC_MAPPER_MODELS names no folder with the weights")


def index(name):
    return TINY_LABEL_SPACE.index_of(name)


def mosaic(name):
    return MOSAIC_CLASSES.index(name)


def coco(name):
    return COCO_CLASSES.index(name)


def frame_of(depth):
    return Frame(0, np.zeros((240, 320, 3), np.uint8), depth.astype(np.float32), T_MAP_CAMERA, CAMERA)


def room():
    """Depth and MOSAIC image of a wall 3 m ahead and the floor 1.2 m below."""
    v = np.arange(240)[:, None] - CAMERA.cy
    floor = np.where(v > 0, 1.2 * CAMERA.fy / np.maximum(v, 1e-6), np.inf)
    depth = np.minimum(3.0, floor) * np.ones((240, 320))
    return depth, np.where(depth < 3.0, mosaic("floor"), mosaic("wall")).astype(np.uint8)


def merge(depth, mosaic_image, detections=(), min_area_px=400):
    return merge_panoptic(mosaic_image, list(detections), frame_of(depth), UP, min_area_px)


# --- networks' input and output


def test_without_focus_feeds_the_focus_output():
    upstream = "\n".join(
        [
            "7767517",
            "4 5",
            "Input            images   0 1 images",
            "YoloV5Focus      focus    1 1 images 683",
            "Convolution      conv     1 1 683 700 0=16",
            "Split            split    1 2 700 a b",
            "",
        ]
    )
    graph, blob = tiny_models.without_focus(upstream)
    assert blob == "683"
    lines = graph.splitlines()
    assert lines[:3] == ["7767517", "3 4", "Input images 0 1 683"]
    assert [line.split()[0] for line in lines[2:]] == ["Input", "Convolution", "Split"]
    again, blob = tiny_models.without_focus(graph)
    assert (again, blob) == (graph, "683")


def test_letterbox_scales_into_the_top_left():
    image = np.full((100, 200, 3), 7, np.uint8)
    square, scale = letterbox(image, 416)
    assert scale == pytest.approx(2.08)
    assert square.shape == (416, 416, 3)
    assert (square[:208] == 7).all()
    assert (square[208:] == tiny_models.PADDING_GRAY).all()


def test_space_to_depth_puts_each_cell_into_the_channels():
    image = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3)
    blob = tiny_models.space_to_depth(image)
    assert blob.shape == (12, 2, 2)
    assert blob.flags["C_CONTIGUOUS"]
    # Order of the four pixels of a cell: top left, bottom left, top right, bottom right.
    for group, (dy, dx) in enumerate([(0, 0), (1, 0), (0, 1), (1, 1)]):
        np.testing.assert_array_equal(blob[3 * group : 3 * group + 3, 1, 0], image[2 + dy, dx])


def predictions(*boxes):
    """Raw output of the detector for boxes (row, objectness, class, class score, x offset, y offset, log size)."""
    raw = np.zeros((52**2 + 26**2 + 13**2, 85), np.float32)
    for row, objectness, class_index, class_score, dx, dy, log_size in boxes:
        raw[row, :5] = dx, dy, log_size, log_size, objectness
        raw[row, 5 + class_index] = class_score
    return raw


def test_decode_boxes_undoes_grid_stride_and_scale():
    row = 52**2 + 3 * 26 + 5  # stride 16, cell (x=5, y=3)
    (found,) = decode_boxes(predictions((row, 0.9, 56, 0.8, 0.5, 0.25, np.log(4))), scale=2.0, score_threshold=0.3)
    assert found.class_index == 56
    assert found.score == pytest.approx(0.72)
    center, size = np.array([5.5, 3.25]) * 16 / 2, 4 * 16 / 2
    np.testing.assert_allclose(found.box, [*(center - size / 2), *(center + size / 2)], rtol=1e-5)


def test_decode_boxes_suppresses_within_a_class_only():
    row = 52**2
    raw = predictions(
        (row, 0.9, 56, 0.9, 0, 0, 1.5), (row + 1, 0.9, 56, 0.8, -0.9, 0, 1.5), (row + 2, 0.9, 60, 0.7, -1.9, 0, 1.5)
    )
    assert sorted((d.class_index, round(d.score, 2)) for d in decode_boxes(raw, 1.0, 0.3)) == [(56, 0.81), (60, 0.63)]
    assert decode_boxes(raw, 1.0, 0.95) == []


# --- classes


def test_classes_translate():
    assert FROM_MOSAIC[mosaic("armchair")] == index("chair")
    assert FROM_MOSAIC[mosaic("other")] == 0
    assert FROM_COCO[coco("couch")] == index("sofa")
    assert FROM_COCO[coco("airplane")] == 0
    for c in CLASSES:  # a misspelt name would silently never match
        assert set(c.mosaic + c.claims) <= set(MOSAIC_CLASSES)
        assert set(c.coco) <= set(COCO_CLASSES)


# --- merging


def test_depth_trims_a_box_to_the_thing_before_the_wall():
    depth, image = room()
    truth = np.zeros((240, 320), bool)
    truth[70:100, 140:160] = True
    depth[truth] = 1.5  # a bottle 1.5 m before the wall, in a loose box
    result = merge(depth, image, [Detection(coco("bottle"), 0.8, (130, 60, 170, 110))])
    mask = result.semantic == index("bottle")
    assert (mask & truth).sum() / (mask | truth).sum() > 0.9
    assert result.confidence[85, 150] == pytest.approx(0.8)
    assert result.semantic[65, 133] == index("wall")


def test_box_that_nothing_can_shape_keeps_half_its_score():
    depth, image = room()
    result = merge(depth, image, [Detection(coco("clock"), 0.8, (100, 40, 130, 70))])
    assert (result.semantic == index("clock")).sum() == 30 * 30
    assert result.confidence[50, 110] == pytest.approx(0.4)


def test_pale_chair_called_wall_is_found_by_its_patch():
    depth, image = room()
    depth[60:160, 100:180] = 1.5
    image[60:160, 100:180] = mosaic("wall")
    image[130:160, 100:180] = mosaic("chair")  # the network saw the seat only
    result = merge(depth, image)
    chair = result.semantic == index("chair")
    assert chair[62:158, 102:178].all()
    assert len(np.unique(result.instance[chair])) == 1


def test_unknown_thing_before_the_wall_is_not_wall():
    depth, image = room()
    depth[60:160, 100:180] = 1.5
    image[60:160, 100:180] = mosaic("wall")
    result = merge(depth, image)
    assert (result.semantic[65:155, 105:175] == 0).all()
    assert result.semantic[30, 30] == index("wall")


def test_level_wall_is_floor_and_upright_floor_is_wall():
    depth, image = room()
    swapped = np.where(image == mosaic("wall"), mosaic("floor"), mosaic("wall")).astype(np.uint8)
    result = merge(depth, swapped)
    assert result.semantic[230, 160] == index("floor")
    assert result.semantic[40, 160] != index("floor")


def counter(gap_rows: int):
    """A counter along the whole wall, its front 2.2 m ahead and 0.9 m high, called wall; its top gives no depth."""
    depth, image = room()
    depth[154:] = 2.2  # 0.3 m below the camera and 2.2 m ahead is row 119.5 + 250 * 0.3 / 2.2
    depth[154 - gap_rows : 154] = 0
    image[:] = mosaic("wall")
    return depth, image


@pytest.mark.parametrize("gap_rows", [8, 30])
def test_what_ends_below_the_wall_behind_it_is_no_wall(gap_rows):
    depth, image = counter(gap_rows)
    result = merge(depth, image)
    assert (result.semantic[160:230, 20:300] == 0).all()
    assert (result.semantic[10:110, 20:300] == index("wall")).all()
    image[154:200, 80:] = mosaic("cabinet")  # the network saw some of it
    result = merge(depth, image)
    assert (result.semantic[160:230, 20:300] == index("cabinet")).all()


def test_a_wall_below_a_window_or_a_shelf_stays_wall():
    for upper_m, lower_m in ((3.1, 3.1), (3.0, 2.7), (3.4, 2.7)):  # a pane in its recess; a board; one below a niche
        depth, image = room()
        image[:] = mosaic("wall")
        depth[40:60], depth[60:80] = upper_m, lower_m
        assert (merge(depth, image).semantic[95:150, 20:300] == index("wall")).all()


def test_flat_picture_on_the_wall_stays():
    depth, image = room()
    image[40:90, 200:260] = mosaic("painting")
    result = merge(depth, image)
    assert (result.semantic[45:85, 205:255] == index("picture")).all()
    assert result.confidence[60, 230] == pytest.approx(0.55)
    assert result.confidence[60, 100] == pytest.approx(0.6)


def test_detector_separates_what_the_semantic_image_joins():
    depth, image = room()
    image[60:160, 60:240] = mosaic("chair")
    depth[60:160, 60:240] = 2.0
    boxes = [Detection(coco("chair"), 0.9, (60, 60, 150, 160)), Detection(coco("chair"), 0.7, (150, 60, 240, 160))]
    result = merge(depth, image, boxes)
    left, right = result.instance[110, 100], result.instance[110, 200]
    assert left != right
    assert min(left, right) > 0
    assert set(np.unique(result.semantic[result.instance > 0])) == {index("chair")}


def test_networks_vote_on_the_kind_of_seat():
    depth, image = room()
    image[60:160, 100:180] = mosaic("chair")
    depth[60:160, 100:180] = 2.0
    assert merge(depth, image, [Detection(coco("bed"), 0.77, (98, 58, 182, 162))]).semantic[110, 140] == index("chair")


def test_specks_are_dropped():
    depth, image = room()
    image[40:46, 200:206] = mosaic("painting")
    assert not (merge(depth, image).semantic == index("picture")).any()


def test_depth_step_splits_components():
    semantic = np.zeros((40, 60), np.int32)
    semantic[5:35, 5:55] = index("cabinet")
    split = np.zeros((40, 60), bool)
    split[:, 30:32] = True
    parts = thing_components(semantic, split, 10)
    assert [p.class_index for p in parts] == [index("cabinet")] * 2
    assert sum(p.mask.sum() for p in parts) == 30 * 50  # the pixels of the cut belong to one of them
    assert not (parts[0].mask & parts[1].mask).any()


def part(rows, columns, name="chair", is_detected=False):
    mask = np.zeros((240, 320), bool)
    mask[rows, columns] = True
    return Segment(index(name), mask, 0.55, is_detected)


def patches_of(labels):
    count = labels.max() + 1
    no = np.zeros(count, bool)
    return DepthPatches(labels, np.zeros(labels.shape, bool), no, np.zeros(count), np.zeros(count), no)


def test_segments_take_the_outlines_of_the_patches_that_they_mostly_cover():
    labels = np.zeros((240, 320), np.int32)
    labels[50:110, 100:160], labels[50:110, 160:220] = 1, 2
    chair, spill = part(slice(60, 110), slice(100, 170)), part(slice(50, 60), slice(100, 160), "table")
    (snapped,) = snap_to_patches([chair, spill], patches_of(labels))  # nothing is left of the other
    expected = labels == 1
    expected[60:110, 160:170] = True  # most of patch 2 is in no segment: it stays as it is
    np.testing.assert_array_equal(snapped.mask, expected)


def test_a_detected_book_keeps_its_pixels_in_the_table_patch():
    labels = np.zeros((240, 320), np.int32)
    labels[50:110, 100:160] = 1
    book = part(slice(60, 70), slice(110, 120), "book", is_detected=True)
    table = part(slice(75, 110), slice(100, 160), "table")
    snapped = {s.class_index: s.mask for s in snap_to_patches([book, table], patches_of(labels))}
    np.testing.assert_array_equal(snapped[index("book")], book.mask)
    np.testing.assert_array_equal(snapped[index("table")], (labels == 1) & ~book.mask)


def test_a_detected_chair_in_the_patch_of_a_table_is_none():
    labels = np.zeros((240, 320), np.int32)
    labels[50:110, 100:160] = 1
    table = part(slice(70, 110), slice(100, 160), "table")
    magazine = part(slice(60, 70), slice(110, 120), "chair", is_detected=True)
    (snapped,) = snap_to_patches([magazine, table], patches_of(labels))
    np.testing.assert_array_equal(snapped.mask, labels == 1)
    # Where it is seen beside the table as well, it keeps what is there.
    beside = part(slice(40, 60), slice(110, 120), "chair", is_detected=True)
    chair, _ = snap_to_patches([beside, table], patches_of(labels))
    np.testing.assert_array_equal(chair.mask, beside.mask & (labels == 0))


def test_a_segment_that_keeps_little_of_itself_is_dropped():
    labels = np.zeros((240, 320), np.int32)
    labels[50:110, 100:160] = 1
    table = part(slice(70, 110), slice(100, 160), "table")
    for rows_beside, is_kept in ((4, False), (5, True)):  # of 10 + these; three of ten must be left
        spill = part(slice(50 - rows_beside, 60), slice(110, 120), "cabinet")
        assert len(snap_to_patches([spill, table], patches_of(labels))) == 1 + is_kept


def test_half_a_patch_outside_every_patch_or_without_segments_changes_nothing():
    labels = np.zeros((240, 320), np.int32)
    labels[50:110, 100:160] = 1
    half, outside = part(slice(50, 80), slice(100, 160)), part(slice(120, 140), slice(100, 160), "table")
    masks = [s.mask for s in snap_to_patches([half, outside], patches_of(labels))]
    np.testing.assert_array_equal(masks, [half.mask, outside.mask])
    assert snap_to_patches([], patches_of(labels)) == []


def test_fragments_of_one_chair_join_and_two_chairs_do_not():
    depth = np.full((240, 320), 2.0)
    back, leg = part(slice(50, 110), slice(100, 160)), part(slice(114, 140), slice(105, 110))
    joined = merge_fragments([back, leg], frame_of(depth))
    assert [s.mask.sum() for s in joined] == [back.mask.sum() + leg.mask.sum()]
    beside = part(slice(50, 110), slice(170, 230))
    assert len(merge_fragments([back, beside], frame_of(depth))) == 2
    detected = [
        part(slice(50, 110), slice(100, 160), is_detected=True),
        part(slice(90, 140), slice(105, 110), is_detected=True),
    ]
    assert len(merge_fragments(detected, frame_of(depth))) == 2
    other_class = part(slice(114, 140), slice(105, 110), "table")
    assert len(merge_fragments([back, other_class], frame_of(depth))) == 2


def test_background_seen_through_a_chair_is_dropped():
    depth = np.full((240, 320), 1.3)
    gap = part(slice(70, 75), slice(110, 150))
    depth[gap.mask] = 2.1
    back = part(slice(50, 110), slice(100, 160))
    back.mask[gap.mask] = False
    (kept,) = merge_fragments([back, gap], frame_of(depth))
    assert not (kept.mask & gap.mask).any()


def test_near_median_depth_keeps_slanted_things_whole():
    depth = np.tile(np.linspace(1.0, 1.6, 100, dtype=np.float32), (50, 1))
    everything = np.ones_like(depth, bool)
    assert near_median_depth(everything, everything, depth).all()
    depth[:, 90:] = 4.0
    depth[0] = 0.0
    kept = near_median_depth(everything, everything, depth)
    assert kept[0].all()  # unknown depth is no reason to cut
    assert not kept[1:, 90:].any()
    assert kept[1:, :90].all()


def test_without_depth_and_up_the_networks_are_believed_with_less_confidence():
    _, image = room()
    image[60:160, 100:180] = mosaic("table")
    box = [Detection(coco("dining table"), 0.8, (95, 55, 185, 165))]
    result = merge_panoptic(image, box, frame_of(np.zeros((240, 320))), None, 400)
    assert (result.semantic[65:155, 105:175] == index("table")).all()
    assert result.semantic[230, 10] == index("floor")
    assert result.confidence[110, 140] == pytest.approx(0.4)


@pytest.mark.parametrize(("width", "height"), [(97, 61), (320, 240), (641, 363), (1280, 720)])
def test_any_content_at_any_size_gives_usable_labels(width, height):
    rng = np.random.default_rng(width)
    camera = CAMERA.resized(width, height)
    blocks = (height // 20 + 1, width // 20 + 1)
    image = np.kron(rng.integers(0, 32, blocks), np.ones((20, 20)))[:height, :width].astype(np.uint8)
    depth = np.kron(rng.uniform(-1, 5, blocks), np.ones((20, 20)))[:height, :width].astype(np.float32)
    frame = Frame(0, np.zeros((height, width, 3), np.uint8), depth, T_MAP_CAMERA, camera)
    corners = rng.uniform(-50, max(width, height), (30, 2))
    boxes = [
        Detection(int(rng.integers(80)), float(rng.uniform(0.3, 1)), (*corner, *(corner + rng.uniform(1, 200, 2))))
        for corner in corners
    ]
    result = merge_panoptic(image, boxes, frame, UP, 400)
    check_segmentation(result, frame, TINY_LABEL_SPACE)
    for number in np.unique(result.instance)[1:]:
        (class_index,) = np.unique(result.semantic[result.instance == number])
        assert TINY_LABEL_SPACE.is_thing[class_index]
    assert (result.confidence[result.semantic == 0] == 0).all()
    assert not TINY_LABEL_SPACE.is_thing[result.semantic[result.instance == 0]].any()


# --- run times and weights


@pytest.mark.parametrize(
    ("module", "package", "make"),
    [
        ("ai_edge_litert.interpreter", "ai-edge-litert", lambda file: tiny_models.MosaicSemantic(file, 1)),
        ("ncnn", "ncnn", lambda file: tiny_models.YoloxDetector(file, file)),
    ],
)
def test_missing_run_time_names_the_command(monkeypatch, tmp_path, module, package, make):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=rf"{package}.*pip install ai-edge-litert ncnn"):
        make(tmp_path / "weights")


def test_folder_without_weights_is_named(tmp_path):
    with pytest.raises(ValueError, match=rf"{tmp_path}.*tflite.*SHA-256"):
        create_segmenter(SegmenterConfig(name="tiny", model_dir=str(tmp_path)))


@needs_weights
def test_real_kitchen():
    pytest.importorskip("ai_edge_litert")
    pytest.importorskip("ncnn")
    if not DATA:
        pytest.skip("PANOPTIC_MAPPER_DATA names no folder with the sequences")
    frame = ScanNetFolder(f"{DATA}/real_redkitchen")[60]
    segmenter = create_segmenter(SegmenterConfig(name="tiny"))
    result = segmenter.segment(frame)
    check_segmentation(result, frame, segmenter.label_space)
    # Read off the photograph (x, y): tabletop, chair at the left, mug, cupboard doors, wall.
    seen = {(500, 320): "table", (30, 360): "chair", (240, 325): "cup", (180, 240): "cabinet", (560, 200): "wall"}
    for (x, y), name in seen.items():
        assert TINY_LABEL_SPACE.names[result.semantic[y, x]] == name
    chairs = np.unique(result.instance[result.semantic == index("chair")])
    assert len(chairs) == 2  # not in fragments
    np.testing.assert_array_equal(segmenter.segment(frame).instance, result.instance)


# Segments of frame 60 of the kitchen at every 20th column and 24th row: capitals are stuff, dots unlabeled.
GOLDEN_NAMES = {
    **{".": "unlabeled", "W": "wall", "F": "floor", "a": "window", "b": "picture", "c": "cabinet", "d": "chair"},
    **{"e": "chair", "f": "table", "g": "cup", "h": "laptop", "i": "book"},
}
GOLDEN = """
WWWWWWWWWWWWWWWWWWWWWWWWWW.....W
WWWWWWWWWWWWWWWW.WWWWWWWW...WWWW
WWWWWWaWWWWWWWWWWWWWWWWWWWWWWWWW
WWWWWaaWWWWWWWWWWWWWWWWWWWWWWWWW
WWWWWaaWWWWWW..WWWWWWWWWWbbWWWWW
WWWWWWaWWWWWW..WWWWWWWWWWbbWbbWW
WWWWWWWccc.WW...WWWWWWWW....bbWW
cccccccccccccccccccccWWWWWWWWWWW
cccccccccccccccccccccWWWWWWWWWWW
cccccccccccccccccccccWWWWWWWWWWW
cccccccccccccccccddddW.WWWWWWWWW
ccccccccccccccdddd..d..WWWWWWWW.
ccceeecccfff..ffd...dW.WWWWWWW..
ceeeeeec.ffggfffffffffffffffffff
eeeeeee.ffffghhhhhhhffffffffffff
ee.eeeefffffhhhhhhhhffffffffffff
eeeeeeefffffhhhhhhhhffffffffffff
eeeeeeffffffhhhhhhhhiiiiiiifffff
eeeeFFffffffhhhhhhhhiiiiiiifffff
eeFFFfffffffffffffffiiiiiiifffff
"""
GOLDEN_AGREEMENT = 0.97  # of the samples: versions of the run times round differently


@needs_weights
def test_golden_panoptic_image_of_the_real_kitchen():
    pytest.importorskip("ai_edge_litert")
    pytest.importorskip("ncnn")
    if not DATA:
        pytest.skip("PANOPTIC_MAPPER_DATA names no folder with the sequences")
    result = create_segmenter(SegmenterConfig(name="tiny")).segment(ScanNetFolder(f"{DATA}/real_redkitchen")[60])
    golden = np.array([list(row) for row in GOLDEN.split()])
    semantic, instance = result.semantic[12::24, 10::20], result.instance[12::24, 10::20]
    names = np.array(TINY_LABEL_SPACE.names)[semantic]
    expected_names = np.array([[GOLDEN_NAMES[letter] for letter in row] for row in golden])
    assert np.mean(names == expected_names) > GOLDEN_AGREEMENT
    numbers = []
    for letter in "abcdefghi":  # each is one segment, and no two are the same
        values, counts = np.unique(instance[golden == letter], return_counts=True)
        numbers.append(values[counts.argmax()])
        assert counts.max() >= 0.9 * counts.sum() or counts.sum() - counts.max() <= 1, letter
    assert 0 not in numbers
    assert len(set(numbers)) == len(numbers)
