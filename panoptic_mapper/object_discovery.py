"""The life of objects: masks are matched to queries, unmatched masks open new ones, duplicates merge, ghosts retire."""

from __future__ import annotations

import torch
from torch import Tensor

from panoptic_mapper.association import MIN_QUERY_PX, AssociationConfig, mask_overlap, match_masks, same_object_votes
from panoptic_mapper.density_control import DensityConfig, depth_at_centers, tolerance, usable_depth
from panoptic_mapper.geometry import backproject, transform
from panoptic_mapper.instances import InstanceQueries
from panoptic_mapper.keyframes import Keyframe, KeyframeStore
from panoptic_mapper.panoptic_map import MapView, PanopticMap
from panoptic_mapper.rasterizers.base import Rendering

MIN_LABELLED_SHARE = 0.5  # a query with fewer labelled pixels is not contradicted: the 2D model did not say what it is


@torch.no_grad()
def associate(
    keyframe: Keyframe,
    view: MapView,
    rendering: Rendering,
    queries: InstanceQueries,
    config: AssociationConfig,
    density: DensityConfig,
) -> None:
    """Matches the masks of a keyframe to the queries in view and counts the evidence; fills `keyframe.mask_ids`."""
    num_masks, rows = len(keyframe.mask_ids) - 1, view.queries.ids.cpu()
    if not keyframe.has_labels or len(rows) == 0:
        return
    masks = view.blend_labels().masks
    same_surface = (rendering.depth - keyframe.depth).abs() < tolerance(keyframe.depth, density)
    explained = (rendering.alpha > 0.5) & (same_surface | (keyframe.depth == 0))
    overlap = mask_overlap(masks, keyframe.mask_index, explained & (keyframe.semantic > 0), num_masks)
    class_probs = queries.class_probabilities(rows)[:, keyframe.mask_classes[1:]].T.to(masks)
    queries.votes[rows[:, None], rows] += same_object_votes(overlap, config).cpu()
    labelled = overlap.query_px > MIN_LABELLED_SHARE * masks[explained].sum(0)
    contradicted = labelled & (overlap.query_px > MIN_QUERY_PX)
    queries.column("contradictions")[rows[contradicted.cpu()]] += 1  # a match takes it back
    for mask, query in match_masks(overlap, class_probs, config):
        observe_mask(keyframe, mask + 1, int(rows[query]), queries)


@torch.no_grad()
def open_queries(
    keyframe: Keyframe, view: MapView, map: PanopticMap, config: AssociationConfig, density: DensityConfig
) -> list[int]:
    """Gives each unmatched mask to an unmatched object at its place, or opens a query; returns the new ids.

    A mask that shows a side of an object that was never seen overlaps with nothing that can be rendered; its place and
    its class are then what tells that it is a known object.
    """
    T_map_camera = torch.from_numpy(keyframe.T_map_camera).float().to(keyframe.depth.device)
    points = transform(T_map_camera, backproject(keyframe.depth, keyframe.camera))
    usable = usable_depth(keyframe.depth, density)
    new_ids = []
    for mask in range(1, len(keyframe.mask_ids)):
        class_index = keyframe.mask_classes[mask]
        if keyframe.mask_ids[mask]:
            continue
        inside = points[(keyframe.mask_index == mask) & usable]
        if len(inside) < map.queries.config.min_mask_px:
            continue
        row = _object_at(inside, class_index, keyframe, view.queries.ids.cpu(), map.queries, config)
        if row >= 0:
            observe_mask(keyframe, mask, row, map.queries)
        elif not map.queries.is_full():
            score, stamp_ns = keyframe.mask_scores[mask], keyframe.stamp_ns
            keyframe.mask_ids[mask] = map.queries.add(inside, class_index, score, stamp_ns)
            new_ids.append(keyframe.mask_ids[mask])
    return new_ids


def observe_mask(keyframe: Keyframe, mask: int, row: int, queries: InstanceQueries) -> None:
    """Notes that a mask of a keyframe shows the object of a row."""
    queries.observe(row, keyframe.mask_classes[mask], keyframe.mask_scores[mask], keyframe.stamp_ns)
    keyframe.mask_ids[mask] = int(queries.ids[row])


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
    share, best = queries.share_near(points[:: max(1, len(points) // 500)], candidates).max(0)
    return int(candidates[best]) if share >= config.near_share else -1


@torch.no_grad()
def label_unlabeled(keyframe: Keyframe, surface: Tensor, map: PanopticMap, density: DensityConfig) -> None:
    """Gives Gaussians without a label the keyframe's at their pixel of `surface` [H, W] m, to be right at once."""
    ids = map.gaussians.ids_in_frustum(keyframe.T_camera_map(), keyframe.camera)
    ids = ids[map.gaussians["class_index"][ids] == 0]
    at = depth_at_centers(map.gaussians["means"][ids], keyframe, surface, density)
    on_surface = at.valid & ((at.depth - at.surface).abs() < tolerance(at.surface, density))
    on_surface &= keyframe.semantic[at.v, at.u] > 0
    ids, u, v = ids[on_surface], at.u[on_surface], at.v[on_surface]
    class_index = keyframe.semantic[v, u].long()
    public_ids = torch.tensor(keyframe.mask_ids, device=ids.device)[keyframe.mask_index[v, u].long()]
    rows = map.queries.rows_of(public_ids)
    in_view = torch.unique(rows[rows >= 0])
    keys = map.head.keys(map.queries.table["embeddings"][in_view])
    own = torch.where(rows >= 0, torch.searchsorted(in_view, rows), -1)
    semantics = map.head.semantic_features(class_index, keyframe.confidence[v, u])
    map.gaussians.table.set_rows(ids, semantics=semantics, instances=map.head.instance_features(keys, own))
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
    limit = (queries.column("observations") + queries.config.retire_after).clamp_max(queries.config.max_contradictions)
    ghosts = queries.column("contradictions") >= limit
    merged = torch.tensor([int(id) in queries.merged_into for id in queries.ids])
    if bool((ghosts | merged).any()):
        queries.remove((ghosts | merged).nonzero()[:, 0].tolist())
        keyframes.resolve_ids({id: queries.resolve(id) for id in queries.merged_into})


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
    for keep, gone in (votes >= queries.config.merge_evidence).nonzero().tolist():
        if keep not in taken and gone not in taken:
            pairs.append((keep, gone))
            taken |= {keep, gone}
    return pairs


def _relabel(map: PanopticMap, old_id: int, new_row: int) -> None:
    """Hands the Gaussians of an object over to another query."""
    ids = (map.gaussians["instance_id"] == old_id).nonzero()[:, 0]
    keys = map.head.keys(map.queries.table["embeddings"])
    own = torch.full_like(ids, new_row)
    map.gaussians.table.set_rows(ids, instances=map.head.instance_features(keys, own))
    map.gaussians["instance_id"][ids] = int(map.queries.ids[new_row])
