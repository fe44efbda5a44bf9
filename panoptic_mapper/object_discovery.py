"""The life of objects: masks are matched to queries, unmatched masks open new ones, duplicates merge, ghosts retire."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from torch import Tensor

from panoptic_mapper.association import (
    AssociationConfig,
    MaskOverlap,
    mask_overlap,
    match_masks,
    match_parts,
    min_query_px,
    overlap_sums,
    pixel_scale,
    same_object_votes,
)
from panoptic_mapper.density_control import DensityConfig, read_at_centers, tolerance, usable_depth
from panoptic_mapper.instances import InstanceQueries, Sighting
from panoptic_mapper.keyframes import Keyframe, KeyframeStore
from panoptic_mapper.label_rendering import LabelRendering
from panoptic_mapper.label_space import UNLABELED
from panoptic_mapper.panoptic_map import MapView, PanopticMap
from panoptic_mapper.rasterizers.base import Rendering
from panoptic_mapper.transfers import to_device, to_host

MIN_LABELLED_SHARE = 0.5  # a query with fewer labelled pixels is not contradicted: the 2D model did not say what it is
MAX_POINTS = 1000  # of a mask that may show a new object
NEW = 2  # state of a mask that opened a query: all Gaussians in it get its label


@torch.no_grad()
def associate(
    keyframe: Keyframe,
    view: MapView,
    rendering: Rendering,
    labels: LabelRendering,
    queries: InstanceQueries,
    config: AssociationConfig,
    density: DensityConfig,
) -> list[int]:
    """Matches the masks of a keyframe to the queries in view, unless that was done for the present queries.

    Fills `mask_ids`, `disputed` and `sighting`. It is done again when the keyframe is replayed: what looked like one
    object may have turned out to be two since, or a part of another one.

    Returns:
        The masks that lie on an object that has another mask too: parts of it, or objects of their own.
    """
    if not keyframe.has_labels or len(view.queries) == 0 or keyframe.revision == queries.revision:
        return []
    num_masks, masks = len(keyframe.mask_ids) - 1, labels.masks
    same_surface = (rendering.depth - keyframe.depth).abs() < tolerance(keyframe.depth, density)
    explained = (rendering.alpha > 0.5) & (same_surface | (keyframe.depth == 0))
    sums, px = overlap_sums(masks, keyframe.mask_index, explained, keyframe.semantic > 0, num_masks)
    sums, px, rows = to_host(sums, px, view.queries.ids)
    overlap = mask_overlap(sums, px, min_query_px(masks))
    class_probs = queries.class_probabilities(rows)[:, keyframe.mask_classes[1:]].T
    matches = match_masks(overlap, class_probs, config)
    parts = match_parts(overlap, torch.tensor(keyframe.mask_px[1:]), matches, config)
    min_px = queries.config.min_mask_px * pixel_scale(keyframe.mask_index)
    parts = [(k, q) for k, q in parts if keyframe.mask_px[k + 1] >= min_px]
    own = torch.full((num_masks + 1,), -1)
    for mask, query in matches + parts:
        keyframe.mask_ids[mask + 1] = int(queries.ids[rows[query]])
        own[mask + 1] = query
    sighting = _sighting(keyframe, queries.ids[rows], overlap, config)
    queries.replace_sighting(keyframe.sighting, sighting)
    keyframe.sighting, keyframe.revision = sighting, queries.revision
    keyframe.disputed = _disputed(keyframe, own, overlap, masks, queries.votes[rows[:, None], rows], config)
    return [mask + 1 for mask, _ in parts]


def _sighting(keyframe: Keyframe, ids: Tensor, overlap: MaskOverlap, config: AssociationConfig) -> Sighting:
    """What a keyframe's masks say about the queries `ids` [Q] in view."""
    explained_px = overlap.explained_px
    is_labelled = (overlap.shown_px > MIN_LABELLED_SHARE * explained_px) & (overlap.shown_px > overlap.min_px)
    is_covered = overlap.is_covered(config.covered_share).sum(0) > 0
    is_contradicted = is_labelled & ~is_covered & ~torch.isin(ids, torch.tensor(keyframe.mask_ids))
    is_visible = explained_px > overlap.min_px
    return Sighting(ids, same_object_votes(overlap, config), is_contradicted.long(), is_visible.long())


def _disputed(
    keyframe: Keyframe, own: Tensor, overlap: MaskOverlap, masks: Tensor, votes: Tensor, config: AssociationConfig
) -> Tensor | None:
    """Pixels [H, W] bool in a mask that also covers another object than its `own` [K + 1], where the map shows that.

    None where no mask covers another one.
    """
    covered = overlap.is_covered(config.covered_share)
    other = covered & (votes[own[1:].clamp_min(0)] < 0) & (own[1:] >= 0)[:, None]  # [K, Q]
    if not bool(other.any()):
        return None
    other = to_device(torch.cat([other.new_zeros(1, masks.shape[-1]), other]), masks.device)
    share, shown = masks.max(-1)
    return other[keyframe.mask_index.long(), shown] & (share > 0.5)


@torch.no_grad()
def open_queries(
    keyframe: Keyframe, parts: list[int], map: PanopticMap, config: AssociationConfig, density: DensityConfig
) -> list[int]:
    """Gives each unmatched mask to an unmatched object at its place, or opens a query; returns the new ids.

    A mask that shows a side of an object that was never seen overlaps with nothing that can be rendered; its place and
    its class are then what tells that it is a known object. `parts` get a query of their own on trial: most often
    the 2D model has cut an object in two, and the votes of other keyframes soon merge them again.

    All is done in host memory: it is about a few thousand pixels, and masks are taken one after the other.
    """
    queries = map.queries
    unmatched = [mask for mask in range(1, len(keyframe.mask_ids)) if not keyframe.mask_ids[mask] or mask in parts]
    if not unmatched:
        return []
    min_px = queries.config.min_mask_px * pixel_scale(keyframe.mask_index)
    geometry = cache(queries.geometry_on_host)  # copied if it is asked
    in_view = _in_view(keyframe, queries)
    opened: list[int] = []
    opened_points: list[Tensor] = []
    for mask, (points, num_px) in zip(unmatched, _points_of_masks(keyframe, unmatched, density), strict=True):
        if num_px < min_px:
            continue
        row = -1 if mask in parts else _object_at(points, mask, keyframe, in_view, queries, geometry, config)
        if row >= 0:
            keyframe.mask_ids[mask] = int(queries.ids[row])
        elif not queries.is_full(len(opened)):
            opened.append(mask)
            opened_points.append(points)
    parents = [keyframe.mask_ids[mask] for mask in opened]
    new_ids = queries.add_all(opened_points, keyframe.stamp_ns, parents)
    for mask, id in zip(opened, new_ids, strict=True):
        keyframe.mask_ids[mask] = id
    return new_ids


def _in_view(keyframe: Keyframe, queries: InstanceQueries) -> list[tuple[int, int, int]]:
    """Row, public id and class index of each living query in view of a keyframe."""
    if keyframe.sighting is None:
        return []
    rows = queries.rows_of(keyframe.sighting.ids)
    rows = rows[rows >= 0]
    columns = (rows, queries.ids[rows], queries.class_indices[rows])
    return list(zip(*(column.tolist() for column in columns), strict=True))


def _object_at(
    points: Tensor,
    mask: int,
    keyframe: Keyframe,
    in_view: list[tuple[int, int, int]],
    queries: InstanceQueries,
    geometry: Callable[[], tuple[Tensor, Tensor, Tensor]],
    config: AssociationConfig,
) -> int:
    """The row of the object in view that is where the points [P, 3] of a mask are, has its class and no mask, or -1."""
    own_class = keyframe.mask_classes[mask]
    candidates = [row for row, id, c in in_view if c == own_class and id not in keyframe.mask_ids]
    if not candidates:
        return -1
    share, best = queries.share_near(points, torch.tensor(candidates), geometry()).max(0)
    return candidates[best] if share >= config.near_share else -1


def _points_of_masks(keyframe: Keyframe, masks: list[int], density: DensityConfig) -> list[tuple[Tensor, int]]:
    """Points [n, 3] (m, map frame) that each of some masks shows, in host memory, and how many pixels show one.

    At most MAX_POINTS of each, evenly over the mask: more cost time, and say the same.
    """
    images = keyframe.images_on_host()
    depth = images.depth.ravel()
    camera, T = keyframe.camera, keyframe.T_map_camera.astype(np.float32)
    found = []
    for mask in masks:
        pixels = images.masks.pixels_of(mask)
        pixels = pixels[usable_depth(depth[pixels], density)]
        chosen = pixels[:: 1 + len(pixels) // MAX_POINTS]
        v, u = np.divmod(chosen, camera.width)
        z = depth[chosen]
        points = np.stack([(u - camera.cx) / camera.fx * z, (v - camera.cy) / camera.fy * z, z], axis=-1)
        found.append((torch.from_numpy(points.astype(np.float32) @ T[:3, :3].T + T[:3, 3]), len(pixels)))
    return found


@torch.no_grad()
def label_from(
    keyframe: Keyframe,
    new_ids: list[int],
    surface: Tensor,
    map: PanopticMap,
    ids: Tensor,
    density: DensityConfig,
    renewed: Tensor | None = None,
) -> None:
    """Gives Gaussians the keyframe's label at their pixel of `surface` [H, W] m, to be right at once.

    These are, of the rows `ids` [V] that may be in view, Gaussians without a label, things of no object where a mask
    says of which, all in the masks that opened a query, and those of the rows `renewed` [n].
    """
    book, device = map.gaussians, surface.device
    semantic = keyframe.semantic * usable_depth(surface, density)
    images = torch.stack([surface, semantic.float(), keyframe.mask_index.float(), keyframe.confidence])
    depth, at_pixel = read_at_centers(book["means"][ids], keyframe, images)
    surface_there, class_there, mask_there, _ = at_pixel
    is_on_surface = ((depth - surface_there).abs() < tolerance(surface_there, density)) & (class_there > 0)
    rows_in_view, masks = _mask_labels(keyframe, new_ids, map.queries)
    mask_labels = to_device(masks, device)[mask_there.long()]  # [V, 3]
    old_class = book["class_index"][ids].long()
    is_lost = map.head.is_thing[old_class] & ~map.queries.are_living(book["instance_id"][ids])
    is_due = (old_class == UNLABELED) | (is_lost + mask_labels[:, 2] >= NEW)
    if renewed is not None:
        is_renewed = torch.zeros(len(book), dtype=torch.bool, device=device).index_fill_(0, renewed, True)
        is_due |= is_renewed[ids]
    chosen = (is_on_surface & is_due).nonzero()[:, 0]
    ids, (public_ids, own, _) = ids[chosen], mask_labels[chosen].unbind(1)
    _, class_index, _, confidence = at_pixel[:, chosen]
    class_index = class_index.long()
    keys = map.head.keys(map.queries.table["embeddings"][to_device(rows_in_view, device)])
    semantics = map.head.semantic_features(class_index, confidence)
    map.gaussians.set_rows(ids, semantics=semantics, instances=map.head.instance_features(keys, own))
    probability = map.head.class_probabilities(semantics).gather(1, class_index[:, None])[:, 0]
    map.gaussians["class_index"][ids] = class_index.int()
    map.gaussians["instance_id"][ids] = public_ids.int()
    map.gaussians["confidence_permille"][ids] = (1000 * probability).int()


def _mask_labels(keyframe: Keyframe, new_ids: list[int], queries: InstanceQueries) -> tuple[Tensor, Tensor]:
    """Rows [n] of the queries that the masks of a keyframe show, and what its masks 0..K say, in host memory.

    The latter [K + 1, 3] int64 are the public id, the place of its query in the former, -1 = none, and NEW where it is
    one of `new_ids`, NEW - 1 where it is another one: enough for things of no object; 0 without an id.
    """
    public_ids = torch.tensor(keyframe.mask_ids)
    rows = queries.rows_of(public_ids)
    shown, place = rows.unique(return_inverse=True)  # ascending, -1 first
    num_without = int((shown < 0).sum())
    is_new = torch.isin(public_ids, torch.tensor(new_ids, dtype=torch.int64))
    states = torch.where(is_new, NEW, (public_ids > 0).long() * (NEW - 1))
    return shown[num_without:], torch.stack([public_ids, place - num_without, states], dim=1)


@torch.no_grad()
def maintain_queries(map: PanopticMap, keyframes: KeyframeStore) -> None:
    """Merges queries that turned out to be one object and retires those that the 2D labels keep contradicting."""
    queries = map.queries
    if len(queries) == 0:
        return
    for keep, gone in _merges(queries):
        queries.merge(keep, gone)
        _relabel(map, int(queries.ids[gone]), keep)
    ghosts = queries.column("contradictions") >= queries.column("observations") + queries.config.retire_after
    merged = torch.tensor([id in queries.merged_into for id in queries.ids.tolist()])
    if bool((ghosts | merged).any()):
        queries.remove((ghosts | merged).nonzero()[:, 0].tolist())
        keyframes.resolve_ids({id: queries.resolve(id) for id in queries.merged_into})
    queries.count(keyframes.observations())


@torch.no_grad()
def refit_queries(map: PanopticMap) -> None:
    """Moves the queries' 3D Gaussians to where the Gaussians of the map that carry their label are."""
    confidence = map.gaussians["confidence_permille"] / 1000
    weights = confidence * map.gaussians["opacity_logits"][:, 0].sigmoid()
    map.queries.refit(map.gaussians["means"], weights, map.queries.rows_of(map.gaussians["instance_id"].long()))


def _merges(queries: InstanceQueries) -> list[tuple[int, int]]:
    """Disjoint pairs (keep, gone) of rows whose votes say that they are one object; the older id is kept."""
    votes = torch.triu(queries.votes, diagonal=1)
    pairs, taken = [], set()
    needed = queries.config.merge_evidence / queries.class_agreement()
    for keep, gone in (votes >= needed).nonzero().tolist():
        if keep not in taken and gone not in taken:
            pairs.append((keep, gone))
            taken |= {keep, gone}
    return pairs


def _relabel(map: PanopticMap, old_id: int, new_row: int) -> None:
    """Hands the Gaussians of an object over to another query."""
    ids = (map.gaussians["instance_id"] == old_id).nonzero()[:, 0]
    keys = map.head.keys(map.queries.table["embeddings"])
    own = torch.full_like(ids, new_row)
    map.gaussians.set_rows(ids, instances=map.head.instance_features(keys, own))
    map.gaussians["instance_id"][ids] = int(map.queries.ids[new_row])
