"""What runs in the process of the mapper: frames go to the thread that maps, each request to a thread of its own."""

from __future__ import annotations

import logging
import logging.handlers
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from types import SimpleNamespace

from panoptic_mapper import child_process
from panoptic_mapper.frame_queue import QueuedFrame
from panoptic_mapper.map_server import MapServer
from panoptic_mapper.map_service import MapperStatus
from panoptic_mapper.mapping_messages import (
    NUM_REQUESTS,
    TOLD,
    Answer,
    FrameDone,
    NewVersion,
    Request,
    SentFrame,
)
from panoptic_mapper.shared_memory import SharedMemory
from panoptic_mapper.worker import WorkerConfig, tune_interpreter

logger = logging.getLogger(__name__)


class ReceivedFrames:
    """The frames that have come, for the worker. Says when each is done with."""

    def __init__(self, memory: list[SharedMemory], send: Callable[[object], None]) -> None:
        self.clock = time.monotonic  # as the queue of the node
        self.on_ready: Callable[[], None] = lambda: None
        self._memory = memory
        self._send = send
        self._waiting: deque[tuple[int, QueuedFrame]] = deque()  # with the slot
        self._slot_in_hand = -1

    def put(self, sent: SentFrame) -> None:
        frame = self._memory[sent.slot].read(sent.parcel)
        self._waiting.append((sent.slot, QueuedFrame(frame, sent.arrival_s, sent.ready_s, sent.age_s)))
        self.on_ready()

    def pop(self) -> QueuedFrame | None:
        if not self._waiting:
            return None
        self._slot_in_hand, queued = self._waiting.popleft()
        return queued

    def finish(self, reason: str = "", message: str = "") -> None:
        self._send(FrameDone(self._slot_in_hand, reason, message))

    def clear(self) -> None:
        while self._waiting:
            self._send(FrameDone(self._waiting.popleft()[0]))


class MappingChild:
    """Gives frames to the mapping thread, and requests to a thread each: a slow one holds up no other."""

    def __init__(
        self, connection: Connection, frame_memory: list[SharedMemory], answer_memory: list[SharedMemory]
    ) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        self._frames = ReceivedFrames(frame_memory, self._send)
        self._answer_memory = answer_memory
        self._threads = ThreadPoolExecutor(NUM_REQUESTS, "request")
        self._server: MapServer | None = None
        package_logger = logging.getLogger("panoptic_mapper")
        records = SimpleNamespace(put_nowait=self._send)  # records go to the node, with their text made here
        package_logger.addHandler(logging.handlers.QueueHandler(records))  # type: ignore[arg-type]
        package_logger.setLevel(logging.INFO)

    def take(self, message: SentFrame | Request) -> None:
        """Takes a message of the node; never waits for the mapper, but to close it."""
        if isinstance(message, SentFrame):
            self._frames.put(message)
        elif message.method == "close":
            self._answer(message)
            os._exit(0)
        else:
            self._threads.submit(self._answer, message)

    def start(self, make: bytes, config: WorkerConfig, timeout_s: float) -> MapperStatus:
        """Makes the mapper by a pickled function, and starts mapping."""
        self._server = server = MapServer(child_process.unpickled(make)(), self._frames, config, timeout_s)
        server.worker.on_version = lambda version: self._send(NewVersion(version))
        tune_interpreter()
        server.start()
        return server.status()

    def close(self) -> None:
        """Ends the mapper; what is being written is written to its end."""
        if self._server is not None:
            self._server.close()
        self._threads.shutdown(cancel_futures=True)

    def _answer(self, request: Request) -> None:
        owner = self if request.method in ("start", "close") else self._server
        try:
            result = getattr(owner, request.method)(*request.args)
            answer = Answer(request.number, self._answer_memory[request.slot].write(result))
        except TOLD as error:
            base = next(type_ for type_ in TOLD if isinstance(error, type_))
            answer = Answer(request.number, error=(base, str(error)))
        except Exception as error:
            logger.exception("%s failed", request.method)
            answer = Answer(request.number, error=(TOLD[0], f"internal error: {error!r}"))
        self._send(answer)

    def _send(self, message: object) -> None:
        with self._sending:
            self._connection.send(message)
