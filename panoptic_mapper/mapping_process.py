"""The mapper in a process of its own: neither interpreter's lock is the other's. This is the node's side of it."""

from __future__ import annotations

import contextlib
import itertools
import logging
import pickle
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import replace
from pathlib import Path
from queue import LifoQueue
from typing import Any

import numpy as np

from panoptic_mapper import child_process
from panoptic_mapper.frame import PinholeCamera
from panoptic_mapper.frame_queue import FrameQueue
from panoptic_mapper.label_space import LabelSpace
from panoptic_mapper.map_service import MapperFailure, MapperStatus
from panoptic_mapper.mapper import PanopticMapper
from panoptic_mapper.mapping_messages import (
    NUM_FRAMES,
    NUM_REQUESTS,
    Answer,
    FrameDone,
    NewVersion,
    Request,
    SentFrame,
)
from panoptic_mapper.shared_memory import Parcel, SharedMemory
from panoptic_mapper.snapshot import MapObject, MapSnapshot, MapStats, PanopticView
from panoptic_mapper.worker import WorkerConfig

logger = logging.getLogger(__name__)

STATUS_S = 1.0  # a status that takes longer is told from the last one
CLOSE_S = 40.0  # the frame in hand, and what is being written


class MappingProcess:
    """Starts the process at once, feeds it from `frames` after `start`, and forwards the operations of `MapService`.

    Args:
        on_death: told why, once, from a thread of its own, when the process has ended by itself.
    """

    def __init__(self, frames: FrameQueue, on_death: Callable[[str], None] = lambda reason: None) -> None:
        self.version = 0  # of the map, as last heard
        self._frames = frames
        self._on_death = on_death
        self._frame_memory = [SharedMemory() for _ in range(NUM_FRAMES)]
        self._answer_memory = [SharedMemory() for _ in range(NUM_REQUESTS)]
        self._free_frames = list(range(NUM_FRAMES))
        self._free_answers: LifoQueue[int] = LifoQueue()  # the slot used last first: its memory is there already
        for slot in range(NUM_REQUESTS):
            self._free_answers.put(slot)
        self._numbers = itertools.count()
        self._pending: dict[int, tuple[int, Future[Answer]]] = {}  # by number, with the slot
        self._lock = threading.Lock()  # of `_pending` and `_death`
        self._sending = threading.Lock()
        self._feeding = threading.Lock()
        self._is_held = True  # no frames are sent
        self._is_closing = False
        self._death = ""  # why it has ended
        self._status: MapperStatus | None = None  # the last known; None before `start`
        fds = [memory.fd for memory in (*self._frame_memory, *self._answer_memory)]
        self._process, self._connection = child_process.start_module("panoptic_mapper.mapping_main", fds)
        self._receiver = threading.Thread(target=self._receive, name="mapping process", daemon=True)
        self._receiver.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_started(self) -> bool:
        """Whether the mapper is made, whatever has become of it since."""
        return self._status is not None

    @property
    def is_running(self) -> bool:
        """Whether the mapper is made, and its process neither has ended nor is being closed."""
        return self.is_started and not self._death and not self._is_closing

    def start(self, make: Callable[[], PanopticMapper], config: WorkerConfig, timeout_s: float) -> None:
        """Makes the mapper there, waits until it is, and begins to send frames.

        Args:
            make: pickled, so a function of a module, or a partial of one.
            timeout_s: a call that waits longer for the mapper raises TimeoutError.

        Raises:
            ValueError: what `make` raises.
            MapperFailure: it raises something else, or the process has ended.
        """
        self._status = self._call("start", pickle.dumps(make), config, timeout_s)
        self._frames.on_ready = self._feed
        self._hold(False)

    def close(self) -> None:
        """Ends the process: in its own time where it maps, else at once. What waits for it gets a MapperFailure."""
        if self._is_closing:
            return
        was_running = self.is_running
        with self._feeding:
            self._is_closing = True
        if was_running:
            try:
                self._call("close", timeout_s=CLOSE_S)
            except (MapperFailure, TimeoutError) as error:
                logger.error("the mapper is ended by force: %s", error)
                self._process.kill()
        else:
            self._process.kill()
        child_process.end(self._process)
        self._receiver.join()  # it has seen the end of the connection
        self._free_memory()

    def snapshot(self) -> tuple[MapSnapshot, int]:
        return self._call("snapshot")

    def objects(self) -> tuple[tuple[MapObject, ...], LabelSpace, int]:
        return self._call("objects")

    def render(self, camera: PinholeCamera, T_map_camera: np.ndarray) -> tuple[PanopticView, LabelSpace, int]:
        return self._call("render", camera, T_map_camera)

    def save(self, path: Path) -> int:
        return self._call("save", path)

    def load(self, path: Path) -> tuple[MapStats, int]:
        return self._call("load", path)

    def reset(self) -> None:
        self._hold(True)  # or counts of the two sides would differ by frames in between
        try:
            self._call("reset")
            self._frames.clear()
        finally:
            self._hold(False)

    def set_vocabulary(self, things: Sequence[str], stuff: Sequence[str]) -> LabelSpace:
        return self._call("set_vocabulary", list(things), list(stuff))

    def pause(self) -> None:
        self._call("pause")
        self._frames.set_paused(True)

    def resume(self) -> None:
        self._call("resume")
        self._frames.set_paused(False)

    def status(self) -> MapperStatus:
        assert self._status is not None, "before `start`"
        try:
            self._status = self._call("status", timeout_s=STATUS_S)
        except TimeoutError:
            return replace(self._status, last_error=f"the mapper's process has not answered for {STATUS_S:g} s")
        except MapperFailure as error:
            self._status = replace(self._status, is_alive=False, last_error=self._death or str(error))
        return self._status

    def _call(self, method: str, *args: Any, timeout_s: float | None = None) -> Any:
        slot, future = self._free_answers.get(), Future[Answer]()
        with self._lock:
            if self._death:
                self._free_answers.put(slot)
                raise MapperFailure(self._death)
            number = next(self._numbers)
            self._pending[number] = (slot, future)
        self._send(Request(number, slot, method, args))
        try:
            answer = future.result(timeout_s)
        except FutureTimeoutError:
            if future.cancel():
                raise TimeoutError(f"the mapper's process gave no answer within {timeout_s:g} s") from None
            answer = future.result()
        try:
            if answer.error is not None:
                type_, text = answer.error
                raise type_(text)
            assert isinstance(answer.result, Parcel)
            return self._answer_memory[slot].read(answer.result)
        finally:
            self._free_answers.put(slot)

    def _hold(self, is_held: bool) -> None:
        with self._feeding:
            self._is_held = is_held
        self._feed()

    def _feed(self) -> None:
        """Sends frames that wait, where there is room for them."""
        with self._feeding:
            while not (self._is_held or self._is_closing or self._death) and self._free_frames:
                queued = self._frames.pop()
                if queued is None:
                    return
                slot = self._free_frames.pop()
                parcel = self._frame_memory[slot].write(queued.frame)
                self._send(SentFrame(slot, parcel, queued.arrival_s, queued.ready_s, queued.age_s))

    def _send(self, message: SentFrame | Request) -> None:
        with self._sending, contextlib.suppress(OSError):  # who receives notices the end
            self._connection.send(message)

    def _receive(self) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                message = self._connection.recv()
                try:
                    self._take(message)
                except Exception:
                    logger.exception("a message of the mapper's process was not understood")
        self._note_end()

    def _take(self, message: FrameDone | Answer | NewVersion | logging.LogRecord) -> None:
        if isinstance(message, NewVersion):
            self.version = message.version
        elif isinstance(message, FrameDone):
            self._free_frames.append(message.slot)
            self._frames.finish(message.reason, message.message)
            self._feed()
        elif isinstance(message, logging.LogRecord):
            logging.getLogger(message.name).handle(message)
        else:
            with self._lock:
                slot, future = self._pending.pop(message.number)
            self._answer(slot, future, message)

    def _answer(self, slot: int, future: Future[Answer], answer: Answer) -> None:
        if future.set_running_or_notify_cancel():
            future.set_result(answer)
        else:  # nobody waits any more
            self._free_answers.put(slot)

    def _note_end(self) -> None:
        """Says to all who wait that there will be no answer."""
        how = child_process.how_it_ended(self._process)
        reason = f"the mapper's process {how}; its map is lost"
        with self._lock:
            self._death = "the mapper is closed" if self._is_closing else reason
            pending, self._pending = self._pending, {}
        with self._sending:
            self._connection.close()
        for number, (slot, future) in pending.items():
            self._answer(slot, future, Answer(number, error=(MapperFailure, self._death)))
        with self._feeding:
            for _ in range(NUM_FRAMES - len(self._free_frames)):
                self._frames.finish("error", self._death)
        if not self._is_closing:
            self._on_death(reason)

    def _free_memory(self) -> None:
        slots = [self._free_answers.get() for _ in range(NUM_REQUESTS)]  # waits for those who read their answers
        for memory in (*self._frame_memory, *self._answer_memory):
            memory.close()
        for slot in slots:
            self._free_answers.put(slot)
