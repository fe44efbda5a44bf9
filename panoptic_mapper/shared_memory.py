"""Objects with large arrays in memory that two processes share: no pipe carries pixels, and nothing is left behind."""

from __future__ import annotations

import io
import mmap
import os
import pickle
import tempfile
from dataclasses import dataclass
from typing import Any

import numpy as np

MIN_SHARED_BYTES = 4096  # of an array; a smaller one is pickled faster


@dataclass(frozen=True)
class Parcel:
    """An object of which the larger arrays lie in shared memory, one after the other."""

    pickled: bytes  # the object without the contents of those arrays
    sizes: tuple[int, ...]  # bytes of each of them

    @property
    def nbytes(self) -> int:
        return sum(self.sizes)


class SharedMemory:
    """Memory behind a file descriptor without a name, which a child process inherits.

    It is gone when the last process that has it ends, however that ends; named memory would stay after a kill. One
    process writes and the other reads, in turns. Copies let go of the interpreter's lock.
    """

    def __init__(self, fd: int | None = None) -> None:
        self.fd = _anonymous_file() if fd is None else fd
        self._bytes = np.empty(0, np.uint8)  # of a mapping that ends with it

    def write(self, value: Any) -> Parcel:
        """Lays an object's arrays into the memory, which grows where they need more."""
        views: list[memoryview] = []

        def take(buffer: pickle.PickleBuffer) -> bool:
            view = buffer.raw()
            if view.nbytes < MIN_SHARED_BYTES:
                return True  # pickled like anything else
            views.append(view)
            return False

        pickled = io.BytesIO()
        _Pickler(pickled, protocol=5, buffer_callback=take).dump(value)
        parcel = Parcel(pickled.getvalue(), tuple(view.nbytes for view in views))
        if parcel.nbytes > os.fstat(self.fd).st_size:
            os.ftruncate(self.fd, parcel.nbytes)
        memory, start = self._mapped(parcel.nbytes), 0
        for view in views:
            memory[start : start + view.nbytes] = np.frombuffer(view, np.uint8)
            start += view.nbytes
        return parcel

    def read(self, parcel: Parcel) -> Any:
        """The object, with arrays of its own: what is written next does not change it."""
        memory, start, arrays = self._mapped(parcel.nbytes), 0, []
        for size in parcel.sizes:
            arrays.append(memory[start : start + size].copy())
            start += size
        return pickle.loads(parcel.pickled, buffers=arrays)

    def close(self) -> None:
        self._bytes = np.empty(0, np.uint8)
        os.close(self.fd)

    def _mapped(self, nbytes: int) -> np.ndarray:  # [nbytes or more] uint8
        """The whole memory, mapped anew where the other process has made it larger."""
        if len(self._bytes) < nbytes:
            self._bytes = np.frombuffer(mmap.mmap(self.fd, os.fstat(self.fd).st_size), np.uint8)
        return self._bytes


class _Pickler(pickle.Pickler):
    """Takes the contents out of all arrays, also of those that are views with gaps."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, np.ndarray) and not value.flags.forc:
            return np.ascontiguousarray(value).__reduce_ex__(5)
        return NotImplemented


def _anonymous_file() -> int:
    """A descriptor of memory, of a file without a name where the system has no such thing.

    Not of a file in /dev/shm: containers often allow 64 MB there, and a write beyond that kills the process.
    """
    if hasattr(os, "memfd_create"):
        return os.memfd_create("panoptic_mapper")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
