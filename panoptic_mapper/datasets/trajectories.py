"""Poses and stamps of recorded sequences from text files; every error names the file and the line."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path

import numpy as np

from panoptic_mapper.datasets.tf_tree import recorded_poses
from panoptic_mapper.frame import checked_pose
from panoptic_mapper.pose_buffer import Missing, PoseBuffer, pose_from_quaternion

NS_PER_S = 10**9


def read_rows(file: Path, num_words: int, what: str) -> list[tuple[int, list[str]]]:
    """Line numbers and words of the lines that are neither empty nor comments (#).

    Raises:
        ValueError: the file cannot be read, has no such line, or one of another number of words.
    """
    try:
        lines = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: cannot be read ({error})") from error
    rows = [(k, line.split()) for k, line in enumerate(lines, start=1) if line.strip() and not line.startswith("#")]
    for k, words in rows:
        if len(words) != num_words:
            raise ValueError(f"{file}: line {k}: expected {num_words} words ({what}), got {len(words)}")
    if not rows:
        raise ValueError(f"{file}: no lines of {what}")
    return rows


def stamp_ns(word: str, where: str) -> int:
    """Nanoseconds of a decimal number of seconds, exactly."""
    try:
        return int(Decimal(word) * NS_PER_S)
    except (InvalidOperation, OverflowError, ValueError) as error:
        raise ValueError(f"{where}: expected a time in seconds, got '{word}'") from error


def read_tum_poses(file: Path, max_gap_s: float) -> PoseBuffer:
    """Lines of `stamp tx ty tz qx qy qz qw` (s, m, camera to world), interpolated between neighbours.

    Args:
        max_gap_s: poses further apart are not interpolated between.
    """
    poses = recorded_poses(max_gap_s)
    for k, words in read_rows(file, 8, "stamp tx ty tz qx qy qz qw"):
        where = f"{file}: line {k}"
        stamp, numbers = stamp_ns(words[0], where), floats(words[1:], where)
        try:
            poses.add(stamp, pose_from_quaternion(numbers[:3], numbers[3:]))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
    return poses


def read_matrix_poses(file: Path) -> list[np.ndarray | None]:
    """The 4x4 matrix of each line, row by row in 16 numbers; None where it is not finite (tracking was lost)."""
    poses: list[np.ndarray | None] = []
    for k, words in read_rows(file, 16, "a 4x4 matrix, row by row"):
        T = np.array(floats(words, f"{file}: line {k}")).reshape(4, 4)
        poses.append(rigid(T, f"{file}: line {k}"))
    return poses


def rigid(T: np.ndarray, where: object) -> np.ndarray | None:
    """The pose [4, 4], None where it is not finite; ValueError where it is not rigid."""
    if not np.all(np.isfinite(T)):
        return None
    try:
        return checked_pose(T)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def pose_at(poses: PoseBuffer, stamp_ns: int) -> np.ndarray | None:
    """The pose [4, 4] interpolated at that time; None before the first, after the last, and in wide gaps."""
    pose = poses.lookup(stamp_ns)
    return None if isinstance(pose, Missing) else pose


def nearest(stamps_ns: Sequence[int], stamp_ns: int, max_difference_s: float) -> int | None:
    """Index of the nearest of ascending stamps; None where it is further away than that."""
    i = bisect.bisect_left(stamps_ns, stamp_ns)
    around = [k for k in (i - 1, i) if 0 <= k < len(stamps_ns)]
    best = min(around, key=lambda k: abs(stamps_ns[k] - stamp_ns), default=None)
    return best if best is not None and abs(stamps_ns[best] - stamp_ns) <= max_difference_s * NS_PER_S else None


def floats(words: Sequence[str], where: str) -> list[float]:
    """The numbers that the words say."""
    try:
        return [float(word) for word in words]
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
