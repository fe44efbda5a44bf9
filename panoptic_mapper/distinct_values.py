"""Images of ids as runs of equal pixels, and their distinct values: several times as fast as to sort the pixels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class Runs:
    """An image [H, W] as runs of equal pixels in reading order; two that follow each other may be equal."""

    values: np.ndarray  # [R] of the pixels of each
    starts: np.ndarray  # [R] int64 first pixel of each
    shape: tuple[int, ...]  # of the image

    @staticmethod
    def of(image: np.ndarray) -> Runs:
        pixels = image.ravel()
        starts = _starts(pixels.size, pixels[1:] != pixels[:-1])
        return Runs(pixels[starts], starts, image.shape)

    @staticmethod
    def of_pairs(high: np.ndarray, low: np.ndarray) -> Runs:
        """Those of the image `high << 32 | low`, int64, which is not made; of integers from 0 to below 2^31."""
        high_px, low_px = high.ravel(), low.ravel()
        starts = _starts(low_px.size, (high_px[1:] != high_px[:-1]) | (low_px[1:] != low_px[:-1]))
        return Runs(high_px[starts].astype(np.int64) << 32 | low_px[starts], starts, low.shape)

    @cached_property
    def lengths(self) -> np.ndarray:  # [R] int64 pixels of each
        return np.diff(self.starts, append=int(np.prod(self.shape)))

    def image(self) -> np.ndarray:
        """The image [H, W]."""
        return np.repeat(self.values, self.lengths).reshape(self.shape)

    def pixels_of(self, value: int) -> np.ndarray:
        """Places [n] int64 in reading order of the pixels that have a value."""
        runs = np.flatnonzero(self.values == value)
        lengths = self.lengths[runs]
        ends = np.cumsum(lengths)
        return np.arange(lengths.sum()) + np.repeat(self.starts[runs] - ends + lengths, lengths)


@dataclass(frozen=True)
class DistinctValues:
    """What values an image [H, W] has, and in which runs: these are sorted, not pixels."""

    values: np.ndarray  # [K] ascending
    of_run: np.ndarray  # [R] int64 the place in `values` of each run's value
    runs: Runs

    @staticmethod
    def of(image: np.ndarray) -> DistinctValues:
        """Those of an image of any integers."""
        return DistinctValues.of_runs(Runs.of(image))

    @staticmethod
    def of_runs(runs: Runs) -> DistinctValues:
        values, of_run = np.unique(runs.values, return_inverse=True)
        return DistinctValues(values, of_run, runs)

    @property
    def first_pixels(self) -> np.ndarray:  # [K] int64 place of the first pixel of each value in reading order
        _, first_runs = np.unique(self.of_run, return_index=True)
        return self.runs.starts[first_runs]

    @cached_property
    def counts(self) -> np.ndarray:  # [K] int64 pixels of each value
        return np.bincount(self.of_run, self.runs.lengths, len(self.values)).astype(np.int64)

    def runs_with(self, values: np.ndarray) -> Runs:
        """The image with other values [K] in place of its own, as runs."""
        return Runs(values[self.of_run], self.runs.starts, self.runs.shape)

    def replaced_by(self, values: np.ndarray) -> np.ndarray:
        """The image [H, W] with other values [K] in place of its own."""
        return self.runs_with(values).image()


def _starts(num_pixels: int, is_step: np.ndarray) -> np.ndarray:
    """Where runs start [R]: at the first of some pixels, and after each step [num_pixels - 1] from one to the next."""
    return np.concatenate([np.arange(min(num_pixels, 1)), np.flatnonzero(is_step) + 1])
