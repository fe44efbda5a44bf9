"""Label images: label and feature blending by hand, and local attention against attention over the whole map."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from small_room import CHAIR, CPU, SPACE, TABLE, WALL, PassOn, mapped, wall_frame
from torch import Tensor

from panoptic_mapper.attention import PRIOR_FLOOR, UNASSIGNED_SCORE
from panoptic_mapper.instances import InstanceConfig, InstanceQueries, whitening_matrices
from panoptic_mapper.label_rendering import (
    LabelFeatures,
    LabelRendering,
    blend_features,
    classify,
)
from panoptic_mapper.label_space import LabelSpace
from panoptic_mapper.label_spaces import load_label_space
from panoptic_mapper.mapper import PanopticMapper
from panoptic_mapper.panoptic_head import UNLABELED_LOGIT, PanopticHead
from panoptic_mapper.panoptic_map import MapView
from panoptic_mapper.parameter_table import Rows

COCO = load_label_space("coco_panoptic")
# Panoptic columns: unlabeled, wall, floor | unassigned | queries.
UNASSIGNED, FIRST_QUERY = 3, 4
# An object that is out of view reaches what is in view with less than 1 % of its peak (the 99 % ellipsoid holds none of
# it), and takes so much from the others at most.
LEFT_OUT = 0.01


@dataclass
class WeightedView:
    """A projected view whose blending weights are given."""

    weights: Tensor  # [H, W, V]

    @property
    def visible(self) -> Tensor:
        return torch.arange(self.weights.shape[-1])

    def blend(self, values: Tensor) -> Tensor:
        return self.weights @ values


@pytest.fixture
def head() -> PanopticHead:
    return PanopticHead(SPACE, torch.Generator().manual_seed(0), CPU)


@pytest.fixture
def queries() -> InstanceQueries:
    """Two round objects of 0.3 m, 1 m apart along x."""
    queries = InstanceQueries(InstanceConfig(), len(SPACE), torch.Generator().manual_seed(1), CPU)
    g = torch.Generator().manual_seed(2)
    for x_m in (0.0, 1.0):
        queries.add(0.2 * torch.randn(500, 3, generator=g) + torch.tensor([x_m, 0, 0]), 0)
    return queries


def features_of(classes: list[int], own: list[int], x_m: list[float], head: PanopticHead, rows: Rows) -> LabelFeatures:
    """Features with which Gaussians on the x axis are of a class and of a query."""
    semantics = head.semantic_features(torch.tensor(classes), torch.full((len(classes),), 0.7))
    instances = head.instance_features(head.keys(rows["embeddings"]).detach(), torch.tensor(own))
    means = torch.tensor(x_m)[:, None] * torch.tensor([1.0, 0, 0])
    return LabelFeatures(semantics.requires_grad_(), instances.requires_grad_(), means)


def both(weights: Tensor, features: LabelFeatures, rows: Rows, head: PanopticHead) -> list[LabelRendering]:
    view = WeightedView(weights)
    classified = classify(features, rows, head)
    by_label = LabelRendering(classified.distribution, classified.class_probs, head.columns, view.blend)
    return [by_label, blend_features(view, features, rows, head)]  # type: ignore[arg-type]


@pytest.mark.parametrize("space", [SPACE, COCO])
def test_a_gaussian_inside_an_object_is_the_objects_only_where_a_label_reached_it(queries, space: LabelSpace) -> None:
    """However many classes of things there are whose probabilities add up."""
    head = PanopticHead(space, torch.Generator().manual_seed(0), CPU)
    rows = queries.table.gather(torch.arange(2))
    thing = int(head.columns.thing_classes[0])
    semantics = head.semantic_features(torch.tensor([0, thing]), torch.tensor([1.0, 0.3]))
    instances = head.instance_features(head.keys(rows["embeddings"]).detach(), torch.tensor([-1, 0]))
    centers = torch.zeros(2, 3)  # where the first object is
    unseen, seen = classify(LabelFeatures(semantics, instances, centers), rows, head).distribution
    own = head.columns.first_query
    assert unseen.argmax() == 0
    assert unseen[own:].sum() < 0.2
    assert seen.argmax() == own
    assert seen[own] > 0.5


@pytest.mark.parametrize("alpha", [1.0, 0.4])
def test_where_one_gaussian_covers_a_pixel_both_blendings_agree(head, queries, alpha: float) -> None:
    rows = queries.table.gather(torch.arange(2))
    features = features_of([CHAIR, TABLE, WALL, 0], [0, 1, -1, -1], [0.1, 0.9, 3.0, 0.5], head, rows)
    weights = alpha * torch.eye(4).reshape(2, 2, 4)
    by_label, by_feature = both(weights, features, rows, head)
    torch.testing.assert_close(by_feature.panoptic, by_label.panoptic, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(by_feature.semantic, by_label.semantic, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(by_feature.panoptic.sum(-1), torch.full((2, 2), alpha))
    assert by_label.panoptic.argmax(-1).tolist() == [[FIRST_QUERY, FIRST_QUERY + 1], [1, 0]]
    leaves = [features.semantics, features.instances, *rows.columns.values(), head.codes, head.key_projection]
    target = torch.randn(by_label.panoptic.shape, generator=torch.Generator().manual_seed(3))
    expected, actual = (torch.autograd.grad((r.panoptic * target).sum(), leaves) for r in (by_label, by_feature))
    for e, a in zip(expected, actual, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-6)


def test_at_an_edge_the_blendings_differ_as_computed_by_hand(head, queries) -> None:
    """A pixel that is 0.5 chair (object 1), 0.3 wall, and 0.2 nothing."""
    rows = queries.table.gather(torch.arange(2))
    features = features_of([CHAIR, WALL], [0, -1], [0.1, 0.7], head, rows)
    by_label, by_feature = both(torch.tensor([[[0.5, 0.3]]]), features, rows, head)

    codes, keys = (t.detach().double().numpy() for t in (head.codes, head.keys(rows["embeddings"])))
    z, f, x = (t.detach().double().numpy() for t in (features.semantics, features.instances, features.means))
    whitenings = whitening_matrices(queries.table["quats"], queries.table["log_scales"]).double().numpy()
    centers = queries.table["centers"].double().numpy()

    def distribution(z: np.ndarray, f: np.ndarray, x: np.ndarray) -> np.ndarray:
        p = np.exp(np.concatenate([[UNLABELED_LOGIT], codes[1:] @ z]))
        p /= p.sum()
        d2 = (((whitenings @ (x - centers)[..., None])[..., 0]) ** 2).sum(1)
        s = (np.exp(-d2 / 2) + PRIOR_FLOOR) / (1 + np.exp(-keys @ f))
        things = (p[CHAIR] + p[TABLE]) * np.concatenate([[UNASSIGNED_SCORE], s]) / (UNASSIGNED_SCORE + s.sum())
        return np.concatenate([p[[0, WALL, 4]], things])

    of_labels = 0.5 * distribution(z[0], f[0], x[0]) + 0.3 * distribution(z[1], f[1], x[1])
    mean = [(0.5 * a[0] + 0.3 * a[1]) / 0.8 for a in (z, f, x)]
    of_features = 0.8 * distribution(*mean)
    np.testing.assert_allclose(by_label.panoptic[0, 0].detach(), of_labels, atol=1e-6)
    np.testing.assert_allclose(by_feature.panoptic[0, 0].detach(), of_features, atol=1e-6)
    assert np.abs(of_labels - of_features).max() > 0.05


def test_feature_blending_keeps_the_gaussians_own_labels_without_gradient(head, queries) -> None:
    rows = queries.table.gather(torch.arange(2))
    features = features_of([CHAIR, WALL], [0, -1], [0.1, 0.7], head, rows)
    by_label, by_feature = both(torch.full((1, 1, 2), 0.4), features, rows, head)
    assert torch.equal(by_feature.distribution, by_label.distribution)
    assert torch.equal(by_feature.class_probs, by_label.class_probs)
    assert not by_feature.distribution.requires_grad


def two_sided_mapper(*settings: str) -> PanopticMapper:
    """A wall with a table and a chair in front of the origin, and one behind it."""
    frames = [wall_frame(), wall_frame(T_map_camera=np.diag([-1.0, 1, -1, 1]), stamp_ns=1)]
    return mapped(frames, "optimizer.steps_per_keyframe=0", *settings, segmenter=PassOn(SPACE))


def views(attention: str) -> tuple[PanopticMapper, MapView]:
    mapper = two_sided_mapper(f"labels.attention={attention}")
    keyframe = mapper.keyframes.all[0]
    return mapper, mapper.map.view(keyframe.camera, keyframe.T_map_camera)


def test_global_attention_gives_the_images_of_local_attention() -> None:
    (_, local_view), (mapper, global_view) = views("local"), views("global")
    assert len(local_view.queries) == 2
    assert len(global_view.queries) == len(mapper.map.queries) == 4
    assert global_view.queries_in_view.tolist() == [True, True, False, False]
    local_labels, global_labels = local_view.blend_labels(), global_view.blend_labels()
    shared = local_labels.panoptic.shape[-1]
    torch.testing.assert_close(global_labels.panoptic[..., :shared], local_labels.panoptic, rtol=0, atol=LEFT_OUT)
    assert global_labels.panoptic[..., shared:].max() < LEFT_OUT
    torch.testing.assert_close(global_labels.thing_classes, local_labels.thing_classes)
    assert torch.equal(global_labels.distribution.argmax(1), local_labels.distribution.argmax(1))


def shapes_saved(view: MapView) -> set[tuple[int, ...]]:
    """Shapes of the tensors that the backward pass of the labels needs."""
    shapes = set()

    def note(tensor: Tensor) -> Tensor:
        shapes.add(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        view.blend_labels()
    return shapes


def test_global_attention_keeps_the_whole_map_and_local_what_is_in_view_and_none_keeps_pairs() -> None:
    (mapper, local_view), (_, global_view) = views("local"), views("global")
    N, V, C = len(mapper.map.gaussians), len(local_view.visible_ids), len(SPACE)
    assert V < 0.6 * N
    local_shapes, global_shapes = shapes_saved(local_view), shapes_saved(global_view)
    assert (N, C) in global_shapes
    assert (N, 4) not in global_shapes
    assert (V, C) in local_shapes
    assert (V, 2) not in local_shapes
    assert not any(N in shape for shape in local_shapes)


def test_a_step_with_global_attention_changes_only_what_is_in_view() -> None:
    mapper, view = views("global")
    before = {name: mapper.map.gaussians[name].clone() for name in ("semantics", "instances")}
    embeddings = mapper.map.queries.table["embeddings"].clone()
    mapper.optimizer.step(mapper.keyframes.all[0])
    hidden = torch.ones(len(mapper.map.gaussians), dtype=torch.bool)
    hidden[view.visible_ids] = False
    assert hidden.any()
    for name, values in before.items():
        assert torch.equal(mapper.map.gaussians[name][hidden], values[hidden])
        assert not torch.equal(mapper.map.gaussians[name], values)
    after = mapper.map.queries.table["embeddings"]
    assert torch.equal(after[2:], embeddings[2:])
    assert (after[:2] != embeddings[:2]).any(1).all()


@pytest.mark.parametrize("setting", ["labels.blending=feature", "labels.attention=global"])
def test_steps_lower_the_label_losses(setting: str) -> None:
    mapper = two_sided_mapper(setting, "learning_rates.log_scales=8e-3")  # so that it is labels that change most
    keyframe = mapper.keyframes.all[0]

    def label_losses() -> dict[str, float]:
        mapper.optimizer.step(keyframe)
        losses = mapper.stats().losses
        return {name: losses[name] for name in ("semantic", "panoptic", "dice")}

    before = label_losses()
    for _ in range(40):
        after = label_losses()
    for name, value in before.items():
        assert after[name] < 0.9 * value, name
