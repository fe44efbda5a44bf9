"""Images, depth maps, label images and matrices of recorded sequences; every error names the file."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import cv2
import numpy as np

COLOR_SUFFIXES = (".jpg", ".jpeg", ".png")
NO_DEPTH = 65535  # written by some sensors and exporters where nothing was seen; 0 is the usual mark
MM_PER_M = 1000.0


def read_color(file: Path) -> np.ndarray:  # [H, W, 3] uint8 RGB
    """The colour image, without the rotation that its EXIF data may ask for."""
    return decode_color(read_bytes(file), file)


def read_depth(file: Path, units_per_m: float = MM_PER_M) -> np.ndarray:  # [H, W] float32 m, 0 = none
    """The depth image; 0 and 65535 are no depth."""
    values = _decode(read_bytes(file), cv2.IMREAD_UNCHANGED, file)
    if values.dtype != np.uint16 or values.ndim != 2:
        raise ValueError(f"{file}: expected one channel of uint16 depth, got {values.dtype} {values.shape}")
    return depth_in_m(values, units_per_m)


def read_ids(file: Path) -> np.ndarray:  # [H, W] uint8 or uint16
    """The image of class or instance ids."""
    return decode_ids(read_bytes(file), file)


def read_bytes(file: Path) -> bytes:
    """Raises ValueError naming the file that is missing or cannot be read."""
    if not file.is_file():
        raise ValueError(f"{file}: no such file")
    try:
        return file.read_bytes()
    except OSError as error:
        raise ValueError(f"{file}: cannot be read ({error})") from error


def decode_color(data: bytes, where: object) -> np.ndarray:  # [H, W, 3] uint8 RGB
    """The colour image in the bytes of a JPEG or PNG; `where` names them in errors."""
    return cv2.cvtColor(_decode(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION, where), cv2.COLOR_BGR2RGB)


def decode_ids(data: bytes, where: object) -> np.ndarray:  # [H, W] uint8 or uint16
    """The ids in the bytes of a PNG; `where` names them in errors."""
    ids = _decode(data, cv2.IMREAD_UNCHANGED, where)
    if ids.dtype not in (np.uint8, np.uint16) or ids.ndim != 2:
        raise ValueError(f"{where}: expected one channel of uint8 or uint16 ids, got {ids.dtype} {ids.shape}")
    return ids


def depth_in_m(values: np.ndarray, units_per_m: float) -> np.ndarray:  # [H, W] float32 m, 0 = none
    """Metres from the sensor's units (uint16); 0 and 65535 are no depth."""
    return np.where(values == NO_DEPTH, 0, values).astype(np.float32) / np.float32(units_per_m)


def resized_color(color: np.ndarray, width: int, height: int) -> np.ndarray:  # [height, width, 3] uint8
    """The image at another size: by area, which does not alias when it shrinks."""
    if color.shape[:2] == (height, width):
        return color
    return cv2.resize(color, (width, height), interpolation=cv2.INTER_AREA)


def read_matrix(file: Path, shape: tuple[int, int] = (4, 4)) -> np.ndarray:  # [rows, columns] float64
    """The matrix in a text file, one row a line; its values may be infinite or NaN."""
    size = f"{shape[0]}x{shape[1]}"
    try:
        rows = [[float(word) for word in line.split()] for line in file.read_text().splitlines() if line.strip()]
        matrix = np.array(rows)
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: cannot be read as a {size} matrix ({error})") from error
    if matrix.shape != shape:
        raise ValueError(f"{file}: expected a {size} matrix, got shape {matrix.shape}")
    return matrix


def numbered_files(
    folder: Path, suffixes: Iterable[str] = COLOR_SUFFIXES, number_of: Callable[[str], int | None] | None = None
) -> dict[int, Path]:
    """Files by their number, in its order; numbers may have gaps and leading zeros.

    Args:
        number_of: the number in a file's stem, None where it is another kind of file; default: the stem is a number.

    Raises:
        ValueError: there is no such folder.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    suffixes = tuple(suffixes)
    number_of = number_of or number_after("")
    found = ((number_of(f.stem), f) for f in folder.iterdir() if f.suffix.lower() in suffixes)
    return dict(sorted((number, f) for number, f in found if number is not None))


def number_after(prefix: str) -> Callable[[str], int | None]:
    """For `numbered_files`: the number in stems like "frame_000012"."""

    def number_of(stem: str) -> int | None:
        digits = stem.removeprefix(prefix)
        return int(digits) if stem.startswith(prefix) and digits.isdecimal() else None

    return number_of


def _decode(data: bytes, flags: int, where: object) -> np.ndarray:
    """The image as OpenCV decodes it (BGR)."""
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
    if image is None:
        raise ValueError(f"{where}: cannot be decoded as an image ({len(data)} bytes)")
    return image
