"""The mapper with the thread that owns it, behind plain calls that any thread may make: see `MapService`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil

from panoptic_mapper.config import to_dict
from panoptic_mapper.frame import PinholeCamera
from panoptic_mapper.label_space import LabelSpace
from panoptic_mapper.late_labels import take_late_labels
from panoptic_mapper.map_io import load_map, save_map
from panoptic_mapper.map_service import MapperFailure, MapperStatus
from panoptic_mapper.mapper import PanopticMapper
from panoptic_mapper.segmenters.background import BackgroundSegmenter
from panoptic_mapper.snapshot import MapObject, MapSnapshot, MapStats, PanopticView
from panoptic_mapper.worker import FrameSource, MappingWorker, WorkerConfig

ResultT = TypeVar("ResultT")


class MapServer:
    """Owns the mapper, its thread and its 2D model from `start` to `close`.

    Args:
        timeout_s: a call that waits longer for the mapper raises TimeoutError.
    """

    def __init__(
        self, mapper: PanopticMapper, frames: FrameSource, config: WorkerConfig | None = None, timeout_s: float = 30.0
    ) -> None:
        self.worker: MappingWorker[PanopticMapper] = MappingWorker(mapper, frames, config)
        self._timeout_s = timeout_s
        self._background: BackgroundSegmenter | None = None  # a 2D model that runs beside the mapper
        if isinstance(mapper.segmenter, BackgroundSegmenter):
            self._background = mapper.segmenter
            take_late_labels(mapper.segmenter, self.worker)

    def start(self) -> None:
        self.worker.start()

    def close(self) -> None:
        """Ends the 2D model at once, and the thread; the frame in hand is finished, calls that wait are called back.

        Raises:
            TimeoutError: the thread is still busy.
        """
        if self._background is not None:
            self._background.close()
        self.worker.stop()

    def snapshot(self) -> tuple[MapSnapshot, int]:
        make, version = self._result(lambda m: (m.begin_snapshot(), self.worker.version), timeout_s=None)
        return make(), version  # here, in the caller's thread: the one that maps only copies the map

    def objects(self) -> tuple[tuple[MapObject, ...], LabelSpace, int]:
        return self._run(lambda m: (m.objects(), m.label_space, m.last_stamp_ns))

    def render(self, camera: PinholeCamera, T_map_camera: np.ndarray) -> tuple[PanopticView, LabelSpace, int]:
        return self._run(lambda m: (m.render(camera, T_map_camera), m.label_space, m.last_stamp_ns))

    def save(self, path: Path) -> int:
        tensors, meta = self._run(_copied_state)
        save_map(path, tensors, meta)  # here: mapping goes on while the disk works
        return path.stat().st_size

    def load(self, path: Path) -> tuple[MapStats, int]:
        tensors, meta = load_map(path)

        def task(mapper: PanopticMapper) -> tuple[MapStats, int]:
            before = _copied_state(mapper)
            try:
                mapper.restore_state(tensors, meta)
            except BaseException:
                mapper.restore_state(*before)
                raise
            self.worker.note_replacement()
            return mapper.stats(), len(mapper.objects())

        return self._run(task)

    def reset(self) -> None:
        def task(mapper: PanopticMapper) -> None:
            mapper.reset()
            self.worker.frames.clear()
            self.worker.reset_counters()
            if self._background is not None:
                self._background.clear()
            self.worker.note_replacement()

        self._run(task)

    def set_vocabulary(self, things: Sequence[str], stuff: Sequence[str]) -> LabelSpace:
        def task(mapper: PanopticMapper) -> LabelSpace:
            mapper.set_vocabulary(things, stuff)
            return mapper.label_space

        return self._run(task)

    def pause(self) -> None:
        self.worker.pause()

    def resume(self) -> None:
        self.worker.resume()

    def status(self) -> MapperStatus:
        worker = self.worker
        return MapperStatus(
            is_alive=worker.is_alive,
            is_paused=worker.is_paused,
            last_stamp_ns=worker.last_stamp_ns,
            num_integrated=worker.num_integrated,
            rate_hz=worker.rate.rate_hz(),
            latency_ms=worker.latency_ms.percentiles(),
            stats=worker.stats,
            rss_bytes=psutil.Process().memory_info().rss,
            last_error=worker.last_error,
            labels=None if self._background is None else self._background.status(),
        )

    def _run(self, task: Callable[[PanopticMapper], ResultT]) -> ResultT:
        return self._result(task, self._timeout_s)

    def _result(self, task: Callable[[PanopticMapper], ResultT], timeout_s: float | None) -> ResultT:
        if self.worker.is_stopping:
            raise MapperFailure("the mapper is being closed")
        future = self.worker.submit(task)
        try:
            return future.result(timeout_s)
        except CancelledError:
            raise MapperFailure("the mapper is being closed") from None
        except FutureTimeoutError:
            # A task that has started cannot be called back; it then ends without anybody waiting for it.
            state = "was called back" if future.cancel() else "goes on and its result is lost"
            raise TimeoutError(f"the mapper was busy for more than {timeout_s:g} s; the request {state}") from None


def _copied_state(mapper: PanopticMapper) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    tensors, meta = mapper.export_state()
    meta = copy.deepcopy(meta) | {"config": to_dict(mapper.config)}
    return {name: np.array(values) for name, values in tensors.items()}, meta
