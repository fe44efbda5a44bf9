"""The stages of a frame and of a gradient step one by one, on the device's clock and on the host's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu_parts.context import Context, markdown, times_ms
from panoptic_mapper.image_loss import image_gradients
from panoptic_mapper.label_targets import LabelTargets
from panoptic_mapper.mapper import PanopticMapper
from panoptic_mapper.object_discovery import maintain_queries, refit_queries
from panoptic_mapper.seen_counter import SeenCounter

NUM_FRAMES = 60  # that the map is made of
CHANNELS = (1, 4, 32, 64)  # that are splatted


def measure(context: Context) -> dict[str, Any]:
    mapper = context.warmed_mapper(NUM_FRAMES)
    keyframe = mapper.keyframes.all[-1]
    view = mapper.map.view(keyframe.camera, keyframe.T_map_camera)
    parts = {**splat_parts(mapper), **step_parts(mapper), **frame_parts(context, mapper)}
    sizes = {
        "gaussians": len(mapper.map.gaussians),
        "candidates": len(view.gaussians),
        "visible": len(view.visible_ids),
        "queries": len(mapper.map.queries),
        "queries in view": len(view.queries),
        "classes": len(mapper.label_space),
        "keyframes": len(mapper.keyframes),
    }
    times = {name: times_ms(run, context.device, context.repeats) for name, run in parts.items()}
    return {"sizes": sizes, "times_ms": times}


def frame_parts(context: Context, mapper: PanopticMapper) -> dict[str, Callable[[], object]]:
    """What a frame passes through; those that remove rows of the map are the last."""
    map, keyframes = mapper.map, mapper.keyframes
    frame = context.mapped_frames[NUM_FRAMES % len(context.mapped_frames)]
    mapped_frame = mapper.at_mapping_size(frame)
    latest = keyframes.all[-1]

    def prune() -> None:
        mapper._prune(latest, map.gaussians.ids_in_frustum(latest.T_camera_map(), latest.camera))

    return {
        "frame: is it a keyframe": lambda: mapper._is_keyframe(mapped_frame),
        "frame: segment (host)": lambda: mapper._segment(frame),
        "frame: masks of all keyframes (host)": keyframes.observations,
        "frame: refit objects": lambda: refit_queries(map),
        "frame: begin a snapshot": mapper.begin_snapshot,
        "snapshot, whole": mapper.snapshot,
        "snapshot: objects": mapper.objects,
        "frame: statistics": mapper.stats,
        "frame: maintain objects": lambda: maintain_queries(map, keyframes),
        "frame: prune": prune,
    }


def step_parts(mapper: PanopticMapper) -> dict[str, Callable[[], object]]:
    """A gradient step on the last keyframe and its parts."""
    optimizer, keyframe = mapper.optimizer, mapper.keyframes.all[-1]
    neighbours = mapper.keyframes.neighbours(keyframe, 1)
    pose = keyframe.camera, keyframe.T_map_camera
    view = mapper.map.view(*pose)
    rendering, labels = view.render(), view.blend_labels()
    counter = SeenCounter(view, with_errors=True)
    image = counter.image(counter.render(view.colors())).detach()

    def step(with_labels: bool) -> Callable[[], object]:
        return lambda: optimizer.step(keyframe, neighbours if with_labels else (), with_labels)

    def update() -> None:
        rows = mapper.map.gaussians.appearance.gather(view.gaussians.ids)
        for column in rows.columns.values():
            column.grad = torch.zeros_like(column)
        mapper.map.gaussians.appearance.update(rows, seen)

    seen = torch.zeros(len(view.gaussians), dtype=torch.bool, device=rendering.alpha.device)
    seen[view.projection.visible] = True
    return {
        "step: colour and geometry": step(False),
        "step: with labels": step(True),
        "step: view (gather, project, sort)": lambda: mapper.map.view(*pose),
        "step: render": view.render,
        "step: image loss": lambda: image_gradients(
            image, rendering.alpha, keyframe, optimizer.weights, optimizer.density
        ),
        "step: Adam": update,
        "step: blend labels": view.blend_labels,
        "step: label terms": lambda: optimizer._label_losses(view, labels, LabelTargets.of(keyframe, view)),
        "step: warp term": lambda: [
            optimizer._warp_term(keyframe, view, rendering, labels, other) for other in neighbours
        ],
        "step: remember labels": lambda: mapper.map.remember_labels(view, labels),
    }


def splat_parts(mapper: PanopticMapper) -> dict[str, Callable[[], object]]:
    """The rasteriser alone, forward and backward, for several numbers of channels."""
    keyframe = mapper.keyframes.all[-1]
    view = mapper.map.view(keyframe.camera, keyframe.T_map_camera)

    def splat(channels: int) -> Callable[[], object]:
        def run() -> None:
            values = torch.rand(len(view.visible_ids), channels, device=view.T_camera_map.device, requires_grad=True)
            view.projection.blend(values).sum().backward()

        return run

    return {f"splat: forward and backward, {channels} channels": splat(channels) for channels in CHANNELS}


def table(result: dict[str, Any]) -> str:
    sizes = ", ".join(f"{value:,} {name}" for name, value in result["sizes"].items())
    rows = [[name, device, host] for name, (device, host) in result["times_ms"].items()]
    return f"{sizes}.\n\n" + markdown(["stage", "device, ms", "host, ms"], rows)
