"""Copies from host memory to the map's device that never make the host wait, and back with one wait for many."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

ALIGNMENT = 64  # bytes, of arrays that are copied together
STAGED_BYTES = 1 << 16  # copies up to this size leave pageable memory before the call returns, without a wait


def to_device(array: np.ndarray | Tensor, device: torch.device) -> Tensor:
    """A copy of an array in host memory on a device: what is written to the array later is not in it.

    On a CUDA device the copy is queued on the current stream: large ones go through pinned memory, which torch keeps
    for the next.
    """
    if device.type != "cuda":
        return torch.tensor(array, device=device) if isinstance(array, np.ndarray) else array.clone().to(device)
    source = torch.from_numpy(np.require(array, requirements=["C", "W"])) if isinstance(array, np.ndarray) else array
    if source.nbytes > STAGED_BYTES:
        source = source.pin_memory()
    return source.to(device, non_blocking=True)


def to_device_together(arrays: Sequence[np.ndarray], device: torch.device) -> list[Tensor]:
    """Copies of arrays as `to_device` makes them, by one transfer; they lie in one piece of memory."""
    starts = np.cumsum([0] + [-(-array.nbytes // ALIGNMENT) * ALIGNMENT for array in arrays]).tolist()
    packed = torch.empty(starts[-1], dtype=torch.uint8, pin_memory=device.type == "cuda")
    for array, start in zip(arrays, starts, strict=False):
        packed.numpy()[start : start + array.nbytes].view(array.dtype)[:] = array.ravel()
    packed = packed.to(device, non_blocking=True)
    dtypes = [torch.from_numpy(np.zeros(0, array.dtype)).dtype for array in arrays]
    return [
        packed[start : start + array.nbytes].view(dtype).view(array.shape)
        for array, dtype, start in zip(arrays, dtypes, starts, strict=False)
    ]


def _as_bytes(tensor: Tensor) -> Tensor:
    """The elements as a vector of bytes, not copied where they lie together."""
    if tensor.numel() == 1:  # which may have any stride, and is seen as bytes where that is 1
        tensor = tensor.clone(memory_format=torch.contiguous_format)
    return tensor.reshape(-1).view(torch.uint8)


def to_host(*tensors: Tensor) -> list[Tensor]:
    """Copies of tensors, of any types, in host memory; by one transfer, so that the host waits for the device once."""
    packed = [_as_bytes(t.detach()) for t in tensors]
    bytes_on_host = torch.cat(packed).cpu()
    parts = bytes_on_host.split([t.numel() * t.element_size() for t in tensors])
    return [part.clone().view(t.dtype).reshape(t.shape) for part, t in zip(parts, tensors, strict=True)]


class AsyncHostCopy:
    """A copy of a tensor on its way to host memory; on a CUDA device queued on the current stream.

    It goes through pinned memory, which torch keeps for the next: nothing is copied twice, and who waits for it does so
    without the interpreter.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._copy, self._event = tensor, None
        if tensor.is_cuda:
            self._copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._copy.copy_(tensor, non_blocking=True)
            self._event = torch.cuda.Event(blocking=True)
            self._event.record()

    def is_done(self) -> bool:
        """Whether the copy is made."""
        return self._event is None or self._event.query()

    def wait(self) -> Tensor:
        """The copy, once it is made; of a tensor in host memory that tensor."""
        if self._event is not None:
            self._event.synchronize()
        return self._copy
