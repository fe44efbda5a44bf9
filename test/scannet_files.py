"""Writes ScanNet files byte for byte as their public description says, with contents that the tests know."""

from __future__ import annotations

import json
import struct
import zipfile
import zlib
from pathlib import Path

import cv2
import numpy as np

LABEL_MAP = (
    "id\traw_category\tcategory\tcount\tnyu40id\teigen13id\tnyuClass\tnyu40class\n"
    "1\twall\twall\t8277\t1\t12\twall\twall\n"
    "2\tchair\tchair\t4646\t5\t4\tchair\tchair\n"
    '1191\tarmchair "old"\tchair\t12\t5\t4\tchair\tchair\n'
    "3\tfloor\tfloor\t1553\t2\t5\tfloor\tfloor\n"
    "13\tceiling fan\tfan\t9\t40\t7\tfan\totherprop\n"
    "40\tunnamed thing\tthing\t1\t\t\t\t\n"
)
K_DEPTH = np.array([[10.0, 0, 7.5, 0], [0, 10.0, 5.5, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


def png(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", image)[1].tobytes()


def jpeg(rgb: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 100])[1].tobytes()


def sens_header(
    num_frames: int,
    *,
    version: int = 4,
    K_color: np.ndarray = K_DEPTH,
    K_depth: np.ndarray = K_DEPTH,
    T_color: np.ndarray | None = None,
    T_depth: np.ndarray | None = None,
    compressions: tuple[int, int] = (2, 1),
    color_size: tuple[int, int] = (16, 12),
    depth_size: tuple[int, int] = (16, 12),
    depth_shift: float = 1000.0,
) -> bytes:
    name = b"StructureSensor"
    parts = [struct.pack("<I", version), struct.pack("<Q", len(name)), name]
    for matrix in (K_color, T_color, K_depth, T_depth):
        parts.append(struct.pack("<16f", *(np.eye(4) if matrix is None else matrix).ravel()))
    parts += [struct.pack("<ii", *compressions), struct.pack("<IIII", *color_size, *depth_size)]
    parts += [struct.pack("<f", depth_shift), struct.pack("<Q", num_frames)]
    return b"".join(parts)


def sens_frame(T: np.ndarray, color: bytes, depth: bytes, stamp_us: int = 0) -> bytes:
    head = struct.pack("<16f", *np.asarray(T).ravel()) + struct.pack("<QQ", stamp_us, stamp_us + 5)
    return head + struct.pack("<QQ", len(color), len(depth)) + color + depth


def depth_bytes(depth_mm: np.ndarray) -> bytes:
    return zlib.compress(depth_mm.astype("<u2").tobytes())


def write_zip(path: Path, folder: str, images: dict[int, np.ndarray]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for number, image in images.items():
            archive.writestr(f"{folder}/{number}.png", png(image))


def write_mesh(scene: Path, points: np.ndarray, labels: np.ndarray, segments: list[int], groups: list[dict]) -> None:
    """The mesh files of a scene: binary PLY with one face, labels, segments and aggregation."""
    name = scene.name
    plain = [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("red", "u1"), ("green", "u1"), ("blue", "u1"), ("alpha", "u1")]
    for suffix, layout in (("", plain), (".labels", [*plain, ("label", "<u2")])):
        vertices = np.zeros(len(points), layout)
        vertices["x"], vertices["y"], vertices["z"] = np.asarray(points, np.float32).T
        if suffix:
            vertices["label"] = labels
        kinds = {"<f4": "float", "u1": "uchar", "<u2": "ushort"}
        header = ["ply", "format binary_little_endian 1.0", "comment MLIB generated", f"element vertex {len(points)}"]
        header += [f"property {kinds[kind]} {field}" for field, kind in layout]
        header += ["element face 1", "property list uchar int vertex_indices", "end_header", ""]
        data = "\n".join(header).encode() + vertices.tobytes() + struct.pack("<Biii", 3, 0, 1, 2)
        (scene / f"{name}_vh_clean_2{suffix}.ply").write_bytes(data)
    (scene / f"{name}_vh_clean_2.0.010000.segs.json").write_text(
        json.dumps({"params": {"kThresh": "0.0001"}, "sceneId": name, "segIndices": segments})
    )
    (scene / f"{name}.aggregation.json").write_text(
        json.dumps({"sceneId": f"scannet.{name}", "appId": "Aggregator.v2", "segGroups": groups})
    )
