"""The gsplat backend against the plain-torch twin and against the CPU rasteriser; needs an NVIDIA GPU."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from rasterizer_scenes import CAMERA, SCENES, Scene, assert_same, images_and_gradients, random_scene
from small_room import ROOM_SPACE, make_mapper, mapped, room_frames

from panoptic_mapper.keyframes import Keyframe
from panoptic_mapper.mapper import PanopticMapper
from panoptic_mapper.rasterizers.torch_reference import TorchRasterizer
from panoptic_mapper.segmenters.dataset import DatasetSegmenter

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(importlib.util.find_spec("gsplat") is None, reason="gsplat is not installed"),
]

# Both rasterisers compute in float32; gsplat's exponential is the hardware's fast one. A contribution that is about
# MIN_ALPHA in one of them may be left out by the other: 1/255 of a colour, and a pixel can have two of these.
COLOR_TOLERANCE = 8e-3  # of any pixel
MEAN_COLOR_TOLERANCE = 2e-5  # of the mean over all pixels
DEPTH_TOLERANCE_M = 2e-3  # where alpha is above 0.5
GRADIENT_TOLERANCE = 2e-3  # of the difference's norm to the gradient's, for each column
VISIBLE_TOLERANCE = 1e-3  # share of the visible Gaussians whose footprint just touches the image in one of them


@pytest.mark.parametrize("name", SCENES)
def test_gsplat_equals_twin(name: str) -> None:
    from panoptic_mapper.rasterizers.gsplat import GsplatRasterizer

    scene = SCENES[name]
    expected = images_and_gradients(TorchRasterizer(), scene, torch.float64)
    moved = {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in vars(scene).items()}
    actual = images_and_gradients(GsplatRasterizer(), Scene(**moved), torch.float32)
    # gsplat's exponential is the hardware's fast one (2 ulp of its argument), and it projects in float32.
    assert_same({k: v if v is None else v.cpu() for k, v in actual.items()}, expected, looser=10)


@cache
@torch.enable_grad()
def mappers(base: str) -> tuple[PanopticMapper, PanopticMapper]:
    """The same map on the CPU and on the GPU; not to be changed."""
    here = mapped(room_frames(), f"gaussians.base={base}")
    there = PanopticMapper(here.config, DatasetSegmenter(ROOM_SPACE), "cuda")
    there.restore_state(*here.export_state())
    return here, there


def moved(keyframe: Keyframe, device: torch.device) -> Keyframe:
    """The keyframe on a device; saved ones would have been compressed."""
    images = {name: value.to(device) for name, value in vars(keyframe).items() if isinstance(value, torch.Tensor)}
    return replace(keyframe, mask_ids=list(keyframe.mask_ids), **images)


@pytest.mark.parametrize("base", ["3dgs", "surfel"])
def test_the_same_gaussians_are_visible(base: str) -> None:
    here, there = mappers(base)
    for keyframe in here.keyframes.all[::3]:
        a, b = (set(m.map.view(keyframe.camera, keyframe.T_map_camera).visible_ids.tolist()) for m in (here, there))
        assert len(a) > 500
        assert len(a ^ b) <= VISIBLE_TOLERANCE * len(a) + 1


@pytest.mark.parametrize("base", ["3dgs", "surfel"])
@torch.no_grad()
def test_the_map_looks_the_same(base: str) -> None:
    here, there = mappers(base)
    for keyframe in here.keyframes.all[::3]:
        views = [m.map.view(keyframe.camera, keyframe.T_map_camera) for m in (here, there)]
        a, b = (view.render() for view in views)
        assert (b.color.cpu() - a.color).abs().max() <= COLOR_TOLERANCE
        assert (b.color.cpu() - a.color).abs().mean() <= MEAN_COLOR_TOLERANCE
        assert (b.alpha.cpu() - a.alpha).abs().max() <= COLOR_TOLERANCE
        assert (b.depth.cpu() - a.depth)[a.alpha > 0.5].abs().max() <= DEPTH_TOLERANCE_M
        a, b = (view.blend_labels() for view in views)
        assert (b.panoptic.cpu() - a.panoptic).abs().max() <= COLOR_TOLERANCE
        assert (b.semantic.cpu() - a.semantic).abs().mean() <= MEAN_COLOR_TOLERANCE


@pytest.mark.parametrize("base", ["3dgs", "surfel"])
def test_the_same_losses_have_the_same_gradients(base: str) -> None:
    gradients = []
    for mapper in mappers(base):
        keyframe, other = (moved(k, mapper.device) for k in mappers(base)[0].keyframes.all[-2:])
        keyframe.revision = mapper.map.queries.revision  # its masks are matched already
        mapper.optimizer.num_steps = 0  # the grid of warped pixels follows it
        seen = {}
        mapper.optimizer.on_gradients = lambda k, view, which, seen=seen: seen.update(view=view, which=which)
        before = {name: mapper.map.gaussians[name].clone() for name in mapper.map.gaussians.widths}
        mapper.optimizer.step(keyframe, [other])
        mapper.optimizer.on_gradients = None
        view = seen["view"]
        by_row = {}
        for name, values in before.items():
            rows = view.labels if name in view.labels.columns else view.gaussians
            by_row[name] = torch.zeros_like(values).index_copy_(0, rows.ids, rows.gradient(name))
            mapper.map.gaussians[name][:] = values
        by_row["seen"] = torch.zeros(len(values), device=values.device)
        by_row["seen"][view.gaussians.ids] = seen["which"].float()
        gradients.append({name: values.cpu() for name, values in by_row.items()})
    here, there = gradients
    for name, values in here.items():
        error = (there[name] - values).norm() / values.norm()
        assert error <= (0.05 if name == "seen" else GRADIENT_TOLERANCE), f"{name}: {error}"


def test_a_map_made_on_the_gpu_is_as_good() -> None:
    from panoptic_mapper.evaluation import evaluate

    here = mapped(room_frames())
    there = PanopticMapper(here.config, DatasetSegmenter(ROOM_SPACE), "cuda")
    for frame in room_frames():
        there.integrate(replace(frame))
    a, b = (evaluate(m, room_frames(), ROOM_SPACE) for m in (here, there))
    assert b["psnr"] > a["psnr"] - 0.5
    assert b["pq"] > a["pq"] - 10  # a few dozen masks of a few pixels
    assert abs(len(there.map.gaussians) - len(here.map.gaussians)) < 0.05 * len(here.map.gaussians)


@pytest.mark.parametrize("channels", [1, 2, 31, 33, 64, 100])
def test_any_number_of_channels_is_blended(channels: int) -> None:
    from panoptic_mapper.rasterizers.gsplat import GsplatRasterizer

    scene = random_scene(200, channels=channels)
    images = []
    for rasterizer, device, dtype in ((TorchRasterizer(), "cpu", torch.float64), (GsplatRasterizer(), "cuda", None)):
        inputs = [t.to(device, dtype or torch.float32) for t in scene.inputs(torch.float64)]
        view = rasterizer.project(*inputs[:4], scene.T_camera_map.to(inputs[0]), CAMERA)
        images.append(view.blend(inputs[5][view.visible]).detach().cpu().double())
    assert (images[1] - images[0]).abs().max() < 5e-5


def test_an_empty_map_renders_black_on_the_gpu() -> None:
    mapper = PanopticMapper(make_mapper().config, DatasetSegmenter(ROOM_SPACE), "cuda")
    view = mapper.render(CAMERA, np.eye(4))
    assert view.color.max() == view.alpha.max() == view.semantic.max() == 0
    assert mapper.objects() == ()
