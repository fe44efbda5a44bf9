"""ScanNet's `.sens` recordings, read in place: an index of the frames is made once, each is decoded when asked for.

Layout, little endian (SensReader/README.md of ScanNet): uint32 version 4, uint64 length and characters of the sensor's
name, 4x4 float32 intrinsics and extrinsics of the colour, then of the depth camera, int32 colour and depth compression,
uint32 colour width and height, depth width and height, float32 depth units per metre, uint64 number of frames; then
frames of 4x4 float32 camera to world, uint64 colour and depth stamps (us), uint64 sizes of colour and depth, and
both images. IMU records may follow; they are not read.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from panoptic_mapper.datasets.image_files import decode_color, depth_in_m
from panoptic_mapper.frame import PinholeCamera

VERSION = 4
MAX_NAME_BYTES = 4096
COLOR_COMPRESSIONS = {0: "raw", 1: "png", 2: "jpeg"}
DEPTH_COMPRESSIONS = {0: "raw_ushort", 1: "zlib_ushort", 2: "occi_ushort"}
MATRIX = struct.Struct("<16f")
SIZES = struct.Struct("<iiIIIIfQ")  # compressions, widths and heights, depth units per metre, number of frames
FRAME = struct.Struct("<16fQQQQ")


@dataclass(frozen=True)
class SensFrame:
    """Where a frame lies in the file, and what stands before its images."""

    T_world_base: np.ndarray  # [4, 4] float64, of the rig; not finite where tracking was lost
    stamp_us: int  # of the colour image
    offset: int  # bytes; of the colour image, which the depth image follows
    color_bytes: int
    depth_bytes: int


class SensFile:
    """A `.sens` recording. Opening it reads the header and 96 bytes of each frame.

    Raises:
        ValueError: naming the file, the place in it, what was expected and what came.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._size = path.stat().st_size
            with open(path, "rb") as file:
                num_frames = self._read_header(file)
                self.frames = [self._read_frame(file, k, num_frames) for k in range(num_frames)]
        except OSError as error:
            raise ValueError(f"{path}: cannot be read ({error})") from error

    def read_color(self, number: int) -> np.ndarray:  # [H, W, 3] uint8 RGB
        """The colour image of a frame."""
        frame, where = self.frames[number], f"{self.path}: colour image of frame {number}"
        data = self._read_at(frame.offset, frame.color_bytes, where)
        if self.color_compression == "raw":
            return self._unpacked(data, np.dtype("u1"), (self.color_camera.height, self.color_camera.width, 3), where)
        color = decode_color(data, where)
        expected = (self.color_camera.height, self.color_camera.width, 3)
        if color.shape != expected:
            raise ValueError(f"{where}: expected {expected} as the header says, got {color.shape}")
        return color

    def read_depth(self, number: int) -> np.ndarray:  # [H, W] float32 m, 0 = none
        """The depth image of a frame, as the depth camera saw it."""
        frame, where = self.frames[number], f"{self.path}: depth image of frame {number}"
        data = self._read_at(frame.offset + frame.color_bytes, frame.depth_bytes, where)
        if self.depth_compression == "zlib_ushort":
            try:
                data = zlib.decompress(data)
            except zlib.error as error:
                raise ValueError(f"{where}: {len(data)} bytes cannot be decompressed ({error})") from error
        shape = (self.depth_camera.height, self.depth_camera.width)
        return depth_in_m(self._unpacked(data, np.dtype("<u2"), shape, where), self.depth_units_per_m)

    def _read_header(self, file: IO[bytes]) -> int:
        """Fills in the calibration; returns the number of frames."""
        (version,) = struct.unpack("<I", self._read(file, 4, "version"))
        if version != VERSION:
            raise ValueError(f"{self.path}: expected a .sens file of version {VERSION}, got version {version}")
        (length,) = struct.unpack("<Q", self._read(file, 8, "length of the sensor's name"))
        if length > MAX_NAME_BYTES:
            raise ValueError(f"{self.path}: the sensor's name has {length} bytes; expected {MAX_NAME_BYTES} at most")
        self.sensor_name = self._read(file, length, "sensor's name").decode("utf-8", "replace")
        matrices = [
            np.array(MATRIX.unpack(self._read(file, MATRIX.size, f"{what} of the {camera} camera"))).reshape(4, 4)
            for camera in ("colour", "depth")
            for what in ("intrinsics", "extrinsics")
        ]
        color_kind, depth_kind, *sizes, units, num_frames = SIZES.unpack(self._read(file, SIZES.size, "image formats"))
        color_width, color_height, depth_width, depth_height = sizes
        self.color_compression = self._compression("colour", color_kind, COLOR_COMPRESSIONS, ("raw", "png", "jpeg"))
        self.depth_compression = self._compression(
            "depth", depth_kind, DEPTH_COMPRESSIONS, ("raw_ushort", "zlib_ushort")
        )
        if not (np.isfinite(units) and units > 0):
            raise ValueError(f"{self.path}: depth shift: expected a positive number of units per metre, got {units}")
        self.depth_units_per_m = float(units)
        self.color_camera = self._camera("colour", matrices[0], color_width, color_height)
        self.depth_camera = self._camera("depth", matrices[2], depth_width, depth_height)
        # Extrinsics take points of a camera to the rig's base, which the frames' poses are of.
        self.T_base_color, self.T_base_depth = matrices[1], matrices[3]
        return num_frames

    def _read_frame(self, file: IO[bytes], number: int, num_frames: int) -> SensFrame:
        what = f"frame {number} of {num_frames}"
        *pose, stamp_us, _, color_bytes, depth_bytes = FRAME.unpack(self._read(file, FRAME.size, what))
        offset = file.tell()
        if offset + color_bytes + depth_bytes > self._size:
            raise ValueError(
                f"{self.path}: {what}: expected {color_bytes} + {depth_bytes} bytes of images at byte {offset},"
                f" but the file ends at {self._size}; the download is incomplete"
            )
        file.seek(color_bytes + depth_bytes, 1)
        return SensFrame(np.array(pose).reshape(4, 4), stamp_us, offset, color_bytes, depth_bytes)

    def _read(self, file: IO[bytes], size: int, what: str) -> bytes:
        offset = file.tell()
        data = file.read(size)
        if len(data) != size:
            raise ValueError(
                f"{self.path}: {what}: expected {size} bytes at byte {offset}, but the file ends at {self._size}"
            )
        return data

    def _read_at(self, offset: int, size: int, where: str) -> bytes:
        try:
            with open(self.path, "rb") as file:
                file.seek(offset)
                data = file.read(size)
        except OSError as error:
            raise ValueError(f"{where}: cannot be read ({error})") from error
        if len(data) != size:
            raise ValueError(f"{where}: expected {size} bytes at byte {offset}, got {len(data)}")
        return data

    def _compression(self, what: str, kind: int, known: dict[int, str], read: tuple[str, ...]) -> str:
        name = known.get(kind, f"unknown ({kind})")
        if name not in read:
            raise ValueError(f"{self.path}: {what} compression: expected {', '.join(read)}, got {name}")
        return name

    def _camera(self, what: str, K: np.ndarray, width: int, height: int) -> PinholeCamera:
        try:
            return PinholeCamera(K[0, 0], K[1, 1], K[0, 2], K[1, 2], width, height)
        except ValueError as error:
            raise ValueError(f"{self.path}: {what} camera: {error}") from error

    @staticmethod
    def _unpacked(data: bytes, dtype: np.dtype, shape: tuple[int, ...], where: str) -> np.ndarray:
        expected = int(np.prod(shape)) * dtype.itemsize
        if len(data) != expected:
            raise ValueError(f"{where}: expected {expected} bytes for {shape}, got {len(data)}")
        return np.frombuffer(data, dtype).reshape(shape).copy()  # the bytes themselves cannot be written to
