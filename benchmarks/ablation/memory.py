"""How much memory a computation takes."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile


def kept_bytes(run: Callable[[], object]) -> int:
    """Bytes that autograd keeps for the backward pass of what `run` returns, each storage once, parameters included."""
    storages: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = run()
    total = sum(storages.values())
    del result  # it kept the graph alive, so that no two storages had one address
    return total


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """The most bytes that `run` has allocated for tensors at a time, beyond what was there before.

    On CUDA by the allocator's own peak, on the CPU by the allocations that the profiler sees.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    live = peak = 0
    for event in sorted(_allocations(recorded), key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def _allocations(recorded: profile) -> list[Any]:
    """Events of allocated (nbytes > 0) and freed memory."""
    assert recorded.profiler is not None
    assert recorded.profiler.kineto_results is not None
    return [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
