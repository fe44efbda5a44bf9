"""The vertices of a PLY file, whatever their properties."""

from __future__ import annotations

from pathlib import Path
from typing import IO

import numpy as np

_TYPES = {
    **dict.fromkeys(("char", "int8"), "i1"),
    **dict.fromkeys(("uchar", "uint8"), "u1"),
    **dict.fromkeys(("short", "int16"), "i2"),
    **dict.fromkeys(("ushort", "uint16"), "u2"),
    **dict.fromkeys(("int", "int32"), "i4"),
    **dict.fromkeys(("uint", "uint32"), "u4"),
    **dict.fromkeys(("float", "float32"), "f4"),
    **dict.fromkeys(("double", "float64"), "f8"),
}
_ORDERS = {"binary_little_endian": "<", "binary_big_endian": ">", "ascii": "="}
_MAX_HEADER_LINES = 1000


def read_ply_vertices(path: Path) -> np.ndarray:  # [V] structured, one field a property
    """The element "vertex" of a PLY file, which must come first, as all writers put it.

    Raises:
        ValueError: naming the file, which is missing, no PLY file, or cut off.
    """
    try:
        with open(path, "rb") as file:
            order, count, dtype = _read_header(path, file)
            if order == "ascii":
                return _read_text(path, file, count, dtype)
            data = file.read(count * dtype.itemsize)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error})") from error
    if len(data) != count * dtype.itemsize:
        expected = f"{count} vertices of {dtype.itemsize} bytes"
        raise ValueError(f"{path}: expected {expected} as the header says, the file has {len(data)} bytes of them")
    return np.frombuffer(data, dtype)


def _read_header(path: Path, file: IO[bytes]) -> tuple[str, int, np.dtype]:
    """Format, number of vertices, and their layout."""
    if file.readline().strip() != b"ply":
        raise ValueError(f"{path}: expected a PLY file, which begins with 'ply'")
    order, count, fields, element = "", -1, [], ""
    for _ in range(_MAX_HEADER_LINES):
        line = file.readline().decode("ascii", "replace")
        words = line.split()
        if not line or words == ["end_header"]:
            break
        match words:
            case ["format", name, _] if name in _ORDERS:
                order = name
            case ["element", "vertex", number] if number.isdecimal() and not element:
                element, count = "vertex", int(number)
            case ["element", name, _]:
                if count < 0:
                    raise ValueError(f"{path}: expected the element 'vertex' first, got '{name}'")
                element = name
            case ["property", kind, name] if element == "vertex" and kind in _TYPES:
                fields.append((name, _TYPES[kind]))
            case ["property", *_] if element == "vertex":
                raise ValueError(f"{path}: expected vertex properties of plain numbers, got '{line.strip()}'")
    if words != ["end_header"] or not order or count < 0 or not fields:
        raise ValueError(f"{path}: the PLY header is incomplete (format, element vertex, properties, end_header)")
    return order, count, np.dtype([(name, _ORDERS[order] + kind) for name, kind in fields])


def _read_text(path: Path, file: IO[bytes], count: int, dtype: np.dtype) -> np.ndarray:
    lines = [file.readline().split() for _ in range(count)]
    try:
        return np.array([tuple(float(word) for word in line) for line in lines], dtype=dtype)
    except ValueError as error:
        raise ValueError(f"{path}: expected {count} lines of {len(dtype.names or ())} numbers ({error})") from error
