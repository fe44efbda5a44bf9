"""Messages to the parts of a frame, and the map's data to messages. Class labels leave as public ids, not indices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import Point, Pose, Quaternion, Vector3
from sensor_msgs.msg import CameraInfo, Image, PointCloud2, PointField
from std_msgs.msg import Header

from panoptic_mapper.frame import PinholeCamera
from panoptic_mapper.image_encoding import COLOR_ENCODINGS, decode_color
from panoptic_mapper.label_space import LabelSpace, distinct_color
from panoptic_mapper.msg import PanopticObject, PanopticObjectArray
from panoptic_mapper.snapshot import MapObject, MapSnapshot

# One point of our clouds. `rgb` is 0x00RRGGBB in the bits of a float32, as PCL and RViz read it.
POINT_TYPE = np.dtype(
    [
        ("x", "<f4"),
        ("y", "<f4"),
        ("z", "<f4"),
        ("rgb", "<u4"),
        ("label", "<u4"),
        ("instance", "<u4"),
        ("confidence", "<f4"),
    ]
)
_POINT_FIELD_TYPES = {"rgb": PointField.FLOAT32, "label": PointField.UINT32, "instance": PointField.UINT32}
MAX_DISTORTION = 1e-6  # coefficients below this are a driver's way to write zero


def stamp_message(stamp_ns: int) -> Time:
    return Time(sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)


def stamp_from_message(stamp: Time) -> int:
    """Nanoseconds."""
    return stamp.sec * 10**9 + stamp.nanosec


def camera_from_message(info: CameraInfo) -> PinholeCamera:
    """Intrinsics of an undistorted image.

    Raises:
        ValueError: they are unset, lie outside the image, or the image is distorted.
    """
    if np.any(np.abs(info.d) > MAX_DISTORTION):
        raise ValueError(f"camera_info: the image is distorted (d = {list(info.d)}); use the rectified topics")
    return PinholeCamera(info.k[0], info.k[4], info.k[2], info.k[5], info.width, info.height)


def color_from_message(message: Image) -> np.ndarray:  # [H, W, 3] uint8 RGB
    """The colour image; cv_bridge converts the rare encodings (bayer, yuv422 and so on), where it is installed.

    Raises:
        ValueError: the encoding is not understood, or the data do not have the size that the fields say.
    """
    if message.encoding in COLOR_ENCODINGS:
        return decode_color(message)
    try:
        from cv_bridge import CvBridge
    except ImportError as error:
        known = ", ".join(COLOR_ENCODINGS)
        raise ValueError(
            f"colour image: encoding '{message.encoding}' is not supported without cv_bridge ({error});"
            f" expected one of {known}"
        ) from error
    try:
        image = np.asarray(CvBridge().imgmsg_to_cv2(message, "rgb8"))
    except Exception as error:  # its own error, OpenCV's, or a KeyError, by what is wrong
        raise ValueError(f"colour image: cv_bridge cannot convert encoding '{message.encoding}': {error}") from error
    if image.dtype != np.uint8 or image.shape != (message.height, message.width, 3):
        raise ValueError(f"colour image: cv_bridge made {image.dtype} {image.shape} of '{message.encoding}'")
    return np.array(image, order="C")  # a copy: the message's buffer may be used again


def vector_message(xyz: Sequence[float] | np.ndarray) -> Vector3:
    return Vector3(x=float(xyz[0]), y=float(xyz[1]), z=float(xyz[2]))


def point_message(xyz: Sequence[float] | np.ndarray) -> Point:
    return Point(x=float(xyz[0]), y=float(xyz[1]), z=float(xyz[2]))


def pose_message(position: np.ndarray, quaternion_wxyz: np.ndarray) -> Pose:
    w, x, y, z = (float(v) for v in quaternion_wxyz)
    return Pose(position=point_message(position), orientation=Quaternion(x=x, y=y, z=z, w=w))


def object_message(o: MapObject, label_space: LabelSpace) -> PanopticObject:
    return PanopticObject(
        id=int(o.id),
        class_id=int(label_space.ids[o.class_index]),
        class_name=o.class_name,
        score=float(o.score),
        observations=int(o.observations),
        box_pose=pose_message(o.box.center, o.box.quaternion),
        box_size=vector_message(o.box.size),
        aabb_min=point_message(o.aabb_min),
        aabb_max=point_message(o.aabb_max),
        centroid=point_message(o.centroid),
        num_gaussians=int(o.num_gaussians),
        first_seen=stamp_message(o.first_seen_ns),
        last_seen=stamp_message(o.last_seen_ns),
    )


def object_array_message(objects: Sequence[MapObject], label_space: LabelSpace, header: Header) -> PanopticObjectArray:
    messages = [object_message(o, label_space) for o in sorted(objects, key=lambda o: o.id)]
    return PanopticObjectArray(header=header, objects=messages)


def cloud_message(snapshot: MapSnapshot, header: Header, coloring: Literal["semantic", "instance"]) -> PointCloud2:
    """The labelled Gaussian centres, coloured by class or by object (grey where there is no object)."""
    points = np.empty(len(snapshot.points), POINT_TYPE)
    points.view("<f4").reshape(-1, POINT_TYPE.itemsize // 4)[:, :3] = snapshot.points
    classes, space = snapshot.class_indices, snapshot.label_space
    points["rgb"] = (
        packed_rgb(space.colors)[classes] if coloring == "semantic" else instance_colors(snapshot.instance_ids)
    )
    points["label"] = space.ids.astype(np.uint32)[classes]
    points["instance"] = snapshot.instance_ids
    points["confidence"] = snapshot.confidences
    message = PointCloud2(header=header, height=1, width=len(points), is_dense=True, is_bigendian=False)
    message.point_step = POINT_TYPE.itemsize
    message.row_step = POINT_TYPE.itemsize * len(points)
    offsets = {name: POINT_TYPE.fields[name][1] for name in POINT_TYPE.names}  # type: ignore[index, union-attr]
    message.fields = [
        PointField(name=name, offset=offset, datatype=_POINT_FIELD_TYPES.get(name, PointField.FLOAT32), count=1)
        for name, offset in offsets.items()
    ]
    message.data.frombytes(points.view(np.uint8))  # several times faster than assigning bytes
    return message


def packed_rgb(colors: np.ndarray) -> np.ndarray:  # [N, 3] uint8 RGB -> [N] uint32 0x00RRGGBB
    r, g, b = colors.astype(np.uint32).T
    return (r << 16) | (g << 8) | b


def instance_colors(instance_ids: np.ndarray) -> np.ndarray:  # [N] -> [N] uint32 0x00RRGGBB
    """A colour for each object that stays the same while its id does; grey for 0 = none."""
    is_there = np.bincount(instance_ids) > 0  # several times as fast as to sort the ids
    palette = np.zeros((max(len(is_there), 1), 3), np.uint8)
    for id in np.flatnonzero(is_there).tolist():
        palette[id] = distinct_color(id) if id else (128, 128, 128)
    return packed_rgb(palette)[instance_ids]


def image_message(image: np.ndarray, encoding: str, stamp_ns: int) -> Image:
    """An image [H, W] or [H, W, 3] whose dtype fits the encoding, little-endian, rows without padding."""
    image = np.ascontiguousarray(image)
    message = Image(encoding=encoding, height=image.shape[0], width=image.shape[1], is_bigendian=0)
    message.header.stamp = stamp_message(stamp_ns)
    message.step = image.strides[0]
    message.data.frombytes(image.data.cast("B") if image.size else b"")
    return message
