"""Baseline: the raw 2D labels, followed from frame to frame by the overlap of their masks, and no map.

Masks of the latest frames are carried into the next one by depth and pose and matched by IoU (Hungarian); a matched
mask continues its track. A new view takes the labels of the nearest frames, carried there in the same way.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial.transform import Rotation

from benchmarks.baselines.warping import filled_from_nearest, map_points, seen_pixels, splatted
from panoptic_mapper.config import Config, param
from panoptic_mapper.frame import Frame, PinholeCamera
from panoptic_mapper.label_space import LabelSpace
from panoptic_mapper.snapshot import PanopticView


@dataclass(frozen=True)
class TrackerConfig(Config):
    """Settings, tuned on the simulated sequences at each level of noise."""

    memory_frames: int = param(0, "frames after which what was seen is forgotten, 0 = never", ge=0)
    min_iou: float = param(0.1, "masks that overlap a track less begin a new one", ge=0, le=1)
    min_overlap: float = param(0.1, "frames that share less of the view are not compared", ge=0, le=1)
    stride_px: int = param(2, "masks are compared on every so many-th pixel", ge=1)
    min_mask_px: int = param(30, "smaller masks begin no track", ge=1)
    min_hits: int = param(4, "tracks with fewer masks are not shown", ge=1)
    render_frames: int = param(20, "a view takes the majority of the labels of so many nearest frames", ge=1)
    depth_frames: int = param(3, "and the depth of so many of these", ge=1)
    turn_m: float = param(1.0, "a turn of one radian counts like a move of this length when frames are near, m", gt=0)


@dataclass
class _TrackedFrame:
    """A frame and what its masks were found to be."""

    color: np.ndarray  # [H, W, 3] uint8
    depth: np.ndarray  # [H, W] float32 m
    camera: PinholeCamera
    T_map_camera: np.ndarray  # [4, 4]
    semantic: np.ndarray  # [H, W] int32 class index
    track: np.ndarray  # [H, W] int32 track id, 0 = none
    confidence: np.ndarray  # [H, W] float32


class Tracker:
    """Follows 2D masks through the frames given to `integrate`."""

    def __init__(self, label_space: LabelSpace, config: TrackerConfig | None = None) -> None:
        self.label_space = label_space
        self.config = config or TrackerConfig()
        self.frames: list[_TrackedFrame] = []
        self._class_votes = np.zeros((1, len(label_space)))  # [tracks + 1, C] by track id
        self._hits = np.zeros(1, np.int64)  # [tracks + 1] masks by track id

    @property
    def num_tracks(self) -> int:
        return len(self._hits) - 1

    def integrate(self, frame: Frame) -> None:
        """Takes the frame's labels in: each mask continues a track or begins one."""
        assert frame.labels is not None
        confidence = (
            np.ones(frame.depth.shape, np.float32) if frame.labels.confidence is None else (frame.labels.confidence)
        )
        masks = frame.labels.instance * self.label_space.is_thing[frame.labels.semantic]
        ids = np.unique(masks[masks > 0])
        track_of = np.zeros(int(masks.max()) + 1, np.int32)
        track_of[ids] = self._matched_tracks(frame, masks, ids)
        for mask in ids:
            pixels = masks == mask
            if track_of[mask] == 0 and pixels.sum() >= self.config.min_mask_px:
                track_of[mask] = self._new_track()
            if track_of[mask] > 0:
                self._hits[track_of[mask]] += 1
                class_index = frame.labels.semantic[pixels][0]
                self._class_votes[track_of[mask], class_index] += confidence[pixels].mean()
        self.frames.append(
            _TrackedFrame(
                frame.color,
                frame.depth,
                frame.camera,
                frame.T_map_camera,
                frame.labels.semantic,
                track_of[masks],
                confidence,
            )
        )

    def render(self, camera: PinholeCamera, T_map_camera: np.ndarray, depth: np.ndarray | None = None) -> PanopticView:
        """The labels of the nearest frames in another view.

        Args:
            depth: measured depth [H, W] (m) of the view, where it is known; else that of the nearest frames is carried.
        """
        near = self._nearest(T_map_camera)
        if depth is None:
            depth = self._carried_depth(near[: self.config.depth_frames], camera, T_map_camera)
        has_depth = depth > 0
        points = map_points(depth, camera, T_map_camera)[has_depth]
        segment = np.zeros((len(near), len(points)), np.int64)  # track id, or minus the class of stuff; 0 = unknown
        weight = np.zeros((len(near), len(points)), np.float32)
        color = np.zeros((len(points), 3), np.uint8)
        for i, frame in enumerate(near):
            pixels = seen_pixels(points, frame.depth, frame.camera, frame.T_map_camera)
            shown = pixels >= 0
            segment[i, shown] = self._segments(frame).ravel()[pixels[shown]]
            weight[i, shown] = frame.confidence.ravel()[pixels[shown]]
            uncolored = shown & (color == 0).all(-1)
            color[uncolored] = frame.color.reshape(-1, 3)[pixels[uncolored]]
        weight[segment == 0] = 0
        votes = np.stack([(weight * (segment == segment[i])).sum(0) for i in range(len(near))]) * (segment != 0)
        best = np.take_along_axis(segment, votes.argmax(0)[None], 0)[0]

        segments = np.zeros(depth.shape, np.int64)
        segments[has_depth] = best
        segments = filled_from_nearest(segments, segments != 0)
        image = np.zeros((*depth.shape, 3), np.uint8)
        image[has_depth] = color
        image = filled_from_nearest(image, np.any(image > 0, axis=-1))
        semantic, instance = self._labels(segments)
        return PanopticView(image, depth, has_depth.astype(np.float32), semantic, instance)

    def _matched_tracks(self, frame: Frame, masks: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """The track that each mask continues, int32 [K], 0 = none: by the IoU over all remembered frames."""
        matched = np.zeros(len(ids), np.int32)
        s = self.config.stride_px
        depth, labeled = frame.depth[::s, ::s], frame.labels.semantic[::s, ::s] > 0  # type: ignore[union-attr]
        points = map_points(frame.depth, frame.camera, frame.T_map_camera)[::s, ::s]
        compared = (depth > 0) & labeled
        points, masks = points[compared], masks[::s, ::s][compared]
        column = np.zeros(int(masks.max(initial=0)) + 1, np.int64)
        column[ids[ids < len(column)]] = 1 + np.flatnonzero(ids < len(column))
        mask_index = column[masks]  # 0 = no mask
        overlap = np.zeros((len(ids) + 1, self.num_tracks + 1))  # pixels, summed over frames
        for other in self.frames[-self.config.memory_frames :]:
            pixels = seen_pixels(points, other.depth, other.camera, other.T_map_camera)
            both = pixels >= 0
            if both.sum() < self.config.min_overlap * len(points):
                continue
            both[both] = other.semantic.ravel()[pixels[both]] > 0  # what a frame says nothing about is no evidence
            pairs = mask_index[both] * overlap.shape[1] + other.track.ravel()[pixels[both]]
            overlap += np.bincount(pairs, minlength=overlap.size).reshape(overlap.shape)
        union = overlap.sum(1, keepdims=True) + overlap.sum(0) - overlap
        iou = (overlap / np.maximum(union, 1))[1:, 1:]
        for k, track in zip(*linear_sum_assignment(-iou), strict=True):
            if iou[k, track] >= max(self.config.min_iou, 1e-6):
                matched[k] = track + 1
        return matched

    def _new_track(self) -> int:
        self._class_votes = np.concatenate([self._class_votes, np.zeros((1, len(self.label_space)))])
        self._hits = np.append(self._hits, 0)
        return self.num_tracks

    def _nearest(self, T_map_camera: np.ndarray) -> list[_TrackedFrame]:
        """The frames whose cameras were nearest to a pose, the nearest first."""
        poses = np.stack([frame.T_map_camera for frame in self.frames])
        move = np.linalg.norm(poses[:, :3, 3] - T_map_camera[:3, 3], axis=1)
        turn = Rotation.from_matrix(poses[:, :3, :3].transpose(0, 2, 1) @ T_map_camera[:3, :3]).magnitude()
        order = np.argsort(move + self.config.turn_m * turn, kind="stable")
        return [self.frames[i] for i in order[: self.config.render_frames]]

    def _carried_depth(self, near: list[_TrackedFrame], camera: PinholeCamera, T_map_camera: np.ndarray) -> np.ndarray:
        """The depth [H, W] (m) that frames' measured surfaces have in another view; holes take their neighbours'."""
        points, radii = [], []
        for frame in near:
            measured = frame.depth > 0
            points.append(map_points(frame.depth, frame.camera, frame.T_map_camera)[measured])
            # A pixel each, more only where the view is nearer: larger squares would blur the outlines.
            radii.append(0.35 * frame.depth[measured] / frame.camera.fx)
        _, depth = splatted(np.concatenate(points), np.concatenate(radii), camera, T_map_camera)
        return filled_from_nearest(depth, depth > 0)

    def _segments(self, frame: _TrackedFrame) -> np.ndarray:
        """The track of a thing, minus the class of stuff, 0 where nothing is known: int64 [H, W]."""
        return np.where(
            frame.track > 0, frame.track, np.where(self.label_space.is_thing[frame.semantic], 0, -frame.semantic)
        )

    def _labels(self, segments: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Class and instance images [H, W] int32 of segment numbers; a track has the class of most of its masks."""
        track = np.maximum(segments, 0)
        semantic = np.where(segments > 0, self._class_votes.argmax(1)[track], np.maximum(-segments, 0))
        instance = np.where(self._hits[track] >= self.config.min_hits, track, 0)
        return semantic.astype(np.int32), instance.astype(np.int32)
