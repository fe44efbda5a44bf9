"""Messages of the map's data, read back the way a subscriber would."""

import numpy as np
import pytest

pytest.importorskip("panoptic_mapper.msg", reason="ROS 2 or the built messages are not installed")
from sensor_msgs.msg import CameraInfo
from std_msgs.msg import Header
from visualization_msgs.msg import Marker

from panoptic_mapper.label_space import LabelSpace, SemanticClass
from panoptic_mapper.ros.conversions import (
    camera_from_message,
    cloud_message,
    image_message,
    object_array_message,
    stamp_from_message,
    stamp_message,
)
from panoptic_mapper.ros.markers import MarkerTracker
from panoptic_mapper.snapshot import Box, MapObject, MapSnapshot

pytestmark = pytest.mark.ros
SPACE = LabelSpace.from_classes([SemanticClass(40, "wall", False), SemanticClass(5, "chair", True)])
HEADER = Header(stamp=stamp_message(12_000_000_345), frame_id="map")


def make_object(id_: int) -> MapObject:
    center = np.array([1.0, 2.0, 3.0])
    box = Box(center, np.array([0.4, 0.5, 0.0]), np.array([0.8, 0.0, 0.0, 0.6]))
    return MapObject(id_, 2, "chair", 0.75, 4, center + 0.1, box, center - 1, center + 1, 33, 5, 10**9 + 7)


def make_snapshot(num_points: int = 1000, object_ids=(3, 8)) -> MapSnapshot:
    rng = np.random.default_rng(0)
    return MapSnapshot(
        stamp_ns=12_000_000_345,
        points=rng.normal(size=(num_points, 3)).astype(np.float32),
        colors=rng.integers(0, 256, (num_points, 3), dtype=np.uint8),
        class_indices=rng.integers(0, 3, num_points).astype(np.int32),
        instance_ids=rng.choice([0, *object_ids], num_points).astype(np.int32),
        confidences=rng.random(num_points, dtype=np.float32),
        objects=tuple(make_object(i) for i in object_ids),
        label_space=SPACE,
    )


def read_cloud(message) -> np.ndarray:
    """By the message's own fields, as any consumer must."""
    kinds = {6: "<u4", 7: "<f4"}
    names, formats = [f.name for f in message.fields], [kinds[f.datatype] for f in message.fields]
    layout = {
        "names": names,
        "formats": formats,
        "offsets": [f.offset for f in message.fields],
        "itemsize": message.point_step,
    }
    return np.frombuffer(bytes(message.data), np.dtype(layout))


@pytest.mark.parametrize("coloring", ["semantic", "instance"])
def test_a_cloud_carries_points_public_ids_and_confidence(coloring):
    snapshot = make_snapshot()
    message = cloud_message(snapshot, HEADER, coloring)
    cloud = read_cloud(message)
    assert (message.width, message.height, message.row_step) == (1000, 1, len(message.data))
    assert message.header.frame_id == "map"
    np.testing.assert_array_equal(np.stack([cloud["x"], cloud["y"], cloud["z"]], axis=1), snapshot.points)
    np.testing.assert_array_equal(cloud["label"], np.array([0, 40, 5])[snapshot.class_indices])
    np.testing.assert_array_equal(cloud["instance"], snapshot.instance_ids)
    np.testing.assert_array_equal(cloud["confidence"], snapshot.confidences)


def test_clouds_are_coloured_by_class_and_by_object():
    snapshot = make_snapshot()
    bits = read_cloud(cloud_message(snapshot, HEADER, "semantic"))["rgb"].view(np.uint32)
    r, g, b = SPACE.colors[2].tolist()
    assert np.all(bits[snapshot.class_indices == 2] == (r << 16) + (g << 8) + b)
    bits = read_cloud(cloud_message(snapshot, HEADER, "instance"))["rgb"].view(np.uint32)
    assert np.all(bits[snapshot.instance_ids == 0] == 0x808080)
    by_object = [set(bits[snapshot.instance_ids == i].tolist()) for i in (3, 8)]
    assert [len(colors) for colors in by_object] == [1, 1]
    assert by_object[0] != by_object[1]


def test_an_empty_map_gives_an_empty_cloud():
    message = cloud_message(make_snapshot(0, object_ids=()), HEADER, "instance")
    assert (message.width, len(message.data), message.point_step) == (0, 0, 28)


def test_objects_keep_every_field_and_come_by_id():
    message = object_array_message([make_object(9), make_object(4)], SPACE, HEADER)
    assert [o.id for o in message.objects] == [4, 9]
    o = message.objects[0]
    assert (o.class_id, o.class_name, o.score, o.observations, o.num_gaussians) == (5, "chair", 0.75, 4, 33)
    assert (o.box_pose.position.x, o.box_pose.position.z) == (1.0, 3.0)
    assert (o.box_pose.orientation.w, o.box_pose.orientation.z) == (0.8, 0.6)
    assert (o.box_size.x, o.box_size.y) == (0.4, 0.5)
    assert (o.aabb_min.y, o.aabb_max.y, o.centroid.y) == (1.0, 3.0, 2.1)
    assert (stamp_from_message(o.first_seen), stamp_from_message(o.last_seen)) == (5, 10**9 + 7)


def test_markers_keep_their_object_and_vanish_with_it():
    tracker = MarkerTracker()
    first = tracker.message(make_snapshot(object_ids=(3, 8)), HEADER).markers
    assert {(m.ns, m.id, m.action) for m in first} == {(ns, i, Marker.ADD) for ns in ("boxes", "names") for i in (3, 8)}
    box = next(m for m in first if m.ns == "boxes" and m.id == 3)
    assert (box.type, box.scale.x, box.pose.orientation.w) == (Marker.CUBE, 0.4, 0.8)
    assert box.scale.z > 0  # a flat object still has a box that RViz draws
    assert next(m for m in first if m.ns == "names" and m.id == 8).text == "chair 8"
    second = tracker.message(make_snapshot(object_ids=(8, 9)), HEADER).markers
    assert {(m.ns, m.id) for m in second if m.action == Marker.DELETE} == {("boxes", 3), ("names", 3)}
    assert {m.id for m in second if m.action == Marker.ADD} == {8, 9}
    third = tracker.message(make_snapshot(object_ids=(8, 9)), HEADER).markers
    assert all(m.action == Marker.ADD for m in third)


@pytest.mark.parametrize(
    ("array", "encoding"),
    [
        (np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3), "rgb8"),
        (np.linspace(0, 5, 6, dtype=np.float32).reshape(2, 3), "32FC1"),
        (np.arange(6, dtype=np.uint16).reshape(3, 2).T * 1000, "16UC1"),
        (np.arange(6, dtype=np.int32).reshape(2, 3) * 10**6, "32SC1"),
    ],
)
def test_images_round_trip(array, encoding):
    message = image_message(array, encoding, stamp_ns=10**9 + 1)
    assert (message.height, message.width, message.encoding) == (2, 3, encoding)
    assert message.step * message.height == len(message.data)
    np.testing.assert_array_equal(np.frombuffer(bytes(message.data), array.dtype).reshape(array.shape), array)
    assert stamp_from_message(message.header.stamp) == 10**9 + 1


def camera_info(k, d=(), size=(64, 48)) -> CameraInfo:
    info = CameraInfo(width=size[0], height=size[1], d=list(d))
    info.k = [float(v) for v in k]
    return info


def test_intrinsics():
    camera = camera_from_message(camera_info((50, 0, 31.5, 0, 51, 23.5, 0, 0, 1), d=(0.0,) * 5))
    assert (camera.fx, camera.fy, camera.cx, camera.cy, camera.width, camera.height) == (50, 51, 31.5, 23.5, 64, 48)


@pytest.mark.parametrize(
    ("info", "message"),
    [
        (camera_info((0,) * 9), "fx, fy > 0"),
        (camera_info((50, 0, 310, 0, 50, 23, 0, 0, 1)), "outside the 64x48 image"),
        (camera_info((50, 0, 31, 0, 50, 23, 0, 0, 1), d=(0.1, 0, 0, 0, 0)), "distorted"),
        (camera_info((50, 0, float("nan"), 0, 50, 23, 0, 0, 1)), "finite"),
        (camera_info((50, 0, 0, 0, 50, 0, 0, 0, 1), size=(0, 0)), "at least 1x1"),
    ],
)
def test_bad_intrinsics_are_named(info, message):
    with pytest.raises(ValueError, match=message):
        camera_from_message(info)
