"""LiDAR depth of ScanNet++'s iPhone recordings: depth.bin, read in place.

Two forms are in use: a uint32 size (little endian) and a compressed image, frame after frame, where an image is LZ4 of
uint16 mm or raw deflate of float32 m; or one raw deflate stream of all frames in float32 m.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import IO

import lz4.block
import numpy as np

from panoptic_mapper.datasets.image_files import MM_PER_M, depth_in_m

HEIGHT_PX, WIDTH_PX = 192, 256
NUM_PIXELS = HEIGHT_PX * WIDTH_PX
CHUNK_BYTES = 1 << 20


class LidarDepth:
    """Depth frames by number.

    Frames of their own are found by an index that is made once; one stream is decompressed from its beginning on, where
    forwards is cheap and backwards begins anew.

    Raises:
        ValueError: naming the file that is missing, empty or of neither form.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._frames = _index_of_frames(path)  # offset and size in bytes; None = one stream
        except OSError as error:
            raise ValueError(f"{path}: cannot be read ({error})") from error
        self._stream: _Stream | None = None
        if self._frames is None:
            self._in_stream(0)

    def read(self, number: int) -> np.ndarray:  # [192, 256] float32 m, 0 = none
        """The depth of a frame; ValueError names the file and the frame."""
        try:
            if self._frames is None:
                return self._in_stream(number)
            if not 0 <= number < len(self._frames):
                raise ValueError(f"{self.path}: expected a frame {number}, but there are {len(self._frames)}")
            offset, size = self._frames[number]
            with open(self.path, "rb") as file:
                file.seek(offset)
                return _decoded(file.read(size), f"{self.path}: frame {number}")
        except OSError as error:
            raise ValueError(f"{self.path}: frame {number}: cannot be read ({error})") from error

    def _in_stream(self, number: int) -> np.ndarray:
        if self._stream is None or number < self._stream.next:
            self._stream = _Stream(self.path)
        while self._stream.next < number:
            self._stream.read()
        return _valid(self._stream.read())


class _Stream:
    """Frames of one deflate stream, one after the other."""

    def __init__(self, path: Path) -> None:
        self.next = 0  # number of the frame that comes next
        self._path = path
        self._file: IO[bytes] = open(path, "rb")  # noqa: SIM115  # read on from frame to frame
        self._inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        self._data = bytearray()

    def read(self) -> np.ndarray:  # [192, 256] float32 m
        size = 4 * NUM_PIXELS
        while len(self._data) < size:
            chunk = self._inflate.unconsumed_tail or self._file.read(CHUNK_BYTES)
            try:
                more = self._inflate.decompress(chunk, size)
            except zlib.error as error:
                raise ValueError(
                    f"{self._path}: frame {self.next}: neither frames with their sizes nor a deflate stream ({error})"
                ) from error
            if not chunk and not more:
                raise ValueError(f"{self._path}: expected a frame {self.next}, but the stream ends before it does")
            self._data += more
        frame = np.frombuffer(bytes(self._data[:size]), "<f4").reshape(HEIGHT_PX, WIDTH_PX)
        del self._data[:size]
        self.next += 1
        return frame


def _index_of_frames(path: Path) -> list[tuple[int, int]] | None:
    """Offset and size of each frame; None where the sizes do not lead to the end of the file."""
    frames = []
    end = path.stat().st_size
    with open(path, "rb") as file:
        while file.tell() < end:
            head = file.read(4)
            size = struct.unpack("<I", head)[0] if len(head) == 4 else end
            if size == 0 or file.tell() + size > end:
                return None
            frames.append((file.tell(), size))
            file.seek(size, 1)
    if not frames:
        raise ValueError(f"{path}: the file is empty")
    return frames


def _decoded(data: bytes, where: str) -> np.ndarray:  # [192, 256] float32 m, 0 = none
    """One compressed image. Both forms are tried: the file does not say which it is."""
    try:
        raw = lz4.block.decompress(data, uncompressed_size=2 * NUM_PIXELS)
        if len(raw) == 2 * NUM_PIXELS:
            return depth_in_m(np.frombuffer(raw, "<u2").reshape(HEIGHT_PX, WIDTH_PX), MM_PER_M)
    except lz4.block.LZ4BlockError:
        pass
    try:
        raw = zlib.decompress(data, wbits=-zlib.MAX_WBITS)
    except zlib.error as error:
        raise ValueError(f"{where}: {len(data)} bytes are neither LZ4 nor deflate ({error})") from error
    if len(raw) != 4 * NUM_PIXELS:
        raise ValueError(f"{where}: expected {4 * NUM_PIXELS} bytes of {WIDTH_PX}x{HEIGHT_PX}, got {len(raw)}")
    return _valid(np.frombuffer(raw, "<f4").reshape(HEIGHT_PX, WIDTH_PX))


def _valid(depth: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(depth) & (depth > 0), depth, 0).astype(np.float32)
