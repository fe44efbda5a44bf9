"""ROS image messages to arrays and back, without cv_bridge: padded rows, either byte order, JPEG and PNG.

The messages may be rclpy's or those that `rosbags` reads: only their fields are used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import cv2
import numpy as np

NO_DEPTH_MM = 65535  # saturated: some drivers write it where the sensor saw nothing; 0 is the usual mark
MAX_LABEL = 65535  # class ids and instance numbers travel in 16 bits each
DEPTH_HEADER_BYTES = 12  # in front of the PNG of compressed_depth_image_transport: int32 format, float32 a, float32 b


class ImageMessage(Protocol):
    """The fields of sensor_msgs/Image."""

    height: int
    width: int
    encoding: str
    is_bigendian: Any
    step: int  # bytes from one row to the next
    data: Any  # bytes, or anything with the buffer protocol


class CompressedImageMessage(Protocol):
    """The fields of sensor_msgs/CompressedImage."""

    format: str
    data: Any


def decode_color(message: ImageMessage) -> np.ndarray:  # [H, W, 3] uint8 RGB
    """The colour image.

    Raises:
        ValueError: an encoding other than COLOR_ENCODINGS, or data that does not have the size that the fields say.
    """
    dtype, channels, to_rgb = _looked_up("colour image", message.encoding, COLOR_ENCODINGS)
    # A copy: the message's own buffer may be read-only, or used again by whoever filled it.
    return np.array(to_rgb(_pixels("colour image", message, dtype, channels)), order="C")


def decode_depth(message: ImageMessage) -> np.ndarray:  # [H, W] float32 m, 0 = none
    """The depth image: 16UC1 and mono16 are mm, 32FC1 is m; 0, 65535, negative and not finite values are no depth.

    Raises:
        ValueError: an encoding other than DEPTH_ENCODINGS, or data that does not have the size that the fields say.
    """
    dtype = _looked_up("depth image", message.encoding, DEPTH_ENCODINGS)
    return _depth_m(_pixels("depth image", message, dtype, 1)[..., 0])


def decode_labels(message: ImageMessage) -> np.ndarray:  # [H, W] int32
    """The packed label image: class id in the high 16 bits, instance number in the low 16.

    Raises:
        ValueError: an encoding other than 32SC1, or data that does not have the size that the fields say.
    """
    dtype = _looked_up("label image", message.encoding, {"32SC1": "i4"})
    return _pixels("label image", message, dtype, 1)[..., 0].astype(np.int32)


def encode_labels(class_ids: np.ndarray, instances: np.ndarray) -> np.ndarray:  # [H, W] int32
    """Packs class ids and instance numbers [H, W], each 0..65535, as `decode_labels` gives them.

    Raises:
        ValueError: a number that does not fit into 16 bits.
    """
    for name, array in (("class id", class_ids), ("instance number", instances)):
        if array.size and (array.min() < 0 or array.max() > MAX_LABEL):
            raise ValueError(f"label image: {name} outside 0..{MAX_LABEL}: {array.min()}..{array.max()}")
    return ((class_ids.astype(np.uint32) << 16) | instances.astype(np.uint32)).view(np.int32)


def decode_compressed(message: CompressedImageMessage) -> np.ndarray:  # [H, W, 3] uint8 RGB
    """The colour image in a JPEG or PNG.

    Raises:
        ValueError: another format, or data that cannot be decoded.
    """
    if not any(word in message.format.lower() for word in ("jpeg", "jpg", "png")):
        raise ValueError(f"compressed colour image: expected the format jpeg or png, got '{message.format}'")
    image = _decoded(message, np.frombuffer(message.data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def decode_compressed_depth(message: CompressedImageMessage) -> np.ndarray:  # [H, W] float32 m, 0 = none
    """The depth image in a 16 bit PNG (mm), bare or as compressed_depth_image_transport wraps it.

    Raises:
        ValueError: another format, or data that cannot be decoded.
    """
    name = message.format.lower()
    data = np.frombuffer(message.data, np.uint8)
    if "compresseddepth" in name:
        header, data = data[:DEPTH_HEADER_BYTES], data[DEPTH_HEADER_BYTES:]
        values = _decoded(message, data, cv2.IMREAD_UNCHANGED)
        if "32fc1" in name:  # quantised inverse depth: value = a / depth + b
            a, b = header.view("<f4")[1:3]
            with np.errstate(divide="ignore", invalid="ignore"):
                return _depth_m(np.where(values > 0, a / (values.astype(np.float32) - b), np.float32(0)))
    elif "png" in name:
        values = _decoded(message, data, cv2.IMREAD_UNCHANGED)
    else:
        raise ValueError(f"compressed depth image: expected the format compressedDepth or png, got '{message.format}'")
    if values.dtype != np.uint16 or values.ndim != 2:
        raise ValueError(f"compressed depth image: expected one channel of 16 bits, got {values.dtype} {values.shape}")
    return _depth_m(values)


def encode_compressed(color: np.ndarray, quality: int = 92) -> bytes:
    """An RGB image [H, W, 3] uint8 as JPEG."""
    ok, data = cv2.imencode(".jpg", cv2.cvtColor(color, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert ok
    return data.tobytes()


def _depth_m(values: np.ndarray) -> np.ndarray:
    """Depth in m from mm (integers) or m (floats), invalid values set to 0."""
    if values.dtype.kind == "u":
        return np.where(values == NO_DEPTH_MM, 0, values).astype(np.float32) / np.float32(1000)
    return np.where(np.isfinite(values) & (values > 0), values, 0).astype(np.float32)


def _pixels(what: str, message: ImageMessage, dtype: str, channels: int) -> np.ndarray:
    """A view [H, W, channels] of the message's data, without the padding of the rows."""
    itemsize = np.dtype(dtype).itemsize
    height, width, step = int(message.height), int(message.width), int(message.step)
    if height < 1 or width < 1:
        raise ValueError(f"{what}: expected at least one pixel, got {width}x{height}")
    row_bytes = width * channels * itemsize
    if step < row_bytes:
        raise ValueError(f"{what}: a row of {width} {message.encoding} pixels has {row_bytes} bytes, step says {step}")
    data = np.frombuffer(message.data, np.uint8)
    # The last row may come without its padding.
    if len(data) < step * (height - 1) + row_bytes or len(data) > step * height:
        raise ValueError(f"{what}: expected {step * height} bytes ({height} rows of {step}), got {len(data)}")
    rows = np.lib.stride_tricks.as_strided(data, (height, row_bytes), (step, 1), writeable=False)
    stored = np.dtype((">" if message.is_bigendian else "<") + dtype)
    return np.ascontiguousarray(rows).view(stored).reshape(height, width, channels)


def _decoded(message: CompressedImageMessage, data: np.ndarray, flags: int) -> np.ndarray:
    image = cv2.imdecode(data, flags) if data.size else None
    if image is None:
        raise ValueError(f"compressed image: {len(message.data)} bytes of '{message.format}' cannot be decoded")
    return image


def _looked_up(what: str, encoding: str, known: Mapping[str, Any]) -> Any:
    if encoding not in known:
        raise ValueError(f"{what}: encoding '{encoding}' is not supported; expected one of {', '.join(known)}")
    return known[encoding]


def _gray_to_rgb(gray: np.ndarray) -> np.ndarray:
    return np.repeat(gray, 3, axis=2)


# encoding: (dtype, channels, to RGB uint8)
COLOR_ENCODINGS: dict[str, tuple[str, int, Callable[[np.ndarray], np.ndarray]]] = {
    "rgb8": ("u1", 3, lambda a: a),
    "bgr8": ("u1", 3, lambda a: a[..., ::-1]),
    "rgba8": ("u1", 4, lambda a: a[..., :3]),
    "bgra8": ("u1", 4, lambda a: a[..., 2::-1]),
    "mono8": ("u1", 1, _gray_to_rgb),
    "mono16": ("u2", 1, lambda a: _gray_to_rgb((a >> 8).astype(np.uint8))),
}
DEPTH_ENCODINGS = {"16UC1": "u2", "mono16": "u2", "32FC1": "f4"}
