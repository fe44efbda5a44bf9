"""The gsplat backend against the plain-torch twin; needs an NVIDIA GPU."""

import importlib.util

import pytest
import torch
from rasterizer_scenes import SCENES, Scene, assert_same, images_and_gradients

from panoptic_mapper.rasterizers.torch_reference import TorchRasterizer

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(importlib.util.find_spec("gsplat") is None, reason="gsplat is not installed"),
]


@pytest.mark.parametrize("name", SCENES)
def test_gsplat_equals_twin(name: str) -> None:
    from panoptic_mapper.rasterizers.gsplat import GsplatRasterizer

    scene = SCENES[name]
    expected = images_and_gradients(TorchRasterizer(), scene, torch.float64)
    moved = {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in vars(scene).items()}
    actual = images_and_gradients(GsplatRasterizer(), Scene(**moved), torch.float32)
    # gsplat's exponential is the hardware's fast one (2 ulp of its argument), and it projects in float32.
    assert_same({k: v.cpu() for k, v in actual.items() if v is not None}, expected, looser=10)
