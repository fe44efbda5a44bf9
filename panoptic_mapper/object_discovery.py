"""The life of objects: masks are matched to queries, unmatched masks open new ones, duplicates merge, ghosts retire."""

from __future__ import annotations

import torch
from torch import Tensor

from panoptic_mapper.association import (
    AssociationConfig,
    MaskOverlap,
    mask_overlap,
    match_masks,
    match_parts,
    pixel_scale,
    same_object_votes,
)
from panoptic_mapper.density_control import DensityConfig, depth_at_centers, tolerance, usable_depth
from panoptic_mapper.geometry import backproject, transform
from panoptic_mapper.instances import InstanceQueries, Sighting
from panoptic_mapper.keyframes import Keyframe, KeyframeStore
from panoptic_mapper.label_space import UNLABELED
from panoptic_mapper.panoptic_map import MapView, PanopticMap
from panoptic_mapper.rasterizers.base import Rendering
from panoptic_mapper.transfers import to_device

MIN_LABELLED_SHARE = 0.5  # a query with fewer labelled pixels is not contradicted: the 2D model did not say what it is


@torch.no_grad()
def associate(
    keyframe: Keyframe,
    view: MapView,
    rendering: Rendering,
    masks: Tensor,
    queries: InstanceQueries,
    config: AssociationConfig,
    density: DensityConfig,
) -> list[int]:
    """Matches the masks of a keyframe to the queries in view, unless that was done for the present queries.

    Fills `mask_ids`, `disputed` and `sighting`. It is done again when the keyframe is replayed: what looked like one
    object may have turned out to be two since, or a part of another one.

    Args:
        masks: [H, W, Q] rendered masks of the queries in view.

    Returns:
        The masks that lie on an object that has another mask too: parts of it, or objects of their own.
    """
    if not keyframe.has_labels or len(view.queries) == 0 or keyframe.revision == queries.revision:
        return []
    num_masks = len(keyframe.mask_ids) - 1
    same_surface = (rendering.depth - keyframe.depth).abs() < tolerance(keyframe.depth, density)
    explained = (rendering.alpha > 0.5) & (same_surface | (keyframe.depth == 0))
    overlap = mask_overlap(masks, keyframe.mask_index, explained & (keyframe.semantic > 0), num_masks)
    explained_px = ((masks > 0.5) & explained[..., None]).sum((0, 1))
    overlap, (rows, explained_px) = overlap.on_host(view.queries.ids, explained_px)
    class_probs = queries.class_probabilities(rows)[:, keyframe.mask_classes[1:]].T
    matches = match_masks(overlap, class_probs, config)
    parts = match_parts(overlap, torch.tensor(keyframe.mask_px[1:]), matches, config)
    min_px = queries.config.min_mask_px * pixel_scale(keyframe.mask_index)
    parts = [(k, q) for k, q in parts if keyframe.mask_px[k + 1] >= min_px]
    own = torch.full((num_masks + 1,), -1)
    for mask, query in matches + parts:
        keyframe.mask_ids[mask + 1] = int(queries.ids[rows[query]])
        own[mask + 1] = query
    sighting = _sighting(keyframe, queries.ids[rows], overlap, explained_px, config)
    queries.replace_sighting(keyframe.sighting, sighting)
    keyframe.sighting, keyframe.revision = sighting, queries.revision
    keyframe.disputed = _disputed(keyframe, own, overlap, masks, queries.votes[rows[:, None], rows], config)
    return [mask + 1 for mask, _ in parts]


def _sighting(
    keyframe: Keyframe, ids: Tensor, overlap: MaskOverlap, explained_px: Tensor, config: AssociationConfig
) -> Sighting:
    """What a keyframe's masks say about the queries `ids` [Q] in view, shown in `explained_px` [Q], labelled or not."""
    is_labelled = (overlap.shown_px > MIN_LABELLED_SHARE * explained_px) & (overlap.shown_px > overlap.min_px)
    is_covered = overlap.is_covered(config.covered_share).sum(0) > 0
    is_contradicted = is_labelled & ~is_covered & ~torch.isin(ids, torch.tensor(keyframe.mask_ids))
    is_visible = explained_px > overlap.min_px
    return Sighting(ids, same_object_votes(overlap, config), is_contradicted.long(), is_visible.long())


def _disputed(
    keyframe: Keyframe, own: Tensor, overlap: MaskOverlap, masks: Tensor, votes: Tensor, config: AssociationConfig
) -> Tensor:
    """Pixels [H, W] bool in a mask that also covers another object than its `own` [K + 1], where the map shows that."""
    covered = overlap.is_covered(config.covered_share)
    other = covered & (votes[own[1:].clamp_min(0)] < 0) & (own[1:] >= 0)[:, None]  # [K, Q]
    other = to_device(torch.cat([other.new_zeros(1, masks.shape[-1]), other]), masks.device)
    shown = masks.argmax(-1)
    return other[keyframe.mask_index.long(), shown] & (masks.gather(-1, shown[..., None])[..., 0] > 0.5)


@torch.no_grad()
def open_queries(
    keyframe: Keyframe,
    parts: list[int],
    view: MapView,
    map: PanopticMap,
    config: AssociationConfig,
    density: DensityConfig,
) -> list[int]:
    """Gives each unmatched mask to an unmatched object at its place, or opens a query; returns the new ids.

    A mask that shows a side of an object that was never seen overlaps with nothing that can be rendered; its place and
    its class are then what tells that it is a known object. `parts` get a query of their own on trial: most often
    the 2D model has cut an object in two, and the votes of other keyframes soon merge them again.
    """
    T_map_camera = to_device(torch.from_numpy(keyframe.T_map_camera).float(), keyframe.depth.device)
    points = transform(T_map_camera, backproject(keyframe.depth, keyframe.camera))
    usable = usable_depth(keyframe.depth, density)
    new_ids: list[int] = []
    unmatched = [mask for mask in range(1, len(keyframe.mask_ids)) if not keyframe.mask_ids[mask] or mask in parts]
    if not unmatched:
        return new_ids
    candidates = view.queries.ids.cpu()
    for mask in unmatched:
        inside = points[(keyframe.mask_index == mask) & usable]
        if len(inside) < map.queries.config.min_mask_px * pixel_scale(keyframe.mask_index):
            continue
        class_index = keyframe.mask_classes[mask]
        row = -1
        if mask not in parts:
            row = _object_at(inside, class_index, keyframe, candidates, map.queries, config)
        if row >= 0:
            keyframe.mask_ids[mask] = int(map.queries.ids[row])
        elif not map.queries.is_full():
            keyframe.mask_ids[mask] = map.queries.add(inside, keyframe.stamp_ns, parent_id=keyframe.mask_ids[mask])
            new_ids.append(keyframe.mask_ids[mask])
    return new_ids


def _object_at(
    points: Tensor,
    class_index: int,
    keyframe: Keyframe,
    candidates: Tensor,
    queries: InstanceQueries,
    config: AssociationConfig,
) -> int:
    """The row of the object of that class that is where the points [P, 3] are and has no mask yet, or -1."""
    taken = torch.isin(queries.ids[candidates], torch.tensor(keyframe.mask_ids))
    same_class = queries.class_indices[candidates] == class_index
    candidates = candidates[~taken & same_class]
    if len(candidates) == 0:
        return -1
    near = queries.share_near(points[:: max(1, len(points) // 500)], to_device(candidates, points.device))
    share, best = near.cpu().max(0)
    return int(candidates[best]) if share >= config.near_share else -1


@torch.no_grad()
def label_from(
    keyframe: Keyframe, new_ids: list[int], surface: Tensor, map: PanopticMap, density: DensityConfig
) -> None:
    """Gives Gaussians the keyframe's label at their pixel of `surface` [H, W] m, to be right at once.

    These are Gaussians without a label, things of no object where a mask says of which, and all in the masks that
    opened a query.
    """
    book = map.gaussians
    ids = book.ids_in_frustum(keyframe.T_camera_map(), keyframe.camera)
    at = depth_at_centers(book["means"][ids], keyframe, surface, density)
    on_surface = at.valid & ((at.depth - at.surface).abs() < tolerance(at.surface, density))
    on_surface &= keyframe.semantic[at.v, at.u] > 0
    public_ids = to_device(torch.tensor(keyframe.mask_ids), ids.device)[keyframe.mask_index[at.v, at.u].long()]
    old_class = book["class_index"][ids].long()
    is_lost = map.head.is_thing[old_class] & (map.queries.rows_of(book["instance_id"][ids].long()) < 0)
    is_new = torch.isin(public_ids, to_device(torch.tensor(new_ids, dtype=torch.int64), ids.device))
    is_due = (old_class == UNLABELED) | (is_lost & (public_ids > 0)) | is_new
    chosen = (on_surface & is_due).nonzero()[:, 0]
    ids, u, v, public_ids = ids[chosen], at.u[chosen], at.v[chosen], public_ids[chosen]
    class_index = keyframe.semantic[v, u].long()
    rows = map.queries.rows_of(public_ids)
    is_in_view = torch.zeros(len(map.queries) + 1, dtype=torch.bool, device=ids.device)
    in_view = is_in_view.index_fill_(0, rows + 1, True)[1:].nonzero()[:, 0]  # row -1, no query, is the first entry
    keys = map.head.keys(map.queries.table["embeddings"][in_view])
    own = torch.where(rows >= 0, torch.searchsorted(in_view, rows), -1)
    semantics = map.head.semantic_features(class_index, keyframe.confidence[v, u])
    map.gaussians.set_rows(ids, semantics=semantics, instances=map.head.instance_features(keys, own))
    probability = map.head.class_probabilities(semantics).gather(1, class_index[:, None])[:, 0]
    map.gaussians["class_index"][ids] = class_index.int()
    map.gaussians["instance_id"][ids] = public_ids.int()
    map.gaussians["confidence_permille"][ids] = (1000 * probability).int()


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
    merged = torch.tensor([int(id) in queries.merged_into for id in queries.ids])
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
