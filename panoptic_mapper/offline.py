"""The offline phase: once all frames are in the map, it is optimised as a whole, with full density control.

This is the setting of the paper; `panoptic-mapper build --mode offline` runs it after the online pass.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from panoptic_mapper.config import Config, param
from panoptic_mapper.densification import ScreenGradients, densify, reset_opacities
from panoptic_mapper.density_control import count_free_space_hits, survivors
from panoptic_mapper.keyframes import Keyframe
from panoptic_mapper.object_discovery import associate, maintain_queries, refit_queries

if TYPE_CHECKING:
    from panoptic_mapper.mapper import PanopticMapper

RATES_EVERY = 20  # steps between two changes of the learning rates


@dataclass(frozen=True)
class OfflineConfig(Config):
    """Global optimisation after the last frame of a recorded sequence."""

    iterations: int = param(3000, "steps of the global optimisation, each on one keyframe", ge=0)
    means_rate_end: float = param(0.01, "rate of the centres at its end, as a share of that at its start", gt=0, le=1)
    rate_end: float = param(0.1, "the same for the rates of other shape and colour", gt=0, le=1)
    sh_degree: int = param(3, "SH degree of the colours at its end", ge=0, le=3)
    sh_share: float = param(0.05, "share of the steps after which the colours get the next SH degree", ge=0, le=1)
    associate_every: int = param(1000, "steps between two associations of all masks with the map, 0 = none", ge=0)
    associate_until: float = param(0.7, "share of the steps after which the masks are left as they are", ge=0, le=1)


def optimize_globally(
    mapper: PanopticMapper, config: OfflineConfig, on_step: Callable[[int, int], None] | None = None
) -> None:
    """Optimises a mapper's whole map over all of its keyframes; does nothing while there are none.

    Every keyframe comes once before any comes again. The learning rates fall exponentially, the SH degree of the
    colours rises, Gaussians are split and removed, masks are associated anew, and labels are learned all along.
    The mapper can take further frames afterwards.

    Args:
        mapper: its `config.densification` says how the map is refined.
        config: how long, and how.
        on_step: called after each step with the number of steps done and of all.
    """
    if len(mapper.keyframes) == 0:
        return
    gaussians, total = mapper.map.gaussians, config.iterations
    order = _epochs(mapper.keyframes.all, mapper.config.seed)
    refinement = Refinement(mapper)
    for step in range(total):
        if step % RATES_EVERY == 0:
            gaussians.scale_rates(config.means_rate_end ** (step / total), config.rate_end ** (step / total))
        if config.associate_every and step % config.associate_every == 0 and step <= config.associate_until * total:
            associate_all(mapper)
        gaussians.raise_sh_degree(scheduled_degree(step / total, config))
        refinement.step(next(order), is_open=step < mapper.config.densification.until * total)
        if on_step is not None:
            on_step(step + 1, total)
    gaussians.scale_rates(1.0, 1.0)
    gaussians.keep(needed(mapper))
    refit_queries(mapper.map)


def scheduled_degree(progress: float, config: OfflineConfig) -> int:
    """The SH degree of the colours when a share `progress` of the steps is done."""
    steps_up = config.sh_degree if config.sh_share == 0 else int(progress / config.sh_share)
    return min(steps_up, config.sh_degree)


class Refinement:
    """Gradient steps with density control between them."""

    def __init__(self, mapper: PanopticMapper):
        self.mapper, self.config = mapper, mapper.config.densification
        self._gradients = ScreenGradients(mapper.map.gaussians)
        self._steps = 0

    def step(self, keyframe: Keyframe, is_open: bool) -> None:
        """One step on a keyframe; Gaussians are split and reset only while `is_open`."""
        optimizer, gaussians = self.mapper.optimizer, self.mapper.map.gaussians
        optimizer.on_gradients = self._gradients.add if is_open else None
        optimizer.step(keyframe, self.mapper.keyframes.neighbours(keyframe, optimizer.config.warp_views))
        optimizer.on_gradients = None
        self._steps += 1
        if is_open and self._is_due(self.config.every):
            keep = needed(self.mapper)  # before any is made fainter, which would have no time to come back
            gaussians.keep(keep)
            self._gradients.keep(keep)
            densify(gaussians, self._gradients, self.config)
            self._gradients = ScreenGradients(gaussians)
        if is_open and self._is_due(self.config.reset_every):
            reset_opacities(gaussians, self.config)

    def _is_due(self, every: int) -> bool:
        return every > 0 and self._steps % every == 0


@torch.no_grad()
def needed(mapper: PanopticMapper) -> Tensor:
    """Which Gaussians [N] stay: opaque, not too large, and not in space that the keyframes, counted anew, see empty."""
    gaussians = mapper.map.gaussians
    gaussians["free_space_hits"][:] = 0
    for keyframe in mapper.keyframes.all:
        ids = gaussians.ids_in_frustum(keyframe.T_camera_map(), keyframe.camera)
        count_free_space_hits(gaussians, ids, keyframe, mapper.config.density)
    return survivors(gaussians, mapper.config.density)


@torch.no_grad()
def associate_all(mapper: PanopticMapper) -> None:
    """Associates the masks of all keyframes, in the order of time, with the map as it is now.

    While frames arrive, a mask meets the map of that moment, which may know little of the object. What the keyframes
    say now replaces what they said then. Objects that no mask shows are retired.
    """
    map, config = mapper.map, mapper.config
    for keyframe in mapper.keyframes.all:
        keyframe.revision = -1  # the queries may be the same, but not their places
        view = map.view(keyframe.camera, keyframe.T_map_camera)
        associate(keyframe, view, view.render(), view.blend_labels(), map.queries, config.association, config.density)
    map.queries.count(mapper.keyframes.observations())
    map.queries.remove((map.queries.column("observations") == 0).nonzero()[:, 0].tolist())
    maintain_queries(map, mapper.keyframes)


def _epochs(keyframes: list[Keyframe], seed: int) -> Iterator[Keyframe]:
    """All keyframes in random order, again and again, each time in another order."""
    shuffled, generator = list(keyframes), random.Random(seed)
    while True:
        generator.shuffle(shuffled)
        yield from shuffled
