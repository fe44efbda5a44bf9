"""The one thread that owns the map: it integrates frames, runs service tasks between them, and refines when idle."""

from __future__ import annotations

import gc
import logging
import math
import sys
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from panoptic_mapper.config import Config, param
from panoptic_mapper.frame import Frame
from panoptic_mapper.frame_queue import QueuedFrame
from panoptic_mapper.snapshot import MapStats
from panoptic_mapper.timing import Clock, RateMeter, RollingPercentiles

logger = logging.getLogger(__name__)

# Each operation of torch lets other threads run, and then waits for one of them to let go: at worst this long, of which
# 5 ms are Python's default. Beside a thread of plain Python a snapshot took 2.6 s with that, and 0.4 s with this.
SWITCH_INTERVAL_S = 5e-4  # s, for sys.setswitchinterval
IDLE_AFTER_S = 0.01  # without a frame; the next one may be on its way from the node, and should not wait for a step
STATS_EVERY_S = 0.25  # while frames come without a pause: a GPU is waited for to get them


def tune_interpreter() -> None:
    """Sets the process up for a thread that maps and others beside it; to be called when all is imported.

    What exists by then is left alone by the garbage collector: to look through all that torch and ROS consist of takes
    it a tenth of a second, in which no thread runs.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    gc.collect()
    gc.freeze()


class Mapper(Protocol):
    """What the worker itself asks of a mapper; tasks may use more of it."""

    last_stamp_ns: int  # of the last frame that the map holds

    def integrate(self, frame: Frame, waited_s: float) -> Any: ...

    def refine(self, num_steps: int) -> None: ...

    def stats(self) -> MapStats: ...


class FrameSource(Protocol):
    """Where frames come from: a `FrameQueue`, or what another process hands over."""

    clock: Clock  # that of arrivals
    on_ready: Callable[[], None]  # called when a frame has come

    def pop(self) -> QueuedFrame | None:
        """The next frame, or None."""
        ...

    def finish(self, reason: str = "", message: str = "") -> None:
        """The frame popped last is in the map, or was dropped for a reason."""
        ...

    def clear(self) -> None:
        """Forgets the frames that wait."""
        ...


MapperT = TypeVar("MapperT", bound=Mapper)
ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class WorkerConfig(Config):
    """What the mapping thread does besides integrating frames."""

    idle_refine_steps: int = param(
        5, "Optimisation steps at a time while no frame waits; 0 = rest. A frame waits at most for these.", ge=0
    )
    max_idle_refine_steps: int = param(
        200, "Idle optimisation stops after this many steps until the next frame comes.", ge=0
    )


class MappingWorker(Generic[MapperT]):
    """Owns `mapper`: after construction nobody else may touch it. Results leave through callbacks and futures.

    A frame that `integrate` refuses with a ValueError is counted as "bad_frame"; any other exception is logged with
    its traceback and counted as "error". Neither ends the thread.
    """

    def __init__(self, mapper: MapperT, frames: FrameSource, config: WorkerConfig | None = None) -> None:
        self.config = config or WorkerConfig()
        self.frames = frames
        self.on_integrated: Callable[[Frame, Any], None] = lambda frame, report: None  # in the worker's thread
        self.on_version: Callable[[int], None] = lambda version: None  # likewise, whenever `version` has grown
        self.latency_ms = RollingPercentiles()  # arrival at the queue to the end of integration
        self.stamp_latency_ms = RollingPercentiles()  # exposure to the end of integration
        self.rate = RateMeter(clock=frames.clock)
        self.num_integrated = 0
        self.version = 0  # grows whenever the map may have changed
        self.last_stamp_ns = mapper.last_stamp_ns  # as of the last frame or task
        self.last_error = ""
        self.stats: MapStats = mapper.stats()  # likewise, or STATS_EVERY_S older
        self._mapper = mapper
        self._tasks: deque[tuple[Callable[[MapperT], Any], Future[Any]]] = deque()
        self._wake = threading.Event()
        self._stopping = False
        self._paused = False
        self._refine_steps_left = 0
        self._stats_s = frames.clock()  # when they were taken
        self._has_new_stats = False
        self._thread: threading.Thread | None = None
        frames.on_ready = self._wake.set

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="mapping", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float = 30.0) -> None:
        """Finishes the frame or task in hand, cancels the tasks that wait, and ends the thread.

        Raises:
            TimeoutError: the thread was still busy after `timeout_s`.
        """
        self._stopping = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                raise TimeoutError(f"the mapping thread was still busy after {timeout_s} s")
        while self._tasks:
            self._tasks.popleft()[1].cancel()

    @property
    def is_alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    @property
    def is_stopping(self) -> bool:
        """Whether the thread has been told to end, or has ended: no more tasks are taken."""
        return self._stopping

    @property
    def is_paused(self) -> bool:
        return self._paused

    def pause(self) -> None:
        """Stops integrating and refining; frames wait, tasks go on."""
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        self._wake.set()

    def submit(self, task: Callable[[MapperT], ResultT]) -> Future[ResultT]:
        """Runs `task(mapper)` between two frames; an exception goes to the future, which can be cancelled before.

        Raises:
            RuntimeError: the worker has been stopped.
        """
        if self._stopping:
            raise RuntimeError("the mapping thread has been stopped")
        future: Future[ResultT] = Future()
        self._tasks.append((task, future))
        self._wake.set()
        return future

    def reset_counters(self) -> None:
        """Forgets frames, latencies and errors so far; call it from a task that empties the map."""
        self.num_integrated = 0
        self.last_error = ""
        self.latency_ms.clear()
        self.stamp_latency_ms.clear()

    def note_replacement(self) -> None:
        """Says that the map is another one, so that it is published anew. Call it from a task."""
        self._stats_s = -math.inf
        self._note_version()

    def note_change(self) -> None:
        """Says that the map has changed, so that it is published anew, and refined while nothing comes."""
        self._refine_steps_left = self.config.max_idle_refine_steps
        self._note_version()

    def step(self) -> bool:
        """Does the next piece of work, a task before a frame before idle refinement; False where there is none."""
        return self._serve() or (not self._paused and self._refine())

    def _serve(self) -> bool:
        """A task or a frame; where none waits, takes the statistics of the last ones, and returns False."""
        if self._tasks:
            self._run_task(*self._tasks.popleft())
            return True
        queued = None if self._paused else self.frames.pop()
        if queued is None:
            self._take_stats()
            return False
        self._integrate(queued)
        return True

    def _run(self) -> None:
        is_idle = False
        while not self._stopping:
            self._wake.clear()
            try:
                if self._serve():
                    is_idle = False
                elif not is_idle:
                    is_idle = not self._wake.wait(IDLE_AFTER_S)
                elif self._paused or not self._refine():
                    self._wake.wait()
            except Exception:
                self._note_error("the mapping thread failed between frames")

    def _run_task(self, task: Callable[[MapperT], Any], future: Future[Any]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            result = task(self._mapper)
        except BaseException as error:
            future.set_exception(error)
        else:
            self._note_progress()
            future.set_result(result)

    def _integrate(self, queued: QueuedFrame) -> None:
        frame, reason, message = queued.frame, "", ""
        try:
            report = self._mapper.integrate(frame, self.frames.clock() - queued.ready_s)
            latency_s = self.frames.clock() - queued.arrival_s
            self._note_progress()
        except ValueError as error:
            reason, message = "bad_frame", str(error)
            self.last_error = message
        except Exception as error:
            reason, message = "error", f"integrating the frame of stamp {frame.stamp_ns} ns failed: {error}"
            self._note_error(message)
        else:
            self.latency_ms.add(1e3 * latency_s)
            self.stamp_latency_ms.add(1e3 * (latency_s + queued.age_s))
            self.rate.tick()
            self.num_integrated += 1
        self.note_change()
        self.frames.finish(reason, message)
        if not reason:
            self.on_integrated(frame, report)

    def _refine(self) -> bool:
        num_steps = min(self.config.idle_refine_steps, self._refine_steps_left)
        if num_steps == 0:
            return False
        self._refine_steps_left -= num_steps
        try:
            self._mapper.refine(num_steps)
        except Exception as error:
            self._refine_steps_left = 0  # try again after the next frame, not in a tight loop
            self._note_error(f"refining the map failed: {error}")
        self._note_version()
        return True

    def _note_version(self) -> None:
        self.version += 1
        self.on_version(self.version)

    def _note_progress(self) -> None:
        self.last_stamp_ns, self._has_new_stats = self._mapper.last_stamp_ns, True
        if self.frames.clock() - self._stats_s > STATS_EVERY_S:
            self._take_stats()

    def _take_stats(self) -> None:
        if self._has_new_stats:
            self._has_new_stats, self._stats_s = False, self.frames.clock()
            try:
                self.stats = self._mapper.stats()
            except Exception:
                self._note_error("the mapper cannot say how it is")

    def _note_error(self, message: str) -> None:
        self.last_error = message
        logger.exception(message)
