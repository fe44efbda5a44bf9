"""Scenes for the rasteriser tests, and the comparison of a backend with the plain-torch twin in float64."""

import dataclasses

import torch
from torch import Tensor

from panoptic_mapper.frame import PinholeCamera
from panoptic_mapper.rasterizers.base import Rasterizer

# float32 sums of up to a few hundred terms against float64 ones.
VALUE_TOLERANCE = 5e-6  # absolute, of images whose values are about 1
DEPTH_TOLERANCE_M = 1e-4  # a quotient: the error of accumulated depth over an alpha that may be 1/255
GRADIENT_TOLERANCE = 1e-4  # of the largest gradient of the same input: light is divided back out pair by pair

INPUTS = ("means", "quats", "scales", "opacities", "colors", "values")
CAMERA = PinholeCamera(60.0, 61.0, 24.3, 19.1, 50, 37)


@dataclasses.dataclass
class Scene:
    """Gaussians in float64 that are exact in float32."""

    means: Tensor
    quats: Tensor
    scales: Tensor
    opacities: Tensor
    colors: Tensor  # [N, 3]
    values: Tensor  # [N, C]
    T_camera_map: Tensor
    camera: PinholeCamera = CAMERA

    def inputs(self, dtype: torch.dtype) -> list[Tensor]:
        return [getattr(self, name).to(dtype, copy=True).requires_grad_() for name in INPUTS]


def random_scene(
    N: int, *, seed: int = 0, scale_m: float = 0.05, opacity: float = 0.99, channels: int = 21, behind: bool = False
) -> Scene:
    g = torch.Generator().manual_seed(seed)
    box = torch.tensor([5.0, 4.0, 4.0])
    angle = torch.tensor(0.1)
    T = torch.eye(4)
    T[0, 0] = T[2, 2] = angle.cos()
    T[0, 2], T[2, 0] = angle.sin(), -angle.sin()
    T[:3, 3] = torch.tensor([0.1, -0.05, 0.2])
    tensors = (
        (torch.rand(N, 3, generator=g) - 0.5) * box + torch.tensor([0.0, 0.0, 0.0 if behind else 3.0]),
        torch.randn(N, 4, generator=g),
        torch.rand(N, 3, generator=g) * scale_m + 0.2 * scale_m,
        torch.rand(N, generator=g) * opacity,
        torch.rand(N, 3, generator=g),
        torch.rand(N, channels, generator=g),
        T,
    )
    return Scene(*(t.double() for t in tensors))


def images_and_gradients(rasterizer: Rasterizer, scene: Scene, dtype: torch.dtype) -> dict[str, Tensor | None]:
    """All outputs, and the gradients of a fixed random functional of them."""
    inputs = scene.inputs(dtype)
    means, quats, scales, opacities, colors, values = inputs
    view = rasterizer.project(means, quats, scales, opacities, scene.T_camera_map.to(dtype), scene.camera)
    rendering = view.render(colors[view.visible])
    blended = view.blend(values[view.visible])
    outputs = {"color": rendering.color, "depth": rendering.depth, "alpha": rendering.alpha, "blend": blended}
    g = torch.Generator().manual_seed(7)
    # Where little is drawn, the gradient of the depth is a small difference of numbers of 1 / alpha: weigh it by alpha.
    parts = {**outputs, "depth": rendering.depth * rendering.alpha.detach()}
    loss = sum((part * torch.randn(part.shape, generator=g).to(part)).sum() for part in parts.values())
    loss.backward()
    grads = {f"grad of {name}": t.grad for name, t in zip(INPUTS, inputs, strict=True)}
    return {"visible": view.visible, **{k: v.detach() for k, v in outputs.items()}, **grads}


def assert_same(actual: dict[str, Tensor | None], expected: dict[str, Tensor | None], looser: float = 1) -> None:
    """Every output and gradient within the tolerances above, times `looser`."""
    for name, want in expected.items():
        got = actual[name]
        assert want is not None, name
        if got is None and want.numel() == 0:
            continue  # nothing was drawn, and not all backends say so with an empty gradient
        assert got is not None, name
        assert torch.isfinite(got.double()).all(), name
        assert got.shape == want.shape, name
        if want.numel() == 0:
            continue
        error = (got.double() - want).abs().max().item()
        if name == "visible":
            assert torch.equal(got, want)
        elif name.startswith("grad"):
            assert error <= looser * GRADIENT_TOLERANCE * max(want.abs().max().item(), 1e-3), f"{name}: {error}"
        else:
            assert error <= looser * (DEPTH_TOLERANCE_M if name == "depth" else VALUE_TOLERANCE), f"{name}: {error}"


SCENES = {
    "cloud": random_scene(400),
    "one Gaussian": random_scene(1, seed=3),
    "none": random_scene(0),
    "half behind the camera": random_scene(300, behind=True),
    "very large": random_scene(60, scale_m=3.0, opacity=0.5),
    "opaque stack": random_scene(600, scale_m=0.5, opacity=40.0),
    "many channels": random_scene(50, channels=81),
    "tiny image": dataclasses.replace(random_scene(200), camera=PinholeCamera(10.0, 9.0, 1.0, 0.5, 3, 2)),
    "exact tiles": dataclasses.replace(random_scene(300), camera=PinholeCamera(30.0, 30.0, 15.5, 7.5, 32, 16)),
}
SCENES["opaque stack"].opacities.clamp_(max=1.0)
