"""Optimisation of the map: geometry, colour and labels together, end to end, one keyframe a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from panoptic_mapper import ops
from panoptic_mapper.association import AssociationConfig
from panoptic_mapper.config import Config, param
from panoptic_mapper.density_control import DensityConfig
from panoptic_mapper.geometry import inverse_pose
from panoptic_mapper.image_loss import IMAGE_TERMS, image_loss
from panoptic_mapper.image_step import ImageStep
from panoptic_mapper.keyframes import Keyframe
from panoptic_mapper.label_rendering import LabelRendering
from panoptic_mapper.label_targets import LabelTargets
from panoptic_mapper.label_votes import voted_losses
from panoptic_mapper.label_warping import PixelGrid, one_hot_labels
from panoptic_mapper.losses import LossWeights, floored_log, query_repulsion
from panoptic_mapper.object_discovery import associate
from panoptic_mapper.panoptic_map import Candidates, MapView, PanopticMap
from panoptic_mapper.parameter_table import Rows
from panoptic_mapper.rasterizers.base import Rendering, TracingRasterizer
from panoptic_mapper.seen_counter import SeenCounter
from panoptic_mapper.surfels import surface_terms
from panoptic_mapper.transfers import to_device


@dataclass(frozen=True)
class OptimizerConfig(Config):
    """How much the map is optimised."""

    steps_per_keyframe: int = param(12, "optimisation steps after each keyframe", ge=0)
    frame_budget_ms: float = param(
        0.0,
        "time for each frame, ms: steps are taken, also on frames that are no keyframes, while they fit; frames that"
        " take longer leave less to those that follow; the map then depends on the machine's speed;"
        " 0 = steps_per_keyframe on keyframes only",
        ge=0,
    )
    skip_hidden: bool = param(
        False,
        "what lies far behind a keyframe's measured surfaces is left out of its steps and of its association: large"
        " buildings cost no more than rooms, but what shines through a surface is not held against it",
    )
    label_every: int = param(1, "every how many steps labels are optimised beside geometry", ge=1)
    warp_views: int = param(1, "neighbouring keyframes whose labels are warped into the optimised one", ge=0)
    warp_stride_px: int = param(2, "warped labels are compared at every so many pixels along both axes", ge=1)
    color_relaxation: float = param(
        0.0,
        "share of the mean error of its pixels by which each Gaussian's colour follows at every step, beside Adam's;"
        " where there are few steps, with learning_rates.colors of 0",
        ge=0,
        le=1,
    )
    head_lr: float = param(1e-3, "Adam step of class codes and key projection", ge=0)


class MapOptimizer:
    """Takes gradient steps on one keyframe at a time; only what that keyframe sees is read and changed."""

    def __init__(
        self,
        map: PanopticMap,
        config: OptimizerConfig,
        weights: LossWeights,
        density: DensityConfig,
        association: AssociationConfig,
    ):
        self.map, self.config, self.weights, self.density = map, config, weights, density
        self.association = association
        self.losses: dict[str, Tensor] = {}  # last value of each term, on the device
        self.on_gradients: Callable[[Keyframe, MapView, Tensor], None] | None = None  # the view, and what it has seen
        self._image_step: ImageStep | None = None  # where steps on images can be differentiated by hand
        if isinstance(map.rasterizer, TracingRasterizer) and map.gaussians.config.base == "3dgs":
            self._image_step = ImageStep(map.gaussians, map.rasterizer, weights, density, config.color_relaxation)
        self._head_adam = torch.optim.Adam(map.head.parameters(), lr=config.head_lr, fused=True)
        # Of keyframes, by id, their poses and what they may see, in the map of that revision.
        self._prepared: dict[int, tuple[np.ndarray, Candidates]] = {}
        self._prepared_revision = -1
        self.num_steps = 0  # that were taken

    def step(self, keyframe: Keyframe, neighbours: Sequence[Keyframe] = (), with_labels: bool | None = None) -> None:
        """One Adam step on all losses of a keyframe, with what its neighbours say about the labels of its pixels.

        Args:
            keyframe: the observation.
            neighbours: keyframes that see some of the same surfaces.
            with_labels: whether labels are optimised beside geometry; None = as often as configured.
        """
        if with_labels is None:
            with_labels = self._is_label_step()
        with_labels &= keyframe.has_labels
        if self._image_step is None or self.on_gradients is not None or self.map.gaussians.sh_degree > 0:
            self._differentiated_step(keyframe, neighbours, with_labels)
        else:
            self._step_by_hand(self._image_step, keyframe, neighbours, with_labels)
        self.num_steps += 1

    def _step_by_hand(
        self, image_step: ImageStep, keyframe: Keyframe, neighbours: Sequence[Keyframe], with_labels: bool
    ) -> None:
        """A step on images that is differentiated by hand, and by autograd one on the labels of what it drew."""
        ids, T_camera_map = self._candidates_of(keyframe)
        taken = image_step(keyframe, ids, T_camera_map, with_view=with_labels)
        if taken is None:
            return
        self.losses |= taken.terms
        if not with_labels or taken.view is None or len(taken.view.visible) == 0:
            return
        view = MapView(self.map, Rows(ids, {"means": taken.means}), taken.view, keyframe.camera, T_camera_map)
        labels, terms = self._label_terms(keyframe, view, taken.rendering, neighbours)
        self._weighted(terms).sum().backward()
        self._update_labels(view, labels, taken.is_seen)
        self.losses |= {name: value.detach() for name, value in terms.items()}

    def _differentiated_step(self, keyframe: Keyframe, neighbours: Sequence[Keyframe], with_labels: bool) -> None:
        """A step on all losses, by autograd."""
        view = self.view_of(keyframe)
        if len(view.visible_ids) == 0:
            return
        counter = SeenCounter(view, with_errors=self.config.color_relaxation > 0)
        surface = view.render_surface(counter) if self.map.gaussians.config.base == "surfel" else None
        rendering = view.render(counter) if surface is None else surface.rendering
        image = counter.image(rendering)
        image_total, report = image_loss(image, rendering.alpha, keyframe, self.weights, self.density)
        scales = view.gaussians["log_scales"].exp()
        terms = {"scale": (scales - self.weights.max_scale_m).clamp_min(0).sum() / len(scales)}
        if surface is not None:
            terms |= surface_terms(surface, keyframe.camera)
        labels = None
        if with_labels:
            labels, label_terms = self._label_terms(keyframe, view, rendering, neighbours)
            terms |= label_terms
        (image_total + self._weighted(terms).sum()).backward()
        seen = counter.seen()
        if self.on_gradients is not None:
            self.on_gradients(keyframe, view, seen)
        self.map.gaussians.appearance.update(view.gaussians, seen)
        counter.relax_colors(self.config.color_relaxation)
        if labels is not None:
            self._update_labels(view, labels, seen[view.projection.visible])
        self.losses |= {name: value.detach() for name, value in terms.items()}
        self.losses |= dict(zip(IMAGE_TERMS, report.unbind(), strict=True))

    def _weighted(self, terms: dict[str, Tensor]) -> Tensor:
        """The terms [n] times their weights."""
        return torch.stack([getattr(self.weights, name) * value for name, value in terms.items()])

    def _label_terms(
        self, keyframe: Keyframe, view: MapView, rendering: Rendering, neighbours: Sequence[Keyframe]
    ) -> tuple[LabelRendering, dict[str, Tensor]]:
        """The labels of a view, and the terms of their loss, after the keyframe's masks were matched to them."""
        labels = view.blend_labels()
        associate(keyframe, view, rendering, labels, self.map.queries, self.association, self.density)
        terms = self._label_losses(view, labels, LabelTargets.of(keyframe, view))
        warped = [self._warp_term(keyframe, view, rendering, labels, n) for n in neighbours if n.has_labels]
        if warped:
            terms["warp"] = torch.stack(warped).mean()
        return labels, terms

    def _update_labels(self, view: MapView, labels: LabelRendering, is_seen: Tensor) -> None:
        """After backward: Adam's steps of queries, head, and labels of the visible Gaussians that are seen [V]."""
        self.map.gaussians.labels.update(view.labels, is_seen)
        self.map.queries.table.update(view.queries, view.queries_in_view)
        self._head_adam.step()
        self._head_adam.zero_grad()
        self.map.remember_labels(view, labels)

    def prepare(self, keyframes: Sequence[Keyframe]) -> None:
        """Finds what keyframes may see, on which the next steps will be taken: a GPU is waited for once for all.

        That holds while there are the same Gaussians; how little they move meanwhile is within the frustum's margin.
        """
        if self._prepared_revision == self.map.gaussians.revision and all(map(self._is_prepared, keyframes)):
            return
        found = self.map.candidates([(k.camera, k.T_map_camera, self._limits(k)) for k in keyframes])
        self._prepared = {k.id: (k.T_map_camera, candidates) for k, candidates in zip(keyframes, found, strict=True)}
        self._prepared_revision = self.map.gaussians.revision

    def _is_prepared(self, keyframe: Keyframe) -> bool:
        """Whether what it may see is known from where it is now."""
        return keyframe.id in self._prepared and self._prepared[keyframe.id][0] is keyframe.T_map_camera

    def view_of(self, keyframe: Keyframe) -> MapView:
        """What a keyframe sees of the map; with `skip_hidden`, without what its depth says to be hidden."""
        return self.map.view_of(self._candidates_of(keyframe), keyframe.camera)

    def _candidates_of(self, keyframe: Keyframe) -> Candidates:
        self.prepare([keyframe])
        return self._prepared[keyframe.id][1]

    def _limits(self, keyframe: Keyframe) -> Tensor | None:
        return keyframe.depth_limits if self.config.skip_hidden else None

    def _is_label_step(self) -> bool:
        """Every `label_every`-th step; not always on the same of the three kinds of keyframes that take turns."""
        every = self.config.label_every
        return (self.num_steps + self.num_steps // (3 * every)) % every == 0

    def follow_head(self) -> None:
        """Gives classes that were added to the head moments of their own, which are 0."""
        state, num_classes = self._head_adam.state[self.map.head.codes], self.map.head.num_classes
        for name in ("exp_avg", "exp_avg_sq"):
            if name in state:
                state[name] = torch.nn.functional.pad(state[name], (0, 0, 0, num_classes - len(state[name])))

    def _label_losses(self, view: MapView, labels: LabelRendering, targets: LabelTargets) -> dict[str, Tensor]:
        """Cross entropies and dice (cuda/label_losses.h), and what keeps queries apart."""
        if self.map.labels.blending == "label":
            losses = voted_losses(view.projection, labels, targets)
        else:
            ops.load()
            images = (labels.masks, floored_log(labels.everything))
            asked = (targets.panoptic, targets.semantic, targets.weights)
            losses, _ = torch.ops.panoptic_mapper.label_losses(*images, *asked, labels.columns.num_stuff)
        semantic, panoptic, dice = losses.unbind()
        keys = self.map.head.keys(view.queries["embeddings"])
        repulsion = query_repulsion(keys, view.queries["centers"])
        return {"semantic": semantic, "panoptic": panoptic, "dice": dice, "repulsion": repulsion}

    def _warp_term(
        self, keyframe: Keyframe, view: MapView, rendering: Rendering, labels: LabelRendering, neighbour: Keyframe
    ) -> Tensor:
        """What a neighbour's 2D labels say about the pixels of a keyframe; on a grid that moves from step to step."""
        stride = self.config.warp_stride_px
        grid = PixelGrid(stride, self.num_steps % stride, self.num_steps // stride % stride)
        depth = torch.where(rendering.alpha.detach() > 0.5, rendering.depth.detach(), 0)
        targets = LabelTargets.of(neighbour, view, grid)
        observed = [
            one_hot_labels(targets.panoptic, targets.weights, labels.panoptic.shape[-1]),
            one_hot_labels(targets.semantic, targets.weights, labels.semantic.shape[-1]),
        ]
        T = inverse_pose(neighbour.T_map_camera) @ keyframe.T_map_camera
        ops.load()
        loss, _ = torch.ops.panoptic_mapper.label_warp(
            torch.cat([grid.of(labels.panoptic), grid.of(labels.semantic)], dim=-1),
            grid.of(depth),
            to_device(grid.intrinsics(keyframe.camera).to(depth.dtype), depth.device),
            torch.cat(observed, dim=-1),
            grid.of(neighbour.depth),
            to_device(grid.intrinsics(neighbour.camera).to(depth.dtype), depth.device),
            to_device(torch.from_numpy(T).to(depth.dtype), depth.device),
        )
        return loss
