"""What the node asks of the map: of a `MapServer`, or through a `MappingProcess` of one in another process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from panoptic_mapper.frame import PinholeCamera
from panoptic_mapper.label_space import LabelSpace
from panoptic_mapper.segmenters.background import BackgroundStatus
from panoptic_mapper.snapshot import MapObject, MapSnapshot, MapStats, PanopticView


class MapperFailure(RuntimeError):
    """The mapper cannot answer: it failed, is being closed, or its process has ended. The text says which."""


@dataclass(frozen=True)
class MapperStatus:
    """How the mapper is doing."""

    is_alive: bool  # whether its thread runs
    is_paused: bool
    last_stamp_ns: int  # of the last frame that the map holds
    num_integrated: int  # frames, since the last reset
    rate_hz: float  # frames integrated per second over the last seconds
    latency_ms: tuple[float, ...]  # p50, p90, p99 from a frame's arrival at the queue to the end of its integration
    stats: MapStats
    rss_bytes: int  # resident memory of its process
    last_error: str = ""
    labels: BackgroundStatus | None = None  # of the 2D model, where it runs beside the mapper


class MapService(Protocol):
    """The operations. They run between two frames, in the thread that owns the map; any thread may call them.

    Each raises, beside what is said there:
        TimeoutError: the mapper was busy for too long; what had not begun by then was called back.
        MapperFailure: there is no answer.
    """

    def snapshot(self) -> tuple[MapSnapshot, int]:
        """A copy of the map, made beside the mapping, and the version of the map that it shows. Waits without end."""
        ...

    def objects(self) -> tuple[tuple[MapObject, ...], LabelSpace, int]:
        """The objects by ascending id, what their class indices mean, and the time of the map, ns."""
        ...

    def render(self, camera: PinholeCamera, T_map_camera: np.ndarray) -> tuple[PanopticView, LabelSpace, int]:
        """The map as a camera sees it from a pose, what its class indices mean, and the time of the map, ns."""
        ...

    def save(self, path: Path) -> int:
        """Writes the map as it is now, while mapping goes on; returns the bytes of the file.

        Raises:
            ValueError: the file cannot be written.
        """
        ...

    def load(self, path: Path) -> tuple[MapStats, int]:
        """Replaces the map by a saved one; returns what it is like, and the number of its objects.

        Raises:
            ValueError: the file is not readable, damaged, or does not fit the mapper. The map is as before.
        """
        ...

    def reset(self) -> None:
        """Empties the map, forgets the frames that wait, and all counters."""
        ...

    def set_vocabulary(self, things: Sequence[str], stuff: Sequence[str]) -> LabelSpace:
        """Makes the segmenter look for other words; returns the classes of the map.

        Raises:
            ValueError: a word is wrong, or the segmenter takes none. The map is as before.
        """
        ...

    def pause(self) -> None:
        """Stops mapping. Everything else goes on."""
        ...

    def resume(self) -> None:
        """Goes on mapping."""
        ...

    def status(self) -> MapperStatus:
        """How the mapper is doing, without waiting for its thread."""
        ...
