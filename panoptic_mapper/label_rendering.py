"""Label blending: classify every visible Gaussian in 3D, then splat its distribution with detached weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from panoptic_mapper.attention import panoptic_distribution, query_scores
from panoptic_mapper.instances import gathered_geometry
from panoptic_mapper.panoptic_head import PanopticColumns, PanopticHead
from panoptic_mapper.parameter_table import Rows
from panoptic_mapper.rasterizers.base import ProjectedView


@dataclass(frozen=True)
class LabelRendering:
    """Blended labels of a view and the distributions of its visible Gaussians.

    The columns of an image sum to its alpha.
    """

    panoptic: Tensor  # [H, W, S + 1 + Q]
    thing_classes: Tensor  # [H, W, T] semantic probability of each thing class
    distribution: Tensor  # [V, S + 1 + Q] panoptic distribution of the visible Gaussians
    class_probs: Tensor  # [V, C]
    columns: PanopticColumns

    @property
    def semantic(self) -> Tensor:  # [H, W, S + T]
        return torch.cat([self.panoptic[..., : self.columns.num_stuff], self.thing_classes], dim=-1)

    @property
    def masks(self) -> Tensor:  # [H, W, Q]
        return self.panoptic[..., self.columns.first_query :]


def blend_labels(view: ProjectedView, gaussians: Rows, queries: Rows, head: PanopticHead) -> LabelRendering:
    """Renders the labels of a view; gradients reach features, queries and head, never the geometry.

    Args:
        view: projection of `gaussians`; its `visible` are rows of these.
        gaussians: candidate rows of the map.
        queries: rows of the queries in view.
        head: class codes and key projection.
    """
    class_probs = head.class_probabilities(gaussians["semantics"][view.visible])
    centers, whitenings = gathered_geometry(queries)
    scores = query_scores(
        gaussians["instances"][view.visible],
        gaussians["means"][view.visible].detach(),
        head.keys(queries["embeddings"]),
        centers,
        whitenings,
    )
    distribution = panoptic_distribution(class_probs, head.is_thing, scores)
    blended = view.blend(torch.cat([distribution, class_probs[:, head.is_thing]], dim=1))
    split = distribution.shape[1]
    return LabelRendering(blended[..., :split], blended[..., split:], distribution, class_probs, head.columns)
