"""Time in a running system: percentiles of durations, the rate of events, stages on the device's clock, a budget."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median

import numpy as np
import torch

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


class StageClock:
    """Medians of the last durations of named stages, ms.

    On a GPU they are those of the device, between events on the current stream that are read when they have passed: the
    host does not wait for them.
    """

    def __init__(self, device: torch.device, capacity: int = 256) -> None:
        self._is_cuda = device.type == "cuda"
        self._durations: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=capacity))
        self._running: deque[tuple[str, torch.cuda.Event, torch.cuda.Event]] = deque()

    @contextmanager
    def stage(self, name: str, host_ms: dict[str, float]) -> Iterator[None]:
        """Times a block; `host_ms[name]` gets how long the host was in it."""
        begin, end = self._event(), self._event()
        if begin is not None:
            begin.record()
        start = time.perf_counter()
        yield
        host_ms[name] = 1e3 * (time.perf_counter() - start)
        if begin is None or end is None:
            self._durations[name].append(host_ms[name])
            return
        end.record()
        self._running.append((name, begin, end))
        self._read_passed()

    def medians_ms(self) -> dict[str, float]:
        self._read_passed()
        return {name: median(values) for name, values in self._durations.items()}

    def _event(self) -> torch.cuda.Event | None:
        return torch.cuda.Event(enable_timing=True) if self._is_cuda else None

    def _read_passed(self) -> None:
        while self._running and self._running[0][2].query():
            name, begin, end = self._running.popleft()
            self._durations[name].append(begin.elapsed_time(end))


class FramePace:
    """When each frame must be done so that all together keep their pace: who overruns takes from those that follow.

    Time in which nothing was done pays debts, too. How long a frame has waited before counts in the same way.
    """

    MAX_DEBT = 2.0  # of a frame's time: whoever falls further behind does not starve the map

    def __init__(self, frame_s: float, clock: Clock = time.perf_counter) -> None:
        self._frame_s, self._clock = frame_s, clock
        self._debt_s = 0.0
        self._idle_since_s = self._deadline_s = clock()

    def begin(self, waited_s: float = 0.0) -> float:
        """The deadline, by the clock, of the frame that begins now, after having waited for its turn."""
        now = self._clock()
        self._owe(max(waited_s, self._debt_s - (now - self._idle_since_s)))
        self._deadline_s = now + self._frame_s - self._debt_s
        return self._deadline_s

    def end(self) -> None:
        """The frame is done."""
        self._idle_since_s = self._clock()
        self._owe(self._idle_since_s - self._deadline_s)

    def note_other_work(self, start_s: float) -> None:
        """Something else than a frame was done from `start_s`, by the clock, until now."""
        self._owe(self._debt_s - (start_s - self._idle_since_s))
        self._idle_since_s = self._clock()
        self._owe(self._debt_s + self._idle_since_s - start_s)

    def _owe(self, debt_s: float) -> None:
        self._debt_s = min(max(0.0, debt_s), self.MAX_DEBT * self._frame_s)


class StepBudget:
    """Says whether there is time for another step before a deadline, from how long steps take on the device.

    On a GPU the host runs ahead of the device by one step: it waits for the last but one, so that there is always work
    and a deadline means the device's time. It does not wait for the last one: what the host does next needs no GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._step_s = 0.0  # running mean
        self._launched: deque[torch.cuda.Event] = deque()
        self._last_s = 0.0

    def begin(self) -> None:
        """Call before the first of some steps."""
        self._last_s = time.perf_counter()

    def note_step(self) -> None:
        """Call after each step."""
        if self._is_cuda:
            event = torch.cuda.Event()
            event.record()
            self._launched.append(event)
            if len(self._launched) > 1:
                self._launched.popleft().synchronize()
        now = time.perf_counter()
        self._step_s += 0.2 * (now - self._last_s - self._step_s) if self._step_s else now - self._last_s
        self._last_s = now

    def has_time(self, deadline_s: float) -> bool:
        """Whether one more step will most likely end before `time.perf_counter()` is `deadline_s`."""
        while self._launched and self._launched[0].query():
            self._launched.popleft()
        return time.perf_counter() + (1 + len(self._launched)) * self._step_s < deadline_s
