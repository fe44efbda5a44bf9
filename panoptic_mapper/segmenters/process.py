"""A segmenter in a process of its own, which may crash, hang or run out of memory without harm to the one that asks."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from typing import Any, Literal

from panoptic_mapper import child_process
from panoptic_mapper.frame import Frame, Segmentation
from panoptic_mapper.label_space import LabelSpace
from panoptic_mapper.segmenters.base import Segmenter, check_segmentation
from panoptic_mapper.shared_memory import Parcel, SharedMemory

FailureKind = Literal["crash", "hang", "error", "out_of_memory", "garbage", "refused"]
MAX_BYTES_PER_PX = 64  # labels that are larger are of something else


class SegmenterFailure(RuntimeError):
    """What went wrong, in a word to count by and in words to read.

    crash: the process ended; hang: no answer in time; error: an exception; out_of_memory: an exception that says so;
    garbage: labels that do not fit the frame or the label space; refused: an exception about the settings or the frame.
    """

    def __init__(self, kind: FailureKind, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class SegmenterProcess:
    """Starts the process at once; `wait_until_ready` then waits for the model. Not thread-safe, but for `kill`.

    Args:
        make: makes the segmenter there; it is pickled, so a function of a module or a partial of one.
        niceness: by how much the process yields to others on a busy CPU.
    """

    def __init__(self, make: Callable[[], Segmenter], niceness: int = 0) -> None:
        self._frames, self._labels = SharedMemory(), SharedMemory()
        fds = (self._frames.fd, self._labels.fd)
        self._process, self._connection = child_process.start_module("panoptic_mapper.segmenter_main", fds, [niceness])
        self._make = pickle.dumps(make)

    def wait_until_ready(self, timeout_s: float) -> LabelSpace:
        """The classes of the segmenter, once it is made; after a failure of the kind "hang" one may wait again.

        Raises:
            SegmenterFailure: it could not be made, or not in time.
        """
        if self._make:
            self._send(self._make)
            self._make = b""
        return self._answer("ready", timeout_s)[0]

    def set_vocabulary(self, things: Sequence[str], stuff: Sequence[str], timeout_s: float) -> LabelSpace:
        """Gives the segmenter other words; returns its classes.

        Raises:
            SegmenterFailure: it does not take them.
        """
        self._send((tuple(things), tuple(stuff)))
        return self._answer("ready", timeout_s)[0]

    def segment(self, frame: Frame, timeout_s: float) -> tuple[Segmentation | None, LabelSpace]:
        """The labels of a frame, checked, and the classes that they are of.

        Raises:
            SegmenterFailure: there are none. After a crash or a hang the process is of no more use.
        """
        self._send(self._frames.write(frame))
        parcel, label_space = self._answer("labels", timeout_s)
        return self._checked(parcel, frame, label_space), label_space

    def kill(self) -> None:
        """Ends the process at once; whoever waits for its answer gets a SegmenterFailure."""
        self._process.kill()

    def close(self) -> None:
        """Ends the process, by force where it does not follow, and frees the memory."""
        self._connection.close()
        child_process.end(self._process)
        self._frames.close()
        self._labels.close()

    def _send(self, message: Any) -> None:
        try:
            self._connection.send(message)
        except OSError:
            raise self._crash() from None

    def _answer(self, expected: str, timeout_s: float) -> tuple[Any, ...]:
        try:
            if not self._connection.poll(timeout_s):
                raise SegmenterFailure("hang", f"the 2D model gave no answer within {timeout_s:g} s")
            word, *content = self._connection.recv()
        except (EOFError, OSError):
            raise self._crash() from None
        if word != expected:
            raise SegmenterFailure(word, content[0])
        return tuple(content)

    def _crash(self) -> SegmenterFailure:
        how = child_process.how_it_ended(self._process)
        return SegmenterFailure("crash", f"the process of the 2D model {how}")

    def _checked(self, parcel: Parcel, frame: Frame, label_space: LabelSpace) -> Segmentation | None:
        """The labels in a parcel; whatever is not quite that is garbage."""
        if parcel.nbytes > MAX_BYTES_PER_PX * frame.depth.size:
            raise SegmenterFailure("garbage", f"segmentation: {parcel.nbytes} bytes for {frame.depth.shape} pixels")
        try:
            labels = self._labels.read(parcel)
            if labels is None:
                return None
            labels = Segmentation(labels.semantic, labels.instance, labels.confidence)  # pickle does not check it
            check_segmentation(labels, frame, label_space)
        except Exception as error:  # anything may come, and it may fail anywhere
            raise SegmenterFailure("garbage", str(error)) from error
        return labels
