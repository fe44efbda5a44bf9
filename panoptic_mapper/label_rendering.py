"""Label images of a view, splatted with detached weights, so that labels never push geometry.

Label blending classifies every visible Gaussian in 3D and splats its distribution. Feature blending, for comparison,
splats the features and classifies the pixels in 2D.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from panoptic_mapper import ops
from panoptic_mapper.config import Config, param
from panoptic_mapper.gaussian_map import INSTANCE_DIM, SEMANTIC_DIM, GaussianMap
from panoptic_mapper.instances import gathered_geometry
from panoptic_mapper.panoptic_head import PanopticColumns, PanopticHead
from panoptic_mapper.parameter_table import Rows
from panoptic_mapper.rasterizers.base import MIN_ALPHA, ProjectedView


@dataclass(frozen=True)
class LabelConfig(Config):
    """How label images are made. The defaults are the method; the others are there to be compared with it."""

    blending: Literal["label", "feature"] = param(
        "label", "label: classify Gaussians, then splat; feature: splat, then classify", choices=("label", "feature")
    )
    attention: Literal["local", "global"] = param(
        "local", "which Gaussians and queries are scored: those of the view or all", choices=("local", "global")
    )


@dataclass(frozen=True)
class LabelFeatures:
    """What a label is made of, of n Gaussians or pixels."""

    semantics: Tensor  # [n, SEMANTIC_DIM]
    instances: Tensor  # [n, INSTANCE_DIM]
    means: Tensor  # [n, 3] m, map frame, no gradient

    @staticmethod
    def of_all(gaussians: GaussianMap, gathered: Rows) -> LabelFeatures:
        """Those of the whole map; gradients reach the gathered ones."""
        semantics, instances = (
            gaussians[name].index_copy(0, gathered.ids, gathered[name]) for name in ("semantics", "instances")
        )
        return LabelFeatures(semantics, instances, gaussians["means"].clone())  # the map changes soon


@dataclass(frozen=True)
class Classification:
    """Labels of n Gaussians or pixels."""

    class_probs: Tensor  # [n, C]
    distribution: Tensor  # [n, S + 1 + Q]

    def at(self, rows: Tensor) -> Classification:
        return Classification(self.class_probs[rows], self.distribution[rows])


@dataclass(frozen=True)
class LabelRendering:
    """The panoptic distributions of a view's visible Gaussians, and their blended labels, blended when these are asked.

    The columns of a panoptic image sum to its alpha.
    """

    distribution: Tensor  # [V, S + 1 + Q] panoptic distribution of the visible Gaussians
    class_probs: Tensor  # [V, C]
    columns: PanopticColumns
    blend: Callable[[Tensor], Tensor]  # splats values of the visible Gaussians

    @cached_property
    def everything(self) -> Tensor:
        """Panoptic labels and probabilities of thing classes [H, W, S + 1 + Q + T]."""
        return self.blend(torch.cat([self.distribution, self.columns.things_of(self.class_probs)], dim=1))

    @property
    def panoptic(self) -> Tensor:  # [H, W, S + 1 + Q]
        return self.everything[..., : self.distribution.shape[1]]

    @property
    def thing_classes(self) -> Tensor:  # [H, W, T] semantic probability of each thing class
        return self.everything[..., self.distribution.shape[1] :]

    @property
    def semantic(self) -> Tensor:  # [H, W, S + T]
        return torch.cat([self.panoptic[..., : self.columns.num_stuff], self.thing_classes], dim=-1)

    @cached_property
    def masks(self) -> Tensor:  # [H, W, Q]
        return self.blend(self.distribution[:, self.columns.first_query :])


@dataclass(frozen=True)
class PixelLabels(LabelRendering):
    """Labels of pixels that were classified one by one."""

    image: Tensor  # [H, W, S + 1 + Q + T]

    @property
    def everything(self) -> Tensor:  # type: ignore[override]
        return self.image

    @property
    def masks(self) -> Tensor:  # type: ignore[override]
        return self.panoptic[..., self.columns.first_query :]


def classify(features: LabelFeatures, queries: Rows, head: PanopticHead) -> Classification:
    """The classes and panoptic distributions of features; gradients reach features, queries and head.

    Args:
        features: of n Gaussians or pixels.
        queries: rows of the queries that are asked.
        head: class codes and key projection.
    """
    class_probs = head.class_probabilities(features.semantics)
    centers, whitenings = gathered_geometry(queries)
    keys = head.keys(queries["embeddings"])
    ops.load()
    distribution = torch.ops.panoptic_mapper.local_cross_attention(
        features.instances,
        features.means,
        torch.arange(len(features.means), device=keys.device),
        keys,
        centers,
        whitenings,
        class_probs,
        head.is_thing,
        head.columns.num_stuff,
    )
    return Classification(class_probs, distribution)


def blend_features(view: ProjectedView, visible: LabelFeatures, queries: Rows, head: PanopticHead) -> LabelRendering:
    """Splats the features of the visible Gaussians and classifies each pixel by their mean.

    The spatial prior asks for a point: the mean of the Gaussians' centres. Means are weighted by w_g / alpha, so that a
    half-transparent pixel has the class of what it shows; its distribution is scaled by alpha, as that of label
    blending is.
    """
    ones = torch.ones_like(visible.means[:, :1])
    values = torch.cat([visible.semantics, visible.instances, visible.means, ones], dim=1)
    sums, alpha = view.blend(values).split([values.shape[1] - 1, 1], dim=-1)
    means = (sums / alpha.clamp_min(MIN_ALPHA)).flatten(0, 1)
    pixels = classify(LabelFeatures(*means.split([SEMANTIC_DIM, INSTANCE_DIM, 3], dim=1)), queries, head)
    panoptic, class_probs = (p.unflatten(0, alpha.shape[:2]) * alpha for p in (pixels.distribution, pixels.class_probs))
    with torch.no_grad():
        own = classify(visible, queries, head)
    image = torch.cat([panoptic, head.columns.things_of(class_probs)], dim=-1)
    return PixelLabels(own.distribution, own.class_probs, head.columns, view.blend, image)
