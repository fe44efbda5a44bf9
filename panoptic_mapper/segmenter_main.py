"""The process of a segmenter: makes it, labels frames as they come, and ends when the other side is gone.

It imports no more than that needs, so that a process starts in a tenth of a second, if its model does.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from panoptic_mapper import child_process
from panoptic_mapper.shared_memory import Parcel, SharedMemory

if TYPE_CHECKING:
    from panoptic_mapper.segmenters.base import Segmenter

OOM_SCORE_ADJ = 500  # where memory runs out, the kernel is to end this process before the one that holds the map


def main(connection_fd: int, frames_fd: int, labels_fd: int, niceness: int) -> None:
    """Answers requests, one at a time, until the connection ends.

    Requests: first a function that makes the segmenter, then parcels with a frame, or new words (things, stuff) to look
    for. Answers: ("ready", label space), ("labels", parcel of labels, label space), or (kind of failure, text).
    """
    _be_modest(niceness)
    connection, (frames, labels) = child_process.begin(connection_fd, (frames_fd, labels_fd))
    requests: SimpleQueue[Any] = SimpleQueue()
    receiving = (connection, requests.put)  # also while the model is at work
    threading.Thread(target=child_process.receive_until_the_end, args=receiving, daemon=True).start()
    segmenter = _answered(connection, lambda: child_process.unpickled(requests.get())())
    if segmenter is None:
        return
    connection.send(("ready", segmenter.label_space))
    while True:
        request = requests.get()
        work = (
            _labelling(segmenter, frames, labels, request)
            if isinstance(request, Parcel)
            else _change(segmenter, request)
        )
        answer = _answered(connection, work)
        if answer is not None:
            connection.send((*answer, segmenter.label_space))


def _labelling(
    segmenter: Segmenter, frames: SharedMemory, labels: SharedMemory, parcel: Parcel
) -> Callable[[], tuple[str, Parcel]]:
    return lambda: ("labels", labels.write(segmenter.segment(frames.read(parcel))))


def _change(segmenter: Any, words: tuple[Sequence[str], Sequence[str]]) -> Callable[[], tuple[str]]:
    def change() -> tuple[str]:
        segmenter.set_vocabulary(*words)
        return ("ready",)

    return change


def _answered(connection: Connection, work: Callable[[], Any]) -> Any:
    """The result of `work`; where it fails, the other side is told and the result is None."""
    try:
        return work()
    except Exception as error:
        connection.send((_kind(error), f"{type(error).__name__}: {error}"))
        _free_memory()
        return None


def _kind(error: Exception) -> str:
    """The word for an exception; torch's for memory is a RuntimeError that is known by its name."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "out of memory" in str(error):
        return "out_of_memory"
    return "refused" if isinstance(error, ValueError) else "error"


def _free_memory() -> None:
    """For the next try. Where the GPU's context is broken this raises, and ends the process: a new one has another."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def _be_modest(niceness: int) -> None:
    with contextlib.suppress(OSError):
        os.nice(niceness)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write(str(OOM_SCORE_ADJ))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
