"""The overview picture: where labels go, what colours mean, and that the picture shows what it was given."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from panoptic_mapper.frame import Frame, PinholeCamera
from panoptic_mapper.label_space import LabelSpace, SemanticClass, distinct_color
from panoptic_mapper.labels_layout import TextBox, place_labels, segment_anchors
from panoptic_mapper.objects import extract_objects
from panoptic_mapper.overview import depth_colors, instance_colors, save_overview, tinted
from panoptic_mapper.snapshot import MapObject, MapSnapshot, PanopticView
from panoptic_mapper.top_down import FloorPlan, footprint, top_down_image

UP = np.array([0.0, 0.0, 1.0])
SPACE = LabelSpace.from_classes(
    [SemanticClass(1, "floor", False), SemanticClass(22, "ceiling", False), SemanticClass(5, "chair", True)]
)
FLOOR, CEILING, CHAIR = 1, 2, 3


def grid(x: tuple, y: tuple, z: float) -> np.ndarray:
    """Points 2 cm apart on a horizontal rectangle, [n, 3]."""
    xs, ys = np.meshgrid(np.arange(*x, 0.02), np.arange(*y, 0.02))
    return np.stack([xs.ravel(), ys.ravel(), np.full(xs.size, z)], -1)


def room() -> MapSnapshot:
    """A 4 x 2 m floor, a ceiling, and one chair with id 8 at x 1..1.5, y 0.5..1."""
    floor, ceiling, chair = grid((0, 4), (0, 2), 0), grid((0, 4), (0, 2), 2.5), grid((1, 1.5), (0.5, 1), 0.5)
    points = np.concatenate([floor, ceiling, chair])
    sizes = [len(floor), len(ceiling), len(chair)]
    ids = np.repeat([0, 0, 8], sizes).astype(np.int32)
    g = extract_objects(points, ids, UP)[8]
    chair_object = MapObject(8, CHAIR, "chair", 1.0, 3, g.centroid, g.box, g.aabb_min, g.aabb_max, g.num_points, 0, 1)
    return MapSnapshot(
        stamp_ns=0,
        points=points.astype(np.float32),
        colors=np.full((len(points), 3), 200, np.uint8),
        class_indices=np.repeat([FLOOR, CEILING, CHAIR], sizes).astype(np.int32),
        instance_ids=ids,
        confidences=np.ones(len(points), np.float32),
        objects=(chair_object,),
        label_space=SPACE,
    )


EMPTY = MapSnapshot(
    0, np.zeros((0, 3), np.float32), np.zeros((0, 3), np.uint8), *([np.zeros(0, np.int32)] * 2), np.zeros(0), (), SPACE
)


def one_row() -> tuple[Frame, PanopticView]:
    camera = PinholeCamera(40, 40, 31.5, 23.5, 64, 48)
    instance = np.zeros((48, 64), np.int32)
    instance[20:40, 20:50] = 8
    depth = np.full((48, 64), 2.0, np.float32)
    depth[:, :32] = 1.0
    frame = Frame(0, np.full((48, 64, 3), (250, 20, 20), np.uint8), depth, np.eye(4), camera)
    semantic = np.where(instance == 8, CHAIR, FLOOR).astype(np.int32)
    view = PanopticView(np.full((48, 64, 3), 128, np.uint8), depth, np.ones_like(depth), semantic, instance)
    return frame, view


def has_color(image: np.ndarray, color: tuple | np.ndarray, tolerance: int = 3) -> int:
    """Number of pixels of an RGB image with a colour."""
    return int((np.abs(image.astype(int) - np.asarray(color)).max(-1) <= tolerance).sum())


def test_picture_shows_the_frame_the_labels_and_the_object_in_one_colour(tmp_path: Path) -> None:
    path = tmp_path / "overview.png"
    trajectory = np.array([[0.5, 1, 1], [3, 1, 1]])
    save_overview(path, [one_row()] * 2, room(), trajectory, UP, title="a room")
    image = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
    assert 1900 < image.shape[1] < 2100
    panel = 380 * 285
    assert has_color(image, (250, 20, 20)) > 2 * 0.95 * panel  # the two colour panels
    tint = 0.62 * np.array(distinct_color(8)) + 0.38 * 128
    assert has_color(image, tint) > 2 * 0.15 * panel  # a fifth of each instance panel, less the name
    shaded = np.array(distinct_color(8)) * (0.65 + 0.35 * 200 / 255)
    assert has_color(image, shaded) > 10_000  # the chair from above


@pytest.mark.parametrize("rows", [[], [one_row()]])
def test_an_empty_map_gives_a_picture_too(tmp_path: Path, rows: list) -> None:
    save_overview(tmp_path / "o.png", rows, EMPTY, np.zeros((0, 3)), UP)
    assert cv2.imread(str(tmp_path / "o.png")).shape[1] > 1900


def test_unwritable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"o\.png: the overview cannot be written"):
        save_overview(tmp_path / "missing" / "o.png", [], EMPTY, np.zeros((0, 3)), UP)


@pytest.mark.parametrize("up", [UP, np.array([0.0, -1.0, 0.0])])
def test_top_down_image_is_seen_from_above_without_the_ceiling(up: np.ndarray) -> None:
    """A footprint of an object covers its colour, and nowhere else has it; also where the map's up is -y."""
    snapshot = room()
    turn = np.eye(3) if up[2] else np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])  # z up to -y up
    points = (snapshot.points @ turn.T).astype(np.float32)
    turned = MapSnapshot(**{**vars(snapshot), "points": points})
    plan = FloorPlan.of(turned, np.zeros((0, 3)), up)
    assert (plan.high - plan.low)[0] > (plan.high - plan.low)[1]
    assert np.linalg.det(plan.rotation) == pytest.approx(1.0)  # not mirrored
    image = top_down_image(plan, turned, 100.0)
    is_chair = (image != image[..., :1]).any(-1)  # all other points are grey
    rows, columns = np.nonzero(is_chair)
    corners = plan.flatten(footprint(snapshot.objects[0].box) @ turn.T)
    x, y = (corners[:, 0] - plan.low[0]) * 100, image.shape[0] - (corners[:, 1] - plan.low[1]) * 100
    expected = [x.min(), x.max(), y.min(), y.max()]
    np.testing.assert_allclose([columns.min(), columns.max(), rows.min(), rows.max()], expected, atol=8)
    assert is_chair.sum() == pytest.approx(50 * 50, rel=0.2)


def test_depth_colors_are_black_where_there_is_no_depth() -> None:
    colors = depth_colors(np.array([[0.0, 1.0, 3.0]]), 1.0, 3.0)
    assert colors[0, 0].tolist() == [0, 0, 0]
    assert colors[0, 2, 0] > colors[0, 2, 2]  # far is red


def test_label_colors() -> None:
    ids = np.array([[0, 5], [5, 7]])
    assert instance_colors(ids)[1, 1].tolist() == list(distinct_color(7))
    image = tinted(np.full((2, 2, 3), 100, np.uint8), ids, np.full((2, 2, 3), 200, np.uint8))
    assert image[0, 0].tolist() == [50] * 3
    assert image[1, 0].tolist() == [162] * 3


def test_anchor_lies_inside_the_largest_part_of_a_segment() -> None:
    segments = np.zeros((60, 80), int)
    segments[5:55, 5:15] = 3  # an L: its centre of mass lies outside
    segments[45:55, 5:75] = 3
    segments[5:12, 70:78] = 3  # a smaller part
    segments[20:30, 40:60] = 9
    segments[0, 0] = 4  # too small for a name
    anchors = segment_anchors(segments, min_share=0.01)
    assert [segment for segment, _ in anchors] == [3, 9]
    for segment, (x, y) in anchors:
        assert segments[int(y), int(x)] == segment
    assert anchors[0][1][1] > 12 or anchors[0][1][0] < 20


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.floats(0, 300), st.floats(0, 200)), max_size=30))
def test_labels_never_overlap_and_stay_in_the_picture(centers: list) -> None:
    taken = [TextBox(50, 50, 60, 30)]
    area = (np.zeros(2), np.array([300.0, 200.0]))
    placed = place_labels(["chair 12"] * len(centers), [np.array(c) for c in centers], 8, area, taken)
    boxes = taken + [box for box in placed if box is not None]
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i])
        assert box.x - box.width / 2 >= 0
        assert box.x + box.width / 2 <= 300
        assert box.y - box.height / 2 >= 0
        assert box.y + box.height / 2 <= 200
    if centers:
        assert len(boxes) > 1  # a picture with one text has room for a second


def test_a_free_label_stays_where_it_belongs() -> None:
    (box,) = place_labels(["sofa 1"], [np.array([100.0, 80.0])], 8, (np.zeros(2), np.array([200.0, 160.0])))
    assert box is not None
    assert (box.x, box.y) == (100.0, 80.0)
