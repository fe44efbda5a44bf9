"""A hand-held-like closed walk through the synthetic rooms."""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from panoptic_mapper.datasets.floor_plan import CORRIDOR_WIDTH_M, Room

EYE_HEIGHT_M = 1.5
SAMPLE_M = 0.02  # spacing of the dense path
SMOOTHING_M = 0.25  # corners are rounded over about this length


def closed_walk(rooms: list[Room], num_frames: int, rng: np.random.Generator, revisits: bool = False) -> np.ndarray:
    """Poses T_world_camera [num_frames, 4, 4] float64, evenly spaced along a loop that ends where it began.

    With `revisits`, it goes through the first room once more before it ends.
    """
    if len(rooms) == 1:
        stations, targets = (np.tile(points, (1 + revisits, 1)) for points in _studio_loop(rooms[0]))
    else:
        stations, targets = _corridor_tour(rooms, revisits)
    position, target = _smooth_loop(stations, targets, num_frames)
    phase = 2 * np.pi * np.arange(num_frames) / num_frames

    def sway(amplitude: float) -> np.ndarray:  # [num_frames, 3], periodic like the walk itself
        waves = [np.sin(phase[:, None] * k + rng.uniform(0, 2 * np.pi, 3)) / k for k in (2, 5, 9)]
        return amplitude * np.sum(waves, axis=0)

    position = position + sway(0.02)
    poses = np.tile(np.eye(4), (num_frames, 1, 1))
    poses[:, :3, 3] = position
    poses[:, :3, :3] = _look_at(target - position) @ Rotation.from_rotvec(sway(0.02)).as_matrix()
    return poses


def _studio_loop(room: Room) -> tuple[np.ndarray, np.ndarray]:
    """Around the middle of the room, looking across it; stations and points looked at, both [M, 3]."""
    angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    w, d = room.size[0] / 2, room.size[1] / 2
    across = angle + np.pi + 0.5 * np.sin(2 * angle)
    stations = np.stack([0.58 * w * np.cos(angle), 0.5 * d * np.sin(angle), np.full_like(angle, EYE_HEIGHT_M)], 1)
    height = 0.62 + 0.3 * np.sin(3 * angle)
    return stations, np.stack([0.75 * w * np.cos(across), 0.8 * d * np.sin(across), height], 1)


def _corridor_tour(rooms: list[Room], revisits: bool) -> tuple[np.ndarray, np.ndarray]:
    """Into every room in turn, around it and out again, then back along the corridor, and into the first if wanted."""
    stations: list[tuple[float, float, float]] = []
    targets: list[tuple[float, float, float]] = []

    def go(x: float, y: float, tx: float, ty: float, tz: float = 0.8) -> None:
        stations.append((x, y, EYE_HEIGHT_M))
        targets.append((tx, ty, tz))

    def tour(room: Room) -> None:
        _, d = room.size
        inside = [(0, -d / 2 + 0.5), (-0.9, -0.9), (-1.1, 0.3), (0.0, -0.5), (1.1, 0.3), (0.9, -0.9), (0, -d / 2 + 0.5)]
        gaze = [(0.3, 1.5), (0.9, 2.2), (2.4, 0.5), (0.0, 2.3), (-2.4, 0.3), (-1.6, -1.6), (0.6, -d / 2 - 1.0)]
        go(room.x, 0.0, *room.to_world(np.array([0.0, 0.5])))
        for at, look in zip(inside, gaze, strict=True):
            go(*room.to_world(np.array(at)), *room.to_world(np.array(look)))
        go(room.x, 0.0, room.x + 1.0, -room.y)

    for room in rooms:
        tour(room)
    last = max(room.x for room in rooms)
    side = CORRIDOR_WIDTH_M / 4
    go(last, -side, last - 2.5, 0.0, 1.2)
    go(rooms[0].x, side, rooms[0].x - 2.5, 0.0, 1.2)
    if revisits:
        tour(rooms[0])
    return np.array(stations), np.array(targets)


def _smooth_loop(stations: np.ndarray, targets: np.ndarray, num_frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Samples the closed polygons at even steps and rounds their corners; smoothing never leaves the convex hull,
    so a path through a doorway stays in it."""
    closed = np.concatenate([stations, stations[:1]])
    looks = np.concatenate([targets, targets[:1]])
    # A turn on the spot takes time too: half of the way of what is looked at counts as way.
    steps = np.linalg.norm(np.diff(closed, axis=0), axis=1) + 0.5 * np.linalg.norm(np.diff(looks, axis=0), axis=1)
    way = np.concatenate([[0], np.cumsum(steps)])
    dense = np.arange(0, way[-1], SAMPLE_M)
    sigma = SMOOTHING_M / SAMPLE_M
    at = np.linspace(0, len(dense), num_frames, endpoint=False)
    smoothed = []
    for polygon in (closed, looks):
        samples = np.stack([np.interp(dense, way, polygon[:, a]) for a in range(3)], 1)
        samples = ndimage.gaussian_filter1d(samples, sigma, axis=0, mode="wrap")
        samples = np.concatenate([samples, samples[:1]])
        smoothed.append(np.stack([np.interp(at, np.arange(len(samples)), samples[:, a]) for a in range(3)], 1))
    return smoothed[0], smoothed[1]


def _look_at(direction: np.ndarray) -> np.ndarray:
    """Rotations [M, 3, 3] world from camera that look along `direction` [M, 3] with the image upright."""
    z = direction / np.linalg.norm(direction, axis=1, keepdims=True)
    x = np.cross(z, (0, 0, 1))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return np.stack([x, np.cross(z, x), z], axis=2)
