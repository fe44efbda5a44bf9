"""What tests of compiled operators share: the marks of a GPU, and CUDA graphs. The fixture `device` is in conftest."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

ON_CUDA = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def captured(
    run: Callable[[], Sequence[Tensor]], trial: Callable[[], object] | None = None
) -> tuple[torch.cuda.CUDAGraph, Sequence[Tensor]]:
    """A CUDA graph of `run` and the tensors that its replay writes; fails where a call waits for the GPU.

    Args:
        run: what is captured.
        trial: the same for the calls before, where `run` changes what it is given; None = `run` itself.
    """
    trial = trial or run
    trial()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        trial()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = run()
    return graph, outputs
