"""ROS image encodings against images packed by hand."""

import array
import struct
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from panoptic_mapper import image_encoding as ie

RGB = np.random.default_rng(1).integers(0, 256, (3, 5, 3), dtype=np.uint8)


def message(pixels: np.ndarray, encoding: str, padding: int = 0, big: bool = False, **fields) -> SimpleNamespace:
    """An image message of `pixels` [H, W, ...] in native order, with `padding` bytes behind each row."""
    swapped = pixels.astype(pixels.dtype.newbyteorder(">" if big else "<"))
    rows = [row.tobytes() + b"\xee" * padding for row in swapped]
    values = {
        "height": len(rows),
        "width": pixels.shape[1],
        "encoding": encoding,
        "is_bigendian": int(big),
        "step": len(rows[0]),
        "data": b"".join(rows),
    }
    return SimpleNamespace(**(values | fields))


@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize(
    ("encoding", "pixels"),
    [
        ("rgb8", RGB),
        ("bgr8", RGB[..., ::-1]),
        ("rgba8", np.dstack([RGB, np.full((3, 5), 9, np.uint8)])),
        ("bgra8", np.dstack([RGB[..., ::-1], np.full((3, 5), 9, np.uint8)])),
    ],
)
def test_colour(encoding, pixels, padding):
    np.testing.assert_array_equal(ie.decode_color(message(pixels, encoding, padding)), RGB)


@pytest.mark.parametrize("big", [False, True])
def test_gray_becomes_three_equal_channels(big):
    gray = RGB[..., 0]
    for pixels, encoding in ((gray, "mono8"), (gray.astype(np.uint16) * 256 + 7, "mono16")):
        np.testing.assert_array_equal(ie.decode_color(message(pixels, encoding, 1, big)), np.dstack([gray] * 3))


@pytest.mark.parametrize("wrap", [bytes, memoryview, lambda b: array.array("B", b), lambda b: np.frombuffer(b, "u1")])
def test_any_buffer_holds_the_data(wrap):
    m = message(RGB, "rgb8")
    m.data = wrap(m.data)
    np.testing.assert_array_equal(ie.decode_color(m), RGB)


@pytest.mark.parametrize("padding", [0, 1, 6])
@pytest.mark.parametrize("big", [False, True])
def test_depth_in_mm_and_m(padding, big):
    mm = np.array([[0, 65535, 1], [1234, 65534, 300]], np.uint16)
    expected = np.array([[0, 0, 0.001], [1.234, 65.534, 0.3]], np.float32)
    for encoding in ("16UC1", "mono16"):
        np.testing.assert_allclose(ie.decode_depth(message(mm, encoding, padding, big)), expected, rtol=1e-6)
    m = np.array([[np.nan, np.inf, -1], [1.5, 0, 0.25]], np.float32)
    depth = ie.decode_depth(message(m, "32FC1", padding, big))
    np.testing.assert_array_equal(depth, np.array([[0, 0, 0], [1.5, 0, 0.25]], np.float32))
    assert depth.dtype == np.float32


@given(st.lists(st.tuples(st.integers(0, 65535), st.integers(0, 65535)), min_size=1, max_size=20))
def test_labels_survive_packing(pairs):
    ids = np.array(pairs, np.int32).T[:, None, :]  # [2, 1, M]
    packed = ie.encode_labels(ids[0], ids[1])
    back = ie.decode_labels(message(packed, "32SC1", padding=2)).view(np.uint32)
    np.testing.assert_array_equal(back >> 16, ids[0])
    np.testing.assert_array_equal(back & 0xFFFF, ids[1])


@pytest.mark.parametrize("bad", [-1, 65536])
def test_labels_that_do_not_fit_are_refused(bad):
    good = np.zeros((2, 2), np.int32)
    with pytest.raises(ValueError, match=r"instance number outside 0\.\.65535"):
        ie.encode_labels(good, np.full((2, 2), bad, np.int32))
    with pytest.raises(ValueError, match=r"class id outside 0\.\.65535"):
        ie.encode_labels(np.full((2, 2), bad, np.int32), good)


@pytest.mark.parametrize("decode", [ie.decode_color, ie.decode_depth, ie.decode_labels])
def test_unknown_encodings_are_named_with_the_accepted_ones(decode):
    accepted = {ie.decode_color: "rgb8", ie.decode_depth: "16UC1", ie.decode_labels: "32SC1"}[decode]
    with pytest.raises(ValueError, match=f"encoding 'yuv422' is not supported; expected one of .*{accepted}"):
        decode(message(RGB, "yuv422"))


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"step": 14}, "has 15 bytes, step says 14"),
        ({"data": b"\0" * 44}, "expected 45 bytes .* got 44"),
        ({"data": b"\0" * 46}, "expected 45 bytes .* got 46"),
        ({"height": 0, "data": b""}, "at least one pixel"),
    ],
)
def test_contradicting_sizes_are_refused(fields, text):
    with pytest.raises(ValueError, match=text):
        ie.decode_color(message(RGB, "rgb8", **fields))


def test_the_last_row_may_lack_its_padding():
    m = message(RGB, "rgb8", padding=4)
    m.data = m.data[:-4]
    np.testing.assert_array_equal(ie.decode_color(m), RGB)


@pytest.mark.parametrize("format_", ["png", "rgb8; png compressed bgr8"])
def test_png(format_):
    data = cv2.imencode(".png", RGB[..., ::-1])[1].tobytes()
    np.testing.assert_array_equal(ie.decode_compressed(SimpleNamespace(format=format_, data=data)), RGB)


def test_jpeg_round_trip_is_close():
    smooth = np.dstack(np.broadcast_arrays(np.arange(0, 256, 4)[None], np.arange(0, 256, 8)[:, None], 60)).astype("u1")
    back = ie.decode_compressed(SimpleNamespace(format="jpeg", data=ie.encode_compressed(smooth)))
    assert np.abs(back.astype(int) - smooth).mean() < 3


def test_compressed_depth():
    mm = np.array([[0, 1000], [2500, 65535]], np.uint16)
    expected = np.array([[0, 1], [2.5, 0]], np.float32)
    png = cv2.imencode(".png", mm)[1].tobytes()
    header = struct.pack("<iff", 0, 0, 0)
    bare = SimpleNamespace(format="16UC1; png compressed", data=png)
    wrapped = SimpleNamespace(format="16UC1; compressedDepth png", data=header + png)
    np.testing.assert_array_equal(ie.decode_compressed_depth(bare), expected)
    np.testing.assert_array_equal(ie.decode_compressed_depth(wrapped), expected)
    a, b, depth = 300.0, -20.0, np.array([[1.0, 2.0], [4.0, 8.0]])
    quantised = np.rint(a / depth + b).astype(np.uint16)
    data = struct.pack("<iff", 0, a, b) + cv2.imencode(".png", quantised)[1].tobytes()
    inverse = ie.decode_compressed_depth(SimpleNamespace(format="32FC1; compressedDepth png", data=data))
    np.testing.assert_allclose(inverse, depth, rtol=0.02)


def test_broken_and_unknown_compressed_images_are_refused():
    with pytest.raises(ValueError, match="expected the format jpeg or png, got 'h264'"):
        ie.decode_compressed(SimpleNamespace(format="h264", data=b"x"))
    with pytest.raises(ValueError, match="4 bytes of 'jpeg' cannot be decoded"):
        ie.decode_compressed(SimpleNamespace(format="jpeg", data=b"junk"))
    with pytest.raises(ValueError, match="0 bytes of 'png' cannot be decoded"):
        ie.decode_compressed_depth(SimpleNamespace(format="png", data=b""))
    with pytest.raises(ValueError, match="expected the format compressedDepth or png, got 'jpeg'"):
        ie.decode_compressed_depth(SimpleNamespace(format="jpeg", data=b"junk"))
