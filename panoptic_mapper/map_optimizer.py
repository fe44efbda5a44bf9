"""Optimisation of the map: geometry, colour and labels together, end to end, one keyframe a step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from panoptic_mapper.config import Config, param
from panoptic_mapper.density_control import DensityConfig, unobstructed, usable_depth
from panoptic_mapper.keyframes import Keyframe
from panoptic_mapper.label_rendering import LabelRendering
from panoptic_mapper.losses import (
    LossWeights,
    color_loss,
    cross_entropy,
    dice_loss,
    masked_mean,
    query_repulsion,
)
from panoptic_mapper.panoptic_map import MapView, PanopticMap
from panoptic_mapper.surfels import surface_terms


@dataclass(frozen=True)
class OptimizerConfig(Config):
    """How much the map is optimised."""

    steps_per_keyframe: int = param(20, "optimisation steps after each keyframe", ge=0)
    label_every: int = param(1, "every how many steps labels are optimised beside geometry", ge=1)
    head_lr: float = param(1e-3, "Adam step of class codes and key projection", ge=0)


class MapOptimizer:
    """Takes gradient steps on one keyframe at a time; only what that keyframe sees is read and changed."""

    def __init__(self, map: PanopticMap, config: OptimizerConfig, weights: LossWeights, density: DensityConfig):
        self.map, self.config, self.weights, self.density = map, config, weights, density
        self.losses: dict[str, Tensor] = {}  # last value of each term, on the device
        self.on_gradients: Callable[[Keyframe, MapView, Tensor], None] | None = None  # the view, and what it has seen
        self._head_adam = torch.optim.Adam(map.head.parameters(), lr=config.head_lr)
        self._steps = 0

    def step(self, keyframe: Keyframe) -> None:
        """One Adam step on all losses of a keyframe."""
        view = self.map.view(keyframe.camera, keyframe.T_map_camera)
        if len(view.visible_ids) == 0:
            return
        terms = self._geometry_terms(keyframe, view)
        labels = None
        if keyframe.has_labels and self._steps % self.config.label_every == 0:
            labels = view.blend_labels()
            terms |= self._label_terms(keyframe, view, labels)
        torch.stack([getattr(self.weights, name) * value for name, value in terms.items()]).sum().backward()
        seen = view.seen()
        if self.on_gradients is not None:
            self.on_gradients(keyframe, view, seen)
        self.map.gaussians.table.update(view.gaussians, seen)
        if labels is not None:
            self.map.queries.table.update(view.queries)
            self._head_adam.step()
            self._head_adam.zero_grad()
            self.map.remember_labels(view, labels)
        self.losses |= {name: value.detach() for name, value in terms.items()}
        self._steps += 1

    def _geometry_terms(self, keyframe: Keyframe, view: MapView) -> dict[str, Tensor]:
        surface = view.render_surface() if self.map.gaussians.config.base == "surfel" else None
        rendering = view.render() if surface is None else surface.rendering
        observed = keyframe.color.float() / 255
        counted = unobstructed(keyframe.depth, self.density).float()
        measured = usable_depth(keyframe.depth, self.density).float()
        covered = measured * (rendering.alpha.detach() > 0.5)
        largest = view.gaussians["log_scales"].amax(1).exp()
        terms = {
            "color": color_loss(rendering.color, observed, counted, self.weights.ssim_share),
            "depth": masked_mean((rendering.depth - keyframe.depth).abs(), covered),
            "opacity": masked_mean(1 - rendering.alpha, measured),
            "scale": (largest - self.weights.max_scale_m).clamp_min(0).mean(),
        }
        if surface is not None:
            terms |= surface_terms(surface, keyframe.camera)
        return terms

    def _label_terms(self, keyframe: Keyframe, view: MapView, labels: LabelRendering) -> dict[str, Tensor]:
        columns = labels.columns
        semantic_targets = columns.semantic_of_classes()[keyframe.semantic.long()]
        targets = self._panoptic_targets(keyframe, view)
        terms = {
            "semantic": cross_entropy(labels.semantic, semantic_targets, keyframe.confidence),
            "panoptic": cross_entropy(labels.panoptic, targets, keyframe.confidence),
        }
        if len(view.queries):
            terms["dice"] = dice_loss(labels.masks, columns.queries_of(targets), keyframe.semantic > 0)
            terms["repulsion"] = query_repulsion(
                self.map.head.keys(view.queries["embeddings"]), view.queries["centers"]
            )
        return terms

    def _panoptic_targets(self, keyframe: Keyframe, view: MapView) -> Tensor:
        """Panoptic column [H, W] of each pixel: its stuff class or the query its mask was matched to; -1 = none."""
        rows, queries, columns = view.queries.ids, self.map.queries, self.map.head.columns
        position = torch.full((len(queries) + 1,), -1, dtype=torch.int64, device=rows.device)
        position[rows] = torch.arange(len(rows), device=rows.device)
        mask_rows = queries.rows_of(torch.tensor(keyframe.mask_ids, device=rows.device))
        mask_position = position[mask_rows]  # row -1 (no query) reads the last entry, which is -1
        in_mask = columns.of_queries(mask_position)[keyframe.mask_index.long()]
        return torch.where(keyframe.mask_index > 0, in_mask, columns.stuff_of_classes()[keyframe.semantic.long()])
