"""PLY files of a map: a labelled point cloud, a mesh, and the Gaussians in the layout of the original 3DGS viewers.

Written with numpy alone (binary little endian), so that saving needs no Open3D and its system libraries.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from panoptic_mapper.snapshot import MapSnapshot

SH_C0 = 0.28209479177387814  # the constant spherical harmonic, 1 / (2 sqrt(pi)): rgb = 0.5 + SH_C0 * f_dc

_PLY_TYPES = {"<f4": "float", "|u1": "uchar", "<i4": "int"}
_LABELED = "x:<f4 y:<f4 z:<f4 red:u1 green:u1 blue:u1 class:<i4 instance:<i4 confidence:<f4"
_MESH = "x:<f4 y:<f4 z:<f4 red:u1 green:u1 blue:u1 class:<i4 instance:<i4"
_GAUSSIAN_BEFORE_HARMONICS = "x:<f4 y:<f4 z:<f4 nx:<f4 ny:<f4 nz:<f4 f_dc_0:<f4 f_dc_1:<f4 f_dc_2:<f4"
_GAUSSIAN_AFTER_HARMONICS = "opacity:<f4 scale_0:<f4 scale_1:<f4 scale_2:<f4 rot_0:<f4 rot_1:<f4 rot_2:<f4 rot_3:<f4"


def save_labeled_ply(path: Path, snapshot: MapSnapshot) -> None:
    """Writes x y z (m, map frame) red green blue class instance confidence; `class` is the public class id.

    Raises:
        ValueError: naming the file, when it cannot be written.
    """
    vertices = _vertices(len(snapshot.points), _LABELED)
    _fill(vertices, "x y z", snapshot.points)
    _fill(vertices, "red green blue", snapshot.colors)
    vertices["class"] = snapshot.label_space.ids[snapshot.class_indices]
    vertices["instance"] = snapshot.instance_ids
    vertices["confidence"] = snapshot.confidences
    _write(path, vertices)


def save_gaussian_ply(
    path: Path,
    means: np.ndarray,  # [N, 3] map frame, m
    quats: np.ndarray,  # [N, 4] wxyz
    log_scales: np.ndarray,  # [N, 3] log of standard deviations in m
    opacity_logits: np.ndarray,  # [N]
    colors: np.ndarray,  # [N, 3] rgb, 0..1
    harmonics: np.ndarray | None = None,  # [N, 3 K] rgb triples of the K coefficients of the higher bands
) -> None:
    """Writes the Gaussians as 3DGS viewers read them; normals are 0, as in the original files.

    Raises:
        ValueError: naming the file, when it cannot be written.
    """
    width = 0 if harmonics is None else harmonics.shape[1]
    rest = [f"f_rest_{k}" for k in range(width)]
    properties = [_GAUSSIAN_BEFORE_HARMONICS, *(f"{name}:<f4" for name in rest), _GAUSSIAN_AFTER_HARMONICS]
    vertices = _vertices(len(means), " ".join(properties))
    _fill(vertices, "x y z", means)
    _fill(vertices, "f_dc_0 f_dc_1 f_dc_2", (np.asarray(colors) - 0.5) / SH_C0)
    if harmonics is not None:
        by_channel = harmonics.reshape(len(means), width // 3, 3).transpose(0, 2, 1)  # there, first all of red
        _fill(vertices, " ".join(rest), by_channel.reshape(len(means), width))
    vertices["opacity"] = opacity_logits
    _fill(vertices, "scale_0 scale_1 scale_2", log_scales)
    _fill(vertices, "rot_0 rot_1 rot_2 rot_3", quats)
    _write(path, vertices)


def save_mesh_ply(
    path: Path,
    vertices: np.ndarray,  # [V, 3] map frame, m
    triangles: np.ndarray,  # [T, 3] rows of `vertices`
    colors: np.ndarray,  # [V, 3] uint8 RGB
    class_ids: np.ndarray,  # [V] public class id
    instance_ids: np.ndarray,  # [V] public object id
) -> None:
    """Writes a triangle mesh with x y z red green blue class instance at each vertex.

    Raises:
        ValueError: naming the file, when it cannot be written.
    """
    rows = _vertices(len(vertices), _MESH)
    _fill(rows, "x y z", vertices)
    _fill(rows, "red green blue", colors)
    rows["class"], rows["instance"] = class_ids, instance_ids
    faces = np.zeros(len(triangles), [("count", "u1"), ("rows", "<i4", (3,))])
    faces["count"], faces["rows"] = 3, triangles
    _write(path, rows, faces)


def _vertices(count: int, properties: str) -> np.ndarray:
    return np.zeros(count, [(name, kind) for name, kind in (word.split(":") for word in properties.split())])


def _fill(vertices: np.ndarray, names: str, columns: np.ndarray) -> None:
    for k, name in enumerate(names.split()):
        vertices[name] = columns[:, k]


def _write(path: Path, vertices: np.ndarray, faces: np.ndarray | None = None) -> None:
    properties = [f"property {_PLY_TYPES[vertices.dtype[name].str]} {name}" for name in vertices.dtype.names or ()]
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(vertices)}", *properties]
    if faces is not None:
        header += [f"element face {len(faces)}", "property list uchar int vertex_indices"]
    try:
        with open(path, "wb") as file:
            file.write("\n".join([*header, "end_header", ""]).encode("ascii"))
            file.write(vertices.tobytes())
            if faces is not None:
                file.write(faces.tobytes())
    except OSError as error:
        raise ValueError(f"{path}: the PLY file cannot be written: {error}") from error
