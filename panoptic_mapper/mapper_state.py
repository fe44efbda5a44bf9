"""The mapper's state as plain arrays and JSON values, for saving and going on later.

Adam's moments are not kept: they settle again within a few steps. Keyframe images are kept compressed (colour as JPEG),
because replaying them is what keeps old parts of the map from being forgotten.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch

from panoptic_mapper.frame import PinholeCamera
from panoptic_mapper.gaussian_map import BOOK, HARMONICS, INSTANCE_DIM, SEMANTIC_DIM, WIDTHS
from panoptic_mapper.instances import COUNTS, Sighting
from panoptic_mapper.keyframes import Keyframe
from panoptic_mapper.label_space import LabelSpace
from panoptic_mapper.spherical_harmonics import degree_of_width

if TYPE_CHECKING:
    from panoptic_mapper.mapper import PanopticMapper

JPEG_QUALITY = 95
DEPTH_UNIT_M = 1e-3
QUERY_RECORDS = ("ids", "evidence", "counts", "votes")
HEAD_PARAMETERS = ("codes", "key_projection")


def export_state(mapper: PanopticMapper) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays by name, and what describes them."""
    gaussians, queries, head = mapper.map.gaussians, mapper.map.queries, mapper.map.head
    tensors = {f"gaussians/{name}": gaussians[name] for name in (*gaussians.widths, *BOOK)}
    tensors |= {f"queries/{name}": queries.table[name] for name in queries.table.widths}
    tensors |= {f"queries/{name}": getattr(queries, name) for name in QUERY_RECORDS}
    tensors |= {f"head/{name}": getattr(head, name) for name in HEAD_PARAMETERS}
    arrays = {name: tensor.detach().cpu().contiguous().numpy() for name, tensor in tensors.items()}
    for keyframe in mapper.keyframes.all:
        arrays |= _encoded_images(keyframe)
        if keyframe.sighting is not None:
            arrays |= {f"{_folder(keyframe.id)}/{name}": t.numpy() for name, t in vars(keyframe.sighting).items()}
    meta = {
        "label_space": mapper.label_space.to_dict(),
        "up": mapper.up.tolist(),
        "num_frames": mapper.num_frames,
        "last_stamp_ns": mapper.last_stamp_ns,
        "next_id": queries.next_id,
        "merged_into": {str(gone): kept for gone, kept in queries.merged_into.items()},
        "keyframes": [_described(keyframe) for keyframe in mapper.keyframes.all],
        "seen_by": [list(map(list, shares.items())) for shares in mapper.keyframes.covisibility.seen_by],
    }
    return arrays, meta


def restore_state(mapper: PanopticMapper, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
    """Replaces the mapper's map by a saved one.

    Raises:
        ValueError: the label spaces differ and the mapper's is not open, or something is missing or of another shape;
            the map is as before.
    """
    try:
        saved = LabelSpace.from_dict(meta["label_space"])
        present = mapper.label_space
        if present.is_open:
            saved = replace(saved, is_open=True)
            saved.extended(present)  # raises where they contradict each other
        elif saved != present:
            raise ValueError(
                f"the map was made with classes {', '.join(saved.names[1:6])}... ({len(saved) - 1}), but the"
                f" segmenter's: {', '.join(mapper.label_space.names[1:6])}... ({len(mapper.label_space) - 1})"
            )
        _check_shapes(mapper, arrays, len(saved))
        keyframes = [_decoded(described, arrays, mapper.device) for described in meta["keyframes"]]
        seen_by = [{int(j): float(share) for j, share in shares} for shares in meta["seen_by"]]
        merged_into = {int(gone): kept for gone, kept in meta["merged_into"].items()}
        up, next_id = np.array(meta["up"]), int(meta["next_id"])
        num_frames, last_stamp_ns = int(meta["num_frames"]), int(meta["last_stamp_ns"])
    except KeyError as error:
        raise ValueError(f"the saved map is incomplete: {error} is missing") from error
    tensors = {n: torch.from_numpy(a.copy()) for n, a in arrays.items() if not n.startswith("keyframes/")}
    mapper.label_space = saved
    mapper.reset()
    columns = {name: tensors[f"gaussians/{name}"] for name in _columns(arrays)}
    book = {name: tensors[f"gaussians/{name}"] for name in BOOK}
    mapper.map.gaussians.restore(columns, book)
    queries = mapper.map.queries
    queries.table.append(**{name: tensors[f"queries/{name}"] for name in queries.table.widths})
    for name in QUERY_RECORDS:
        setattr(queries, name, tensors[f"queries/{name}"])
    queries.next_id, queries.merged_into = next_id, merged_into
    with torch.no_grad():
        for name in HEAD_PARAMETERS:
            getattr(mapper.map.head, name).copy_(tensors[f"head/{name}"])
    mapper.keyframes.restore(keyframes, seen_by)
    mapper.up, mapper.num_frames, mapper.last_stamp_ns = up, num_frames, last_stamp_ns
    mapper.extend_label_space(present)


def _check_shapes(mapper: PanopticMapper, arrays: dict[str, np.ndarray], num_classes: int) -> None:
    """Raises ValueError naming the array whose shape is not that of this map's; KeyError where one is missing."""
    N, Q = len(arrays["gaussians/means"]), len(arrays["queries/ids"])
    shapes: dict[str, tuple[int, ...]] = {f"gaussians/{name}": (N, width) for name, width in _columns(arrays).items()}
    shapes |= {f"gaussians/{name}": (N,) for name in BOOK}
    shapes |= {f"queries/{name}": (Q, width) for name, width in mapper.map.queries.table.widths.items()}
    shapes |= {"queries/ids": (Q,), "queries/evidence": (Q, num_classes)}
    shapes |= {"queries/counts": (Q, len(COUNTS)), "queries/votes": (Q, Q)}
    shapes |= {"head/codes": (num_classes, SEMANTIC_DIM), "head/key_projection": (INSTANCE_DIM, INSTANCE_DIM)}
    for name, shape in shapes.items():
        if arrays[name].shape != shape:
            raise ValueError(f"the saved map has {name} of shape {arrays[name].shape}, expected {shape}")


def _columns(arrays: dict[str, np.ndarray]) -> dict[str, int]:
    """The learnable columns of saved Gaussians with their widths; the colours may have more bands than this map's."""
    if f"gaussians/{HARMONICS}" not in arrays:
        return WIDTHS
    width = arrays[f"gaussians/{HARMONICS}"].shape[-1]
    degree_of_width(width)
    return WIDTHS | {HARMONICS: width}


def _described(keyframe: Keyframe) -> dict[str, Any]:
    return {
        "id": keyframe.id,
        "stamp_ns": keyframe.stamp_ns,
        "camera": vars(keyframe.camera),
        "T_map_camera": keyframe.T_map_camera.tolist(),
        "mask_classes": keyframe.mask_classes,
        "mask_scores": keyframe.mask_scores,
        "mask_px": keyframe.mask_px,
        "mask_ids": keyframe.mask_ids,
        "num_steps": keyframe.num_steps,
    }


def _encoded_images(keyframe: Keyframe) -> dict[str, np.ndarray]:
    color = keyframe.color.cpu().numpy()[..., ::-1]
    depth = np.clip(np.rint(keyframe.depth.cpu().numpy() / DEPTH_UNIT_M), 0, 65535).astype(np.uint16)
    images = {
        "color": cv2.imencode(".jpg", color, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1],
        "depth": cv2.imencode(".png", depth)[1],
        "semantic": cv2.imencode(".png", keyframe.semantic.cpu().numpy().astype(np.uint16))[1],
        "mask_index": cv2.imencode(".png", keyframe.mask_index.cpu().numpy().astype(np.uint16))[1],
        "confidence": cv2.imencode(".png", np.rint(255 * keyframe.confidence.cpu().numpy()).astype(np.uint8))[1],
    }
    return {f"{_folder(keyframe.id)}/{name}": image.ravel() for name, image in images.items()}


def _folder(keyframe_id: int) -> str:
    return f"keyframes/{keyframe_id:06d}"


def _decoded(described: dict[str, Any], arrays: dict[str, np.ndarray], device: torch.device) -> Keyframe:
    folder = _folder(described["id"])

    def image(name: str) -> np.ndarray:
        decoded = cv2.imdecode(arrays[f"{folder}/{name}"], cv2.IMREAD_UNCHANGED)
        if decoded is None:
            raise ValueError(f"the saved map has an unreadable {name} image of keyframe {described['id']}")
        return decoded

    return Keyframe(
        id=described["id"],
        stamp_ns=described["stamp_ns"],
        camera=PinholeCamera(**described["camera"]),
        T_map_camera=np.array(described["T_map_camera"]),
        color=torch.tensor(image("color")[..., ::-1].copy(), device=device),
        depth=torch.tensor(image("depth").astype(np.float32) * DEPTH_UNIT_M, device=device),
        semantic=torch.tensor(image("semantic").astype(np.int32), device=device),
        mask_index=torch.tensor(image("mask_index").astype(np.int32), device=device),
        confidence=torch.tensor(image("confidence").astype(np.float32) / 255, device=device),
        mask_classes=described["mask_classes"],
        mask_scores=described["mask_scores"],
        mask_px=described["mask_px"],
        sighting=_sighting(arrays, folder),
        mask_ids=described["mask_ids"],
        num_steps=described["num_steps"],
    )


def _sighting(arrays: dict[str, np.ndarray], folder: str) -> Sighting | None:
    """What a keyframe said about the queries; None where it was never matched to any."""
    if f"{folder}/ids" not in arrays:
        return None
    return Sighting(
        *(torch.from_numpy(arrays[f"{folder}/{name}"].copy()) for name in ("ids", "votes", "contradicted", "visible"))
    )
