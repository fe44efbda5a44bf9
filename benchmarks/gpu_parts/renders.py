"""Panoptic images of any pose: colour, depth, classes and objects, in host memory."""

from __future__ import annotations

import time
from typing import Any

import torch

from benchmarks.gpu_parts.context import Context, markdown, synchronize, times_ms

NUM_FRAMES = 60  # that the rendered map is made of


def measure(context: Context) -> dict[str, Any]:
    """Renders the held-out poses again and again: whole views, and their parts on the device."""
    mapper = context.warmed_mapper(NUM_FRAMES)
    cameras = [(f.camera, f.T_map_camera) for f in map(mapper.at_mapping_size, context.held_out_frames)]
    for camera, pose in cameras:
        mapper.render(camera, pose)
    synchronize(context.device)
    begin, num = time.perf_counter(), 0
    while num < context.repeats or time.perf_counter() - begin < 1.0:
        mapper.render(*cameras[num % len(cameras)])
        num += 1
    per_s = num / (time.perf_counter() - begin)
    camera, pose = cameras[0]
    with torch.no_grad():
        view = mapper.map.view(camera, pose)
        parts = {
            "view (gather, project, sort)": lambda: mapper.map.view(camera, pose),
            "colour and depth": view.render,
            "labels": view.blend_labels,
            "whole, to host memory": lambda: mapper.render(camera, pose),
        }
        times = {name: times_ms(run, context.device, context.repeats) for name, run in parts.items()}
    sizes = {"gaussians": len(mapper.map.gaussians), "visible": len(view.visible_ids), "queries": len(view.queries)}
    return {"renders_per_s": per_s, "size": f"{camera.width}x{camera.height}", **sizes, "times_ms": times}


def table(result: dict[str, Any]) -> str:
    words = (
        f"{result['renders_per_s']:.0f} panoptic renders per second at {result['size']}, {result['gaussians']:,}"
        f" Gaussians, {result['visible']:,} visible, {result['queries']} queries in view."
    )
    rows = [[name, device, host] for name, (device, host) in result["times_ms"].items()]
    return f"{words}\n\n" + markdown(["part", "device, ms", "host, ms"], rows)
