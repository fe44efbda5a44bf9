"""The mapper: `PanopticMapper.integrate` is the whole method. Start reading here."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from panoptic_mapper import covisibility, extraction, mapper_state
from panoptic_mapper.association import AssociationConfig
from panoptic_mapper.config import Config, param, section
from panoptic_mapper.densification import DensificationConfig
from panoptic_mapper.density_control import (
    DensityConfig,
    count_free_space_hits,
    filled_depth,
    grown_gaussians,
    survivors,
    unexplained,
    unobstructed,
    usable_depth,
)
from panoptic_mapper.frame import Frame, PinholeCamera, Segmentation, nearest
from panoptic_mapper.gaussian_map import GaussianConfig, GaussianMap, LearningRates
from panoptic_mapper.geometry import estimate_up
from panoptic_mapper.instances import InstanceConfig, InstanceQueries
from panoptic_mapper.keyframes import Keyframe, KeyframeConfig, KeyframeStore
from panoptic_mapper.label_rendering import LabelConfig
from panoptic_mapper.label_space import LabelSpace
from panoptic_mapper.losses import LossWeights
from panoptic_mapper.map_optimizer import MapOptimizer, OptimizerConfig
from panoptic_mapper.object_discovery import (
    associate,
    label_from,
    maintain_queries,
    open_queries,
    refit_queries,
)
from panoptic_mapper.offline import OfflineConfig
from panoptic_mapper.panoptic_head import PanopticHead
from panoptic_mapper.panoptic_map import PanopticMap
from panoptic_mapper.rasterizers import RasterizerName, create_rasterizer
from panoptic_mapper.rasterizers.base import Rendering
from panoptic_mapper.refinement import refine
from panoptic_mapper.segmenters.base import Segmenter, check_ids, check_segmentation
from panoptic_mapper.snapshot import MapObject, MapSnapshot, MapStats, PanopticView
from panoptic_mapper.timing import FramePace, StageClock, StepBudget
from panoptic_mapper.vocabulary import OpenVocabulary, label_space_of_words

logger = logging.getLogger(__name__)

UP_AXES = {"x": (1, 0, 0), "-x": (-1, 0, 0), "y": (0, 1, 0), "-y": (0, -1, 0), "z": (0, 0, 1), "-z": (0, 0, -1)}
CPU_WIDTH_PX = 320  # what two cores can hold
FRAMES_FOR_UP = 5  # first keyframes from which an unknown up direction is estimated
STEPS_AHEAD = 6  # steps that are chosen at once: about as many as there is time for between two keyframes
SNAP_TO_Z = 0.97  # cosine above which an estimated up direction is taken to be exactly z


@dataclass(frozen=True)
class MapperConfig(Config):
    """All settings of the mapper."""

    seed: int = param(0, "seed of all random choices", ge=0)
    image_width_px: int = param(0, "images are mapped at this width, px; 0 = full on CUDA, 320 on a CPU", ge=0)
    up_axis: str = param("auto", "the map's up direction; auto estimates it", choices=("auto", *UP_AXES))
    rasterizer: RasterizerName = param(
        "auto", "auto = gsplat on CUDA, cpu elsewhere", choices=("auto", "cpu", "gsplat", "torch")
    )
    gaussians: GaussianConfig = section(GaussianConfig)
    keyframes: KeyframeConfig = section(KeyframeConfig)
    density: DensityConfig = section(DensityConfig)
    association: AssociationConfig = section(AssociationConfig)
    instances: InstanceConfig = section(InstanceConfig)
    labels: LabelConfig = section(LabelConfig)
    optimizer: OptimizerConfig = section(OptimizerConfig)
    losses: LossWeights = section(LossWeights)
    learning_rates: LearningRates = section(LearningRates)
    offline: OfflineConfig = section(OfflineConfig)
    densification: DensificationConfig = section(DensificationConfig)


@dataclass(frozen=True)
class IntegrationReport:
    """What `integrate` did with a frame."""

    is_keyframe: bool
    num_new_gaussians: int = 0
    num_removed_gaussians: int = 0
    num_masks: int = 0  # 2D masks of things
    num_matched_masks: int = 0  # of these, matched to an object, new ones included
    new_object_ids: tuple[int, ...] = ()
    stage_ms: dict[str, float] = field(default_factory=dict)  # duration of each stage


class PanopticMapper:
    """Turns posed RGB-D frames into a panoptic map of 3D Gaussians. Not thread-safe: one thread owns it."""

    def __init__(self, config: MapperConfig, segmenter: Segmenter, device: str = "cpu"):
        self.config = config
        self.segmenter = segmenter
        self.label_space = segmenter.label_space
        self.device = torch.device(device)
        self._rasterizer = create_rasterizer(config.rasterizer, self.device)
        self.reset()

    def reset(self) -> None:
        """Forgets the map; object ids start at 1 again."""
        config = self.config
        generator = torch.Generator().manual_seed(config.seed)
        self.map = PanopticMap(
            GaussianMap(config.learning_rates, self.device, config.gaussians),
            InstanceQueries(config.instances, len(self.label_space), generator, self.device),
            PanopticHead(self.label_space, generator, self.device),
            self._rasterizer,
            config.labels,
        )
        self.keyframes = KeyframeStore(config.keyframes, config.seed)
        self.optimizer = MapOptimizer(self.map, config.optimizer, config.losses, config.density, config.association)
        self.up = np.array(UP_AXES.get(config.up_axis, UP_AXES["z"]), dtype=np.float64)  # [3] map frame
        self.num_frames = 0
        self.last_stamp_ns = 0
        self._extractor = extraction.create_extractor(self.device)
        self._clock, self._budget = StageClock(self.device), StepBudget(self.device)
        self._pace = FramePace(1e-3 * config.optimizer.frame_budget_ms)
        self._frames_for_up: list[Frame] = []
        self._next_steps: deque[tuple[Keyframe, list[Keyframe]]] = deque()  # keyframes and their neighbours

    def integrate(self, frame: Frame, waited_s: float = 0.0) -> IntegrationReport:
        """Takes a frame into the map: segment, associate, grow, label, optimise, maintain.

        Args:
            frame: the next one.
            waited_s: how long it has waited for the mapper, which is then to catch up (`optimizer.frame_budget_ms`).

        Raises:
            ValueError: the segmenter's labels do not fit the frame or the label space. The map is as before.
        """
        deadline_s = self._pace.begin(waited_s)
        try:
            return self._integrate(frame, deadline_s)
        finally:
            self._pace.end()

    def _integrate(self, frame: Frame, deadline_s: float) -> IntegrationReport:
        """`integrate`, which is to be done at `deadline_s` by `time.perf_counter()`."""
        self.num_frames += 1
        mapped_frame = self.at_mapping_size(frame)
        stage_ms: dict[str, float] = {}
        if not self._is_keyframe(mapped_frame):
            self._refine_until(deadline_s)
            return IntegrationReport(is_keyframe=False)
        with self._clock.stage("segment", stage_ms):
            keyframe = self.keyframes.add(mapped_frame, self._segment(frame), self.device)
            self._choose_steps_anew()
        with self._clock.stage("associate", stage_ms):
            seen, rendering, new_ids = self._associate(keyframe)
        with self._clock.stage("grow", stage_ms):
            num_new, seen = self._grow(keyframe, seen, rendering, new_ids)
        with self._clock.stage("optimize", stage_ms):
            self._optimize(deadline_s)
        with self._clock.stage("maintain", stage_ms):
            num_removed = self._prune(keyframe, seen)
            maintain_queries(self.map, self.keyframes)
        self._update_up(frame)
        self.last_stamp_ns = frame.stamp_ns
        num_masks, num_matched = len(keyframe.mask_ids) - 1, sum(id > 0 for id in keyframe.mask_ids)
        return IntegrationReport(True, num_new, num_removed, num_masks, num_matched, tuple(new_ids), stage_ms)

    def extend_label_space(self, label_space: LabelSpace) -> None:
        """Adds the classes of a space that the map does not know by name; they start without evidence.

        Raises:
            ValueError: a class is a thing in one and stuff in the other. The map is as before.
        """
        extended = self.label_space.extended(label_space)
        if extended is self.label_space:
            return
        logger.info("new classes: %s", ", ".join(extended.names[len(self.label_space) :]))
        self.map.head.grow(extended)
        self.map.queries.grow(len(extended))
        self.optimizer.follow_head()
        self.label_space = extended

    def set_vocabulary(self, things: Sequence[str], stuff: Sequence[str]) -> None:
        """Makes the segmenter look for other words (see `vocabulary.label_space_of_words`); new ones become classes.

        Raises:
            ValueError: the segmenter has fixed classes, a word is wrong, or it changes between thing and stuff.
        """
        if not (isinstance(self.segmenter, OpenVocabulary) and self.segmenter.label_space.is_open):
            raise ValueError("vocabulary: the segmenter knows a fixed set of classes; use one that takes words")
        self.extend_label_space(label_space_of_words(things, stuff))
        self.segmenter.set_vocabulary(things, stuff)

    def label(self, stamp_ns: int, segmentation: Segmentation, label_space: LabelSpace | None = None) -> bool:
        """Labels the keyframe of a time that has no labels yet: those of a 2D model that is slower than the camera.

        Its masks meet the map as it is now, as they do when a keyframe is replayed, from the keyframe's own pose.

        Args:
            segmentation: of the whole image, at any resolution.
            label_space: what its class indices mean, the map's own where None; classes that are new are added.

        Returns:
            Whether there is such a keyframe.

        Raises:
            ValueError: the labels do not fit the label space. The map is as before.
        """
        label_space = label_space or self.label_space
        check_ids(segmentation, label_space)
        segmentation = self._in_own_classes(segmentation, label_space)
        keyframe = self.keyframes.unlabelled(stamp_ns)
        if keyframe is None:
            return False
        start_s = time.perf_counter()
        with self._clock.stage("label", {}):
            keyframe.set_labels(self._usable_labels(segmentation, keyframe.depth.cpu().numpy()))
            seen, _, new_ids = self._associate(keyframe)
            surface = filled_depth(keyframe.depth, self.config.density)
            label_from(keyframe, new_ids, surface, self.map, seen, self.config.density)
            refit_queries(self.map)
            maintain_queries(self.map, self.keyframes)
        self._pace.note_other_work(start_s)
        return True

    def refine(self, num_steps: int) -> None:
        """Optimises the map over its keyframes; does nothing while there are none."""
        for step in range(num_steps if len(self.keyframes) else 0):
            self._step(step, num_steps - step)

    def _optimize(self, deadline_s: float) -> None:
        """The steps of a keyframe: a fixed number of them, or what fits until `deadline_s`, and at least one."""
        config = self.config.optimizer
        if config.frame_budget_ms == 0:
            self.refine(config.steps_per_keyframe)
        else:
            self._refine_until(deadline_s, min_steps=1)

    def _refine_until(self, deadline_s: float, min_steps: int = 0) -> None:
        """Takes steps while there is time before `time.perf_counter()` is `deadline_s`."""
        if len(self.keyframes) == 0 or self.config.optimizer.frame_budget_ms == 0:
            return
        self._budget.begin()
        while min_steps > 0 or self._budget.has_time(deadline_s):
            self._step(self.optimizer.num_steps, STEPS_AHEAD)
            self._budget.note_step()
            min_steps -= 1

    def _choose_steps_anew(self) -> None:
        """The latest keyframe is another one."""
        for keyframe, _ in self._next_steps:
            keyframe.num_steps -= 1
        self._next_steps.clear()

    def _step(self, turn: int, num_ahead: int) -> None:
        """Takes the step of a turn; `num_ahead` steps, this one included, will most likely be taken one by one."""
        if not self._next_steps:
            for step in range(turn, turn + min(num_ahead, STEPS_AHEAD)):
                keyframe = self.keyframes.sample(step)
                neighbours = self.keyframes.neighbours(keyframe, self.config.optimizer.warp_views)
                self._next_steps.append((keyframe, neighbours))
        self.optimizer.prepare([keyframe for keyframe, _ in self._next_steps])
        self.optimizer.step(*self._next_steps.popleft())

    @torch.no_grad()
    def render(self, camera: PinholeCamera, T_map_camera: np.ndarray) -> PanopticView:
        """The map as a camera would see it from a pose, with colour, depth, semantic and instance images."""
        view = self.map.view(camera, T_map_camera)
        return extraction.panoptic_view(view, view.render(), view.blend_labels(), self.map.queries)

    def snapshot(self) -> MapSnapshot:
        """An immutable copy of the labelled Gaussians and of the objects."""
        return self.begin_snapshot()()

    def begin_snapshot(self) -> Callable[[], MapSnapshot]:
        """Copies the map as it is now, without a wait; what it returns makes the snapshot, in any thread.

        On a GPU it does so on a stream of its own, so that mapping goes on meanwhile.
        """
        frozen = extraction.freeze(self.map)
        label_space, up, stamp_ns = self.label_space, self.up.copy(), self.last_stamp_ns
        extractor = self._extractor
        return lambda: extraction.map_snapshot(frozen, label_space, up, stamp_ns, extractor)

    def objects(self) -> tuple[MapObject, ...]:
        """The objects of the map, by ascending id."""
        return extraction.map_objects(extraction.freeze(self.map), self.label_space, self.up, self._extractor)

    def at_mapping_size(self, frame: Frame) -> Frame:
        """The frame at the resolution at which it is mapped: never larger than it came."""
        width = self.config.image_width_px or (CPU_WIDTH_PX if self.device.type == "cpu" else frame.camera.width)
        if width >= frame.camera.width:
            return frame
        return frame.resized(width, round(frame.camera.height * width / frame.camera.width))

    def stats(self) -> MapStats:
        """Counters and gauges; waits for the device once."""
        losses = self.optimizer.losses
        sizes = extraction.object_sizes(self.map)
        values = torch.cat([*(loss.reshape(1) for loss in losses.values()), sizes.float()]).tolist()
        loss_values, sizes_on_host = values[: len(losses)], torch.tensor(values[len(losses) :])
        is_object = (sizes_on_host >= self.map.queries.config.min_gaussians) & self.map.queries.is_confirmed
        map_bytes = self.map.gaussians.nbytes + self.map.queries.table.nbytes + self.keyframes.nbytes
        return MapStats(
            num_frames=self.num_frames,
            num_keyframes=len(self.keyframes),
            num_gaussians=len(self.map.gaussians),
            num_objects=int(is_object.sum()),
            map_bytes=map_bytes,
            losses=dict(zip(losses, loss_values, strict=True)),
            stage_ms=self._clock.medians_ms(),
        )

    def export_state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Everything that is needed to go on mapping later, for `map_io.save_map`."""
        return mapper_state.export_state(self)

    def restore_state(self, tensors: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
        """Replaces the map by a saved one.

        Raises:
            ValueError: the state is of another label space or incomplete. The map is as before.
        """
        mapper_state.restore_state(self, tensors, meta)

    def _is_keyframe(self, frame: Frame) -> bool:
        """Whether a frame has depth to map, and the camera has moved on or sees enough that no keyframe has seen."""
        depth, density = frame.depth, self.config.density
        least = density.min_usable_share * depth.size
        # Every eighth row mostly holds that much already, and the others are not looked at.
        if all(np.count_nonzero(usable_depth(rows, density)) < least for rows in (depth[::8], depth)):
            return False
        if self.keyframes.moved_enough(frame.T_map_camera):
            return True
        depth = nearest(depth, *covisibility.POINTS)  # no more of it is asked about
        return self.keyframes.shows_enough_new(depth * usable_depth(depth, density), frame.camera, frame.T_map_camera)

    def _segment(self, frame: Frame) -> Segmentation | None:
        """The 2D labels at mapping size, where there are some and they come at once."""
        segmentation = self.segmenter.segment(frame)
        if segmentation is None:
            return None
        label_space = self.segmenter.label_space
        check_segmentation(segmentation, frame, label_space)
        segmentation = self._in_own_classes(segmentation, label_space)
        return self._usable_labels(segmentation, self.at_mapping_size(frame).depth)

    def _in_own_classes(self, segmentation: Segmentation, label_space: LabelSpace) -> Segmentation:
        """Checked labels with the map's class indices in place of those of another space."""
        if label_space == self.label_space:
            return segmentation
        self.extend_label_space(label_space)
        semantic = self.label_space.indices_of(label_space)[segmentation.semantic]
        return Segmentation(semantic, segmentation.instance, segmentation.confidence)

    def _usable_labels(self, segmentation: Segmentation, depth: np.ndarray) -> Segmentation:
        """Labels at the size of `depth` [H, W]: none for what is right before the lens, and no instances of stuff."""
        segmentation = segmentation.resized(*depth.shape[::-1])
        semantic, is_free = segmentation.semantic, unobstructed(depth, self.config.density)
        if not is_free.all():
            semantic = semantic * is_free
        labels = Segmentation(semantic, segmentation.instance, segmentation.confidence)
        return labels.without_instances_of(~self.label_space.is_thing)

    @torch.no_grad()
    def _associate(self, keyframe: Keyframe) -> tuple[Tensor, Rendering, list[int]]:
        """Tells which object each 2D mask shows.

        Returns:
            Rows [V] of the Gaussians that may be in view, the map as the keyframe sees it, and ids of new objects.
        """
        view = self.optimizer.view_of(keyframe)
        rendering = view.render()
        config, density = self.config.association, self.config.density
        parts = associate(keyframe, view, rendering, view.blend_labels(), self.map.queries, config, density)
        new_ids = open_queries(keyframe, parts, self.map, config, density)
        self.map.queries.count(self.keyframes.observations())
        return view.gaussians.ids, rendering, new_ids

    def _grow(self, keyframe: Keyframe, seen: Tensor, rendering: Rendering, new_ids: list[int]) -> tuple[int, Tensor]:
        """Adds what the map lacks, with labels that are right at once.

        Args:
            keyframe: the observation.
            seen: rows [V] of the Gaussians that may be in view.
            rendering: the map as the keyframe sees it.
            new_ids: ids of new objects.

        Returns:
            The number of new Gaussians, and `seen` with these.
        """
        surface = filled_depth(keyframe.depth, self.config.density)
        new = unexplained(keyframe.depth, surface, rendering, self.config.density)
        columns = grown_gaussians(keyframe, surface, new, self.config.density, self.config.gaussians.base)
        num_before = len(self.map.gaussians)
        renewed = seen[:0]
        if self.config.density.refine_coarseness > 0:
            renewed = refine(self.map.gaussians, seen, keyframe, rendering, self.config.density)
        self.map.gaussians.append(columns, keyframe.id)
        num_new = len(self.map.gaussians) - num_before
        seen = torch.cat([seen, torch.arange(num_before, num_before + num_new, device=seen.device)])
        label_from(keyframe, new_ids, surface, self.map, seen, self.config.density, renewed=renewed)
        refit_queries(self.map)
        return num_new, seen

    def _prune(self, keyframe: Keyframe, seen: Tensor) -> int:
        """Removes Gaussians that faded, grew too large or float in free space; returns their number.

        Args:
            keyframe: it may see, at the rows `seen` [V], Gaussians in space that is empty.
        """
        gaussians = self.map.gaussians
        count_free_space_hits(gaussians, seen, keyframe, self.config.density)
        keep = survivors(gaussians, self.config.density)
        gaussians.keep(keep)
        return len(keep) - len(gaussians)

    def _update_up(self, frame: Frame) -> None:
        """Estimates the up direction from the first keyframes where the configuration does not give it."""
        if self.config.up_axis != "auto" or len(self.keyframes) > FRAMES_FOR_UP:
            return
        self._frames_for_up.append(frame)
        if len(self.keyframes) == FRAMES_FOR_UP:
            try:
                up = estimate_up(self._frames_for_up)
                self.up = self.up if up @ self.up > SNAP_TO_Z else up
            except ValueError as error:
                logger.warning("%s; z is taken to be up", error)
            self._frames_for_up.clear()
