"""Which frame the 2D model gets next, where there are more keyframes than it can label."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from panoptic_mapper.config import Config, param
from panoptic_mapper.frame import Frame


@dataclass(frozen=True)
class LabelQueueConfig(Config):
    """How many keyframes may wait for their labels, for how long, and how often one is taken."""

    max_rate_hz: float = param(0.0, "The model gets at most so many keyframes per second; 0 = as it can.", ge=0)
    capacity: int = param(16, "Keyframes that wait for the model; beyond it the oldest stays without labels.", ge=1)
    max_age_s: float = param(60.0, "A keyframe that waited longer for the model stays without labels, s.", gt=0)
    order: Literal["newest", "oldest"] = param(
        "newest",
        "Which waiting keyframe is next; newest: the rest when the camera pauses.",
        choices=("newest", "oldest"),
    )


@dataclass
class LabelRequest:
    """A frame that waits for its labels."""

    frame: Frame
    arrival_s: float
    num_attempts: int = 0  # how often the model failed on it


@dataclass
class LabelQueue:
    """Frames in the order of their arrival. Not thread-safe; times are seconds of any one clock."""

    config: LabelQueueConfig
    given_up: Counter[str] = field(default_factory=Counter)  # frames that stay without labels, by reason
    _waiting: list[LabelRequest] = field(default_factory=list)
    _last_taken_s: float = -float("inf")

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, request: LabelRequest) -> None:
        """Lets a frame wait, again or for the first time; the oldest is given up where there are too many."""
        self._waiting.append(request)
        self._waiting.sort(key=lambda r: r.arrival_s)
        while len(self._waiting) > self.config.capacity:
            self._waiting.pop(0)
            self.given_up["queue_full"] += 1

    def wait_s(self, now_s: float) -> float | None:
        """How long to wait until a frame may be taken; None where none waits."""
        if not self._waiting:
            return None
        rate_hz = self.config.max_rate_hz
        return max(0.0, self._last_taken_s + 1 / rate_hz - now_s) if rate_hz else 0.0

    def take(self, now_s: float) -> LabelRequest | None:
        """The next frame, which the caller then labels; those that waited too long are given up before."""
        fresh = [r for r in self._waiting if now_s - r.arrival_s <= self.config.max_age_s]
        self.given_up["too_old"] += len(self._waiting) - len(fresh)
        self._waiting = fresh
        if not fresh:
            return None
        self._last_taken_s = now_s
        return fresh.pop(-1 if self.config.order == "newest" else 0)

    def clear(self) -> None:
        """Forgets what waits."""
        self._waiting.clear()
