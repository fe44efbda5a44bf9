"""Kernels by time, launches per step, and how much of the time the GPU is idle, with torch's profiler."""

from __future__ import annotations

import time
from typing import Any

from torch.profiler import ProfilerActivity
from torch.profiler import profile as torch_profile

from benchmarks.gpu_parts.context import Context, markdown, synchronize

NUM_FRAMES = 40  # that the map is made of
NUM_STEPS = 30
TOP = 25


def measure(context: Context) -> dict[str, Any]:
    """Steps with and without labels on the keyframes, and frames."""
    mapper = context.warmed_mapper(NUM_FRAMES)
    frames = context.mapped_frames[NUM_FRAMES : NUM_FRAMES + 10] or context.mapped_frames[-3:]
    keyframes = [mapper.keyframes.sample(k) for k in range(min(NUM_STEPS, 2 * context.repeats))]
    neighbours = [mapper.keyframes.neighbours(k, 1) for k in keyframes]

    def colour_steps() -> int:
        for keyframe in keyframes:
            mapper.optimizer.step(keyframe, (), False)
        return len(keyframes)

    def label_steps() -> int:
        for keyframe, others in zip(keyframes, neighbours, strict=True):
            mapper.optimizer.step(keyframe, others, True)
        return len(keyframes)

    def whole_frames() -> int:
        for frame in frames:
            mapper.integrate(frame)
            mapper.begin_snapshot()
        return len(frames)

    runs = {"colour step": colour_steps, "label step": label_steps, "frame": whole_frames}
    return {name: profiled(context, run) for name, run in runs.items()}


def profiled(context: Context, run: Any) -> dict[str, Any]:
    """Runs once without the profiler, for the time, and once with it, for the counts."""
    run()
    synchronize(context.device)
    begin = time.perf_counter()
    num = run()
    synchronize(context.device)
    wall_ms = 1e3 * (time.perf_counter() - begin)
    with torch_profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        run()
        synchronize(context.device)
    averages = profiler.key_averages()
    kernels = [e for e in averages if e.device_type.name == "CUDA"]
    busy_ms = sum(e.self_device_time_total for e in kernels) / 1e3
    launches = sum(e.count for e in averages if e.key in ("cudaLaunchKernel", "cuLaunchKernel", "cudaLaunchKernelExC"))
    operators = sorted(averages, key=lambda e: -e.self_cpu_time_total)
    return {
        "ms": wall_ms / num,
        "busy_ms": busy_ms / num,
        "idle_share": 1 - busy_ms / wall_ms if context.device == "cuda" else None,
        "launches": launches / num,
        "waits": sum(e.count for e in averages if "Synchronize" in e.key) / num,
        "kernels": [
            (e.key[:100], e.self_device_time_total / 1e3 / num, e.count / num)
            for e in sorted(kernels, key=lambda e: -e.self_device_time_total)[:TOP]
        ],
        "host": [(e.key[:80], e.self_cpu_time_total / 1e3 / num, e.count / num) for e in operators[:TOP]],
    }


def table(result: dict[str, Any]) -> str:
    names = ("ms", "busy_ms", "idle_share", "launches", "waits")
    text = markdown(["per", *names], [[name, *(run[k] for k in names)] for name, run in result.items()])
    for name, run in result.items():
        text += f"\n\nKernels of a {name}:\n\n" + markdown(["kernel", "ms", "calls"], run["kernels"])
        text += f"\n\nHost time of a {name}, by operator:\n\n" + markdown(["operator", "ms", "calls"], run["host"])
    return text
