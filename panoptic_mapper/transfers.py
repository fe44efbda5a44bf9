"""Copies from host memory to the map's device that never make the host wait."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

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
