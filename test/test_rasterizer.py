"""The compiled CPU rasteriser: equal to the plain-torch twin, reproducible, and right where the answer is known."""

import math
import os
import subprocess
import sys

import pytest
import torch
from rasterizer_scenes import CAMERA, INPUTS, SCENES, assert_same, images_and_gradients, random_scene
from torch import Tensor

from panoptic_mapper.frame import PinholeCamera
from panoptic_mapper.rasterizers import create_rasterizer
from panoptic_mapper.rasterizers.base import MAX_ALPHA, MIN_ALPHA, MIN_TRANSMITTANCE
from panoptic_mapper.rasterizers.cpu import CpuRasterizer, CpuView
from panoptic_mapper.rasterizers.torch_reference import TorchRasterizer


@pytest.fixture(scope="module")
def cpu() -> CpuRasterizer:
    return CpuRasterizer()


@pytest.mark.parametrize("name", SCENES)
def test_cpu_equals_twin(cpu: CpuRasterizer, name: str) -> None:
    expected = images_and_gradients(TorchRasterizer(), SCENES[name], torch.float64)
    assert_same(images_and_gradients(cpu, SCENES[name], torch.float32), expected)


@pytest.mark.parametrize("kernels", ["baseline", "avx2"])
def test_kernels_of_other_instruction_sets_equal_twin(kernels: str) -> None:
    code = (
        "from test_rasterizer import *; from rasterizer_scenes import *\n"
        "for name in ('cloud', 'opaque stack', 'many channels'): test_cpu_equals_twin(CpuRasterizer(), name)"
    )
    environment = {**os.environ, "PANOPTIC_MAPPER_INSTRUCTION_SET": kernels, "OMP_NUM_THREADS": "1"}
    path = [os.path.dirname(__file__), os.path.dirname(os.path.dirname(__file__))]
    environment["PYTHONPATH"] = os.pathsep.join([*path, environment.get("PYTHONPATH", "")])
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


def test_same_bits_from_run_to_run_and_for_any_number_of_threads(cpu: CpuRasterizer) -> None:
    scene = random_scene(3000, scale_m=0.1)
    threads = torch.get_num_threads()
    try:
        runs = []
        for count in (1, 2, 2, 3):
            torch.set_num_threads(count)
            runs.append(images_and_gradients(cpu, scene, torch.float32))
    finally:
        torch.set_num_threads(threads)
    for run in runs[1:]:
        for name, value in runs[0].items():
            assert torch.equal(run[name], value), name


def one_gaussian(cpu: CpuRasterizer, z: float = 2.0, opacity: float = 0.8, sigma_m: float = 0.1) -> CpuView:
    """A round Gaussian on the ray of the pixel (20, 15)."""
    mean = torch.tensor([[(20 - CAMERA.cx) / CAMERA.fx * z, (15 - CAMERA.cy) / CAMERA.fy * z, z]])
    quat, scale = torch.tensor([[1.0, 0, 0, 0]]), torch.full((1, 3), sigma_m)
    return cpu.project(mean, quat, scale, torch.tensor([opacity]), torch.eye(4), CAMERA)


def test_one_gaussian_has_its_opacity_and_depth_at_its_pixel(cpu: CpuRasterizer) -> None:
    rendering = one_gaussian(cpu).render(torch.tensor([[0.25, 0.5, 1.0]]))
    assert rendering.alpha[15, 20].item() == pytest.approx(0.8, abs=1e-6)
    assert rendering.depth[15, 20].item() == pytest.approx(2.0, abs=1e-5)
    assert rendering.color[15, 20].tolist() == pytest.approx([0.2, 0.4, 0.8], abs=1e-6)
    # Three pixels away, by the projected deviation (the Jacobian's third column adds little so near the axis).
    variance = (0.1 * CAMERA.fx / 2.0) ** 2 + 0.3
    assert rendering.alpha[15, 23].item() == pytest.approx(0.8 * math.exp(-4.5 / variance), rel=1e-2)


def test_nothing_drawn_leaves_zeros(cpu: CpuRasterizer) -> None:
    rendering = one_gaussian(cpu, sigma_m=0.01).render(torch.ones(1, 3))
    far = torch.ones(CAMERA.height, CAMERA.width, dtype=torch.bool)
    far[13:18, 18:23] = False
    for image in (rendering.color, rendering.depth, rendering.alpha):
        assert (image[far] == 0).all()
        assert image[15, 20].min() > 0


@pytest.mark.parametrize(
    "change",
    [
        {"means": [0.0, 0.0, -2.0]},  # behind the camera
        {"means": [0.0, 0.0, 0.005]},  # nearer than the near plane
        {"means": [100.0, 0.0, 2.0]},  # beside the image
        {"opacities": 0.5 * MIN_ALPHA},
        {"means": [float("nan"), 0.0, 2.0]},
        {"means": [float("inf"), 0.0, 2.0]},
        {"scales": [float("nan"), 0.1, 0.1]},
        {"scales": [1e30, 1e30, 1e30]},
        {"quats": [float("nan"), 0.0, 0.0, 0.0]},
        {"opacities": float("nan")},
    ],
    ids=str,
)
def test_gaussians_that_cannot_be_seen_are_culled_and_get_no_gradient(cpu: CpuRasterizer, change: dict) -> None:
    scene = random_scene(5)
    expected = images_and_gradients(cpu, scene, torch.float32)
    for name in INPUTS:
        row = getattr(scene, name)[:1].clone()
        row[0] = torch.tensor(change.get(name, row[0].tolist() if row.ndim > 1 else row.item()))
        setattr(scene, name, torch.cat((getattr(scene, name), row)))
    if "means" in change:  # given in the camera's frame
        T_map_camera = scene.T_camera_map.inverse()
        scene.means[-1] = T_map_camera[:3, :3] @ scene.means[-1] + T_map_camera[:3, 3]
    actual = images_and_gradients(cpu, scene, torch.float32)
    for name, value in expected.items():
        got = actual[name]
        if name.startswith("grad"):
            assert (got[5] == 0).all(), name
            got = got[:5]
        assert torch.equal(got, value), name


def test_zero_quaternion_gives_finite_gradients(cpu: CpuRasterizer) -> None:
    scene = random_scene(30)
    scene.quats[:] = 0
    assert all(torch.isfinite(value).all() for value in images_and_gradients(cpu, scene, torch.float32).values())


def test_early_stop_leaves_a_little_light_and_hides_what_is_behind(cpu: CpuRasterizer) -> None:
    N = 50
    means = torch.tensor([[0.0, 0.0, 1.0]]).repeat(N, 1)
    means[:, 2] += 0.02 * torch.arange(N)
    quats, scales = torch.tensor([[1.0, 0, 0, 0]]).repeat(N, 1), torch.full((N, 3), 2.0)
    colors = torch.rand(N, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    view = cpu.project(means, quats, scales, torch.full((N,), 0.9), torch.eye(4), CAMERA)
    rendering = view.render(colors)
    assert (1 - rendering.alpha > 0.999 * MIN_TRANSMITTANCE).all()
    rendering.color.sum().backward()
    # Light falls to about 0.1 a layer: the fourth is drawn nowhere near the middle, the tenth nowhere at all.
    assert (colors.grad[:3] > 0).all()
    assert (colors.grad[10:] == 0).all()


def test_alpha_is_clamped_without_a_gradient(cpu: CpuRasterizer) -> None:
    opacity = torch.tensor([1.0], requires_grad=True)
    mean = torch.tensor([[0.0, 0.0, 1.0]])
    camera = PinholeCamera(50.0, 50.0, 2.0, 2.0, 5, 5)
    view = cpu.project(mean, torch.tensor([[1.0, 0, 0, 0]]), torch.full((1, 3), 100.0), opacity, torch.eye(4), camera)
    alpha = view.render(torch.ones(1, 3)).alpha
    assert torch.allclose(alpha, torch.tensor(MAX_ALPHA), rtol=0, atol=1e-6)
    alpha.sum().backward()
    assert opacity.grad is not None
    assert opacity.grad.item() == 0


def test_no_channels(cpu: CpuRasterizer) -> None:
    view = one_gaussian(cpu)
    assert view.blend(torch.zeros(1, 0)).shape == (CAMERA.height, CAMERA.width, 0)
    rendering = view.render(torch.zeros(1, 0))
    assert rendering.color.shape == (CAMERA.height, CAMERA.width, 0)
    assert rendering.depth[15, 20].item() == pytest.approx(2.0, abs=1e-5)


def test_blend_gives_no_gradient_to_geometry(cpu: CpuRasterizer) -> None:
    means, quats, scales, opacities, _, values = random_scene(50).inputs(torch.float32)
    view = cpu.project(means, quats, scales, opacities, torch.eye(4), CAMERA)
    view.blend(values[view.visible]).sum().backward()
    assert values.grad is not None
    assert values.grad.abs().sum() > 0
    assert all(t.grad is None for t in (means, quats, scales, opacities))


@pytest.mark.parametrize("wanted", INPUTS[:5])
def test_each_input_alone_gets_the_gradient_it_gets_among_others(cpu: CpuRasterizer, wanted: str) -> None:
    def gradients(needed: tuple[str, ...]) -> dict[str, Tensor | None]:
        inputs = dict(zip(INPUTS, random_scene(80).inputs(torch.float32), strict=True))
        for name, tensor in inputs.items():
            tensor.requires_grad_(name in needed)
        geometry = [inputs[name] for name in INPUTS[:4]]
        view = cpu.project(*geometry, torch.eye(4), CAMERA)
        rendering = view.render(inputs["colors"][view.visible])
        (rendering.color.square().sum() + rendering.depth.sum()).backward()
        return {name: tensor.grad for name, tensor in inputs.items()}

    alone = gradients((wanted,))
    assert torch.equal(alone[wanted], gradients(INPUTS)[wanted])
    assert [name for name, grad in alone.items() if grad is not None] == [wanted]


def test_gradcheck_of_the_twin() -> None:
    camera = PinholeCamera(5.0, 5.0, 1.7, 1.2, 4, 3)
    scene = random_scene(3, seed=2, scale_m=0.6, opacity=0.8)
    scene.means[:, :2] *= 0.3
    scene.means[:, 2] = torch.tensor([1.5, 2.0, 2.5])  # the order must not change under the check's steps

    def images(means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, colors: Tensor) -> tuple[Tensor, ...]:
        view = TorchRasterizer().project(means, quats, scales, opacities, scene.T_camera_map, camera)
        assert view.visible.tolist() == [0, 1, 2]
        rendering = view.render(colors)
        return rendering.color, rendering.depth, rendering.alpha

    assert torch.autograd.gradcheck(images, scene.inputs(torch.float64)[:5])


def test_bad_arguments_are_named(cpu: CpuRasterizer) -> None:
    means, quats, scales, opacities, colors, _ = (t.detach() for t in random_scene(7).inputs(torch.float32))
    T = torch.eye(4)
    cases = {
        "means": (means[:, :2], quats, scales, opacities, T),
        "means: expected torch.float32, got torch.float64": (means.double(), quats, scales, opacities, T),
        "quats": (means, quats[:3], scales, opacities, T),
        "scales": (means, quats, scales.double(), opacities, T),
        "opacities": (means, quats, scales, opacities[:, None], T),
        "T_camera_map": (means, quats, scales, opacities, T[:3]),
    }
    for message, arguments in cases.items():
        with pytest.raises(ValueError, match=f"^{message}"):
            cpu.project(*arguments, CAMERA)
    view = cpu.project(means, quats, scales, opacities, T, CAMERA)
    with pytest.raises(ValueError, match=r"^colors: expected \[\d+, channels\]"):
        view.render(torch.zeros(1000, 3))
    with pytest.raises(ValueError, match=r"^values: expected torch\.float32"):
        view.blend(colors[view.visible].double())


def test_create_rasterizer_picks_by_device_and_names_what_is_missing() -> None:
    device = torch.device("cpu")
    assert create_rasterizer("auto", device).name == "cpu"
    assert create_rasterizer("torch", device).name == "torch"
    with pytest.raises(ValueError, match="CUDA"):
        create_rasterizer("gsplat", device)
    with pytest.raises(ValueError, match="on the CPU, got cuda"):
        create_rasterizer("cpu", torch.device("cuda"))
    with pytest.raises(ValueError, match="expected auto, cpu, gsplat or torch"):
        create_rasterizer("nerf", device)  # type: ignore[arg-type]


def test_missing_gsplat_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=r"pip install gsplat==1\.5\.3"):
        create_rasterizer("auto", torch.device("cuda"))
