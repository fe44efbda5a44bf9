"""Times the compiled CPU rasteriser, stage by stage and against the plain-torch twin.

    python -m benchmarks.rasterizer [--gaussians 50000] [--repeats 9] [--no-twin]

The twin works in 16x16 blocks of pixels with the Gaussians that meet them, as fast as plain torch allows.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from panoptic_mapper.frame import PinholeCamera
from panoptic_mapper.rasterizers.base import Rasterizer
from panoptic_mapper.rasterizers.cpu import CpuRasterizer
from panoptic_mapper.rasterizers.torch_reference import TorchRasterizer

CAMERA = PinholeCamera(277.0, 277.0, 159.5, 119.5, 320, 240)
COMPARED_CHANNELS = 32
LABEL_CHANNELS = 48

Geometry = tuple[Tensor, Tensor, Tensor, Tensor]  # means, quats, scales, opacities


def surface_scene(N: int, seed: int = 0) -> Geometry:
    """Gaussians spread over the image, as large as their share of it and more."""
    g = torch.Generator().manual_seed(seed)
    depth = 1.5 + 2.5 * torch.rand(N, generator=g)
    u, v = CAMERA.width * torch.rand(N, generator=g), CAMERA.height * torch.rand(N, generator=g)
    means = torch.stack(((u - CAMERA.cx) / CAMERA.fx * depth, (v - CAMERA.cy) / CAMERA.fy * depth, depth), dim=1)
    spacing_px = (CAMERA.width * CAMERA.height / N) ** 0.5
    scales = spacing_px * depth[:, None] / CAMERA.fx * (0.4 + 0.8 * torch.rand(N, 3, generator=g))
    quats, opacities = torch.randn(N, 4, generator=g), 0.1 + 0.89 * torch.rand(N, generator=g)
    for tensor in (means, quats, scales, opacities):
        tensor.requires_grad_()
    return means, quats, scales, opacities


def median_ms(run: Callable[[], object], repeats: int) -> float:
    """Median wall time after one warm-up."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def forward_backward(rasterizer: Rasterizer, geometry: Geometry, colors: Tensor) -> None:
    """All images and all gradients."""
    view = rasterizer.project(*geometry, torch.eye(4), CAMERA)
    rendering = view.render(colors[view.visible])
    loss = rendering.color.mean() + rendering.depth.mean() + rendering.alpha.mean()
    torch.autograd.grad(loss, [*geometry, colors])


def stage_times(geometry: Geometry, repeats: int) -> dict[str, float]:
    """Median milliseconds of each stage: 3 colours are rendered, LABEL_CHANNELS blended."""
    rasterizer = CpuRasterizer()
    view = rasterizer.project(*geometry, torch.eye(4), CAMERA)
    V = view.visible.shape[0]
    colors, labels = torch.rand(V, 3, requires_grad=True), torch.rand(V, LABEL_CHANNELS, requires_grad=True)
    image, rendering = view.blend(labels), view.render(colors)
    v_image = torch.rand_like(image)
    outputs = (rendering.color, rendering.depth, rendering.alpha)
    v_outputs = tuple(torch.rand_like(output) for output in outputs)
    projected = (view.means2d, view.conics, view.depths)
    v_projected = tuple(torch.rand_like(part) for part in projected)

    def backward(outputs: tuple, inputs: list, gradients: tuple) -> Callable[[], object]:
        return lambda: torch.autograd.grad(outputs, inputs, gradients, retain_graph=True)

    stages: dict[str, Callable[[], object]] = {
        "project and sort": lambda: rasterizer.project(*geometry, torch.eye(4), CAMERA),
        "render, 3 channels": lambda: view.render(colors),
        "render backward": backward(outputs, [*projected, view.opacities, colors], v_outputs),
        "project backward": backward(projected, [*geometry[:3]], v_projected),
        f"blend, {LABEL_CHANNELS} channels": lambda: view.blend(labels),
        "blend backward": backward((image,), [labels], (v_image,)),
    }
    return {name: median_ms(run, repeats) for name, run in stages.items()}


def hardware() -> str:
    cpu_info = Path("/proc/cpuinfo")
    lines = cpu_info.read_text().splitlines() if cpu_info.is_file() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return f"{name}, {os.cpu_count()} CPUs, {torch.get_num_threads()} threads, torch {torch.__version__}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gaussians", type=int, default=50_000)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--no-twin", action="store_true", help="skip the slow plain-torch twin")
    arguments = parser.parse_args()

    geometry = surface_scene(arguments.gaussians)
    view = CpuRasterizer().project(*geometry, torch.eye(4), CAMERA)
    pairs = view.lists.pair_pixels.shape[0] / (CAMERA.width * CAMERA.height)
    print(hardware())
    print(
        f"{CAMERA.width}x{CAMERA.height}, {view.visible.shape[0]} visible Gaussians,"
        f" {pairs:.1f} drawn per pixel; medians of {arguments.repeats}"
    )
    stages = stage_times(geometry, arguments.repeats)
    for name, time_ms in stages.items():
        print(f"  {name:24s}{time_ms:9.2f} ms")
    print(f"  {'all of these':24s}{sum(stages.values()):9.2f} ms")

    colors = torch.rand(arguments.gaussians, COMPARED_CHANNELS, requires_grad=True)
    cpu_ms = median_ms(lambda: forward_backward(CpuRasterizer(), geometry, colors), arguments.repeats)
    print(f"forward + backward, {COMPARED_CHANNELS} channels: {cpu_ms:.1f} ms")
    if not arguments.no_twin:
        twin_ms = median_ms(lambda: forward_backward(TorchRasterizer(), geometry, colors), 3)
        print(f"the same in plain torch: {twin_ms:.0f} ms, {twin_ms / cpu_ms:.0f} times as long (target: at least 20)")


if __name__ == "__main__":
    main()
