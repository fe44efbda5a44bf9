"""Small rolling statistics of a running system: percentiles of durations, and the rate of events."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

Clock = Callable[[], float]  # seconds from any fixed origin, never running backwards


class RollingPercentiles:
    """Percentiles of the last `capacity` values."""

    def __init__(self, capacity: int = 256) -> None:
        if capacity < 1:
            raise ValueError(f"capacity: expected at least 1, got {capacity}")
        self._values: deque[float] = deque(maxlen=capacity)

    def __len__(self) -> int:
        return len(self._values)

    def add(self, value: float) -> None:
        self._values.append(value)

    def percentiles(self, percents: Sequence[float] = (50, 90, 99)) -> tuple[float, ...]:
        """The percentiles, linearly interpolated between values; zeros before the first value."""
        values = list(self._values)  # a copy: another thread may add while this one reads
        if not values:
            return (0.0,) * len(percents)
        return tuple(float(p) for p in np.percentile(values, percents))

    def clear(self) -> None:
        self._values.clear()


class RateMeter:
    """Events per second over the last `window_s` seconds."""

    def __init__(self, window_s: float = 5.0, clock: Clock = time.monotonic) -> None:
        self._window_s = window_s
        self._clock = clock
        self._ticks: deque[float] = deque()

    def tick(self) -> None:
        self._ticks.append(self._clock())
        self._forget_old()

    def rate_hz(self) -> float:
        """Intervals within the window per second; 0 while there are fewer than two events in it."""
        self._forget_old()
        ticks = list(self._ticks)
        if len(ticks) < 2 or ticks[-1] <= ticks[0]:
            return 0.0
        return (len(ticks) - 1) / (ticks[-1] - ticks[0])

    def _forget_old(self) -> None:
        oldest = self._clock() - self._window_s
        while self._ticks and self._ticks[0] < oldest:
            self._ticks.popleft()
