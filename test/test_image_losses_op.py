"""The operator of the losses of images: against plain torch in float64, values by hand and naive windows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from operator_devices import captured
from torch import Tensor

from panoptic_mapper import ops
from panoptic_mapper.losses import masked_mean
from panoptic_mapper.rasterizers.base import MIN_ALPHA

WEIGHTS = {"color": 1.3, "depth": 2.1, "opacity": 0.4, "ssim_share": 0.2}
MIN_DEPTH, MAX_DEPTH, COUNT, ERROR_SCALE = 0.5, 3.0, 0.7, 0.01
OTHERS = (MIN_DEPTH, MAX_DEPTH, COUNT, ERROR_SCALE)
COLOR, DEPTH, OPACITY = range(3)


def arguments(size: tuple[int, int] = (33, 46), num_features: int = 8, device: str = "cpu", seed: int = 0) -> list:
    """Drawn image and alpha, observed colour, and depth with holes, with what is too near and what is too far."""
    g = torch.Generator().manual_seed(seed)
    alpha = torch.rand(size, generator=g).clamp_min(MIN_ALPHA)
    alpha[torch.rand(size, generator=g) < 0.1] = 0
    depth = 0.2 + 3.2 * torch.rand(size, generator=g)
    image = torch.rand(*size, num_features, generator=g)
    image[..., -1] = (depth + 0.2 * torch.randn(size, generator=g)) * alpha
    depth[torch.rand(size, generator=g) < 0.15] = 0
    color = torch.randint(0, 256, (*size, 3), generator=g, dtype=torch.uint8)
    return [t.to(device) for t in (image, alpha, color, depth)]


def operator(args: list, **changed: float) -> tuple[Tensor, Tensor, Tensor]:
    ops.load()
    return torch.ops.panoptic_mapper.image_losses(*args, *(WEIGHTS | changed).values(), *OTHERS)


def ssim(a: Tensor, b: Tensor) -> Tensor:
    window = min(8, *a.shape[:2])
    stacked = torch.cat([a, b, a * a, b * b, a * b], dim=-1).permute(2, 0, 1)  # [15, H, W]
    mean_a, mean_b, aa, bb, ab = F.avg_pool2d(stacked, window, 4).split(3)
    c1, c2 = 0.01**2, 0.03**2
    var_a, var_b, cov = aa - mean_a**2, bb - mean_b**2, ab - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return (luminance * (2 * cov + c2) / (var_a + var_b + c2)).mean()


def twin(args: list, **changed: float) -> tuple[Tensor, Tensor, Tensor]:
    """By autograd, in float64."""
    weights = WEIGHTS | changed
    image, alpha = (t.cpu().double().requires_grad_() for t in args[:2])
    observed, measured_depth = args[2].cpu().double() / 255, args[3].cpu().double()
    color, ones, copies, depth = image.split([3, 1, image.shape[-1] - 5, 1], dim=-1)
    depth = depth[..., 0] / alpha.clamp_min(0.5 * MIN_ALPHA)
    counted = ((measured_depth <= 0) | (measured_depth > MIN_DEPTH)).double()[..., None]
    measured = ((measured_depth > MIN_DEPTH) & (measured_depth < MAX_DEPTH)).double()
    share = weights["ssim_share"]
    color_loss = (1 - share) * ((color - observed) * counted).abs().mean()
    if share > 0:
        color_loss = color_loss + share * (1 - ssim(color * counted, observed * counted))
    terms = [
        color_loss,
        masked_mean((depth - measured_depth).abs(), measured * (alpha > 0.5)),
        masked_mean(1 - alpha, measured),
    ]
    total = sum(weights[name] * term for name, term in zip(("color", "depth", "opacity"), terms, strict=True))
    total = total + COUNT * (ones[..., 0] - alpha).mean()
    if copies.shape[-1]:
        total = total + (copies * (observed - color.detach()) * counted * ERROR_SCALE).sum()
    return torch.stack(terms).detach(), *torch.autograd.grad(total, (image, alpha))


def compare(args: list, **changed: float) -> tuple[Tensor, Tensor, Tensor]:
    actual, expected = operator(args, **changed), twin(args, **changed)
    torch.testing.assert_close(actual[0].cpu().double(), expected[0], rtol=2e-5, atol=1e-6)
    for a, e in zip(actual[1:], expected[1:], strict=True):
        assert a.is_contiguous()
        torch.testing.assert_close(a.cpu().double(), e, rtol=1e-3, atol=2e-5 * float(e.abs().max()))
    return actual


@pytest.mark.parametrize("num_features", [5, 8])
@pytest.mark.parametrize("size", [(1, 1), (5, 30), (21, 3), (8, 8), (33, 46), (120, 161)])
def test_operator_equals_twin(size: tuple[int, int], num_features: int, device: str) -> None:
    _, v_image, v_alpha = compare(arguments(size, num_features, device))
    if size == (120, 161):
        assert (v_image != 0).any(0).any(0).all()
        assert (v_alpha != 0).all()


@pytest.mark.parametrize(
    "changed", [{"ssim_share": 0.0}, {"ssim_share": 1.0}, {"color": 0.0}, {"depth": 0.0, "opacity": 0.0}]
)
def test_weights_of_the_oracle(changed: dict[str, float], device: str) -> None:
    compare(arguments(device=device), **changed)


def test_images_that_are_alike(device: str) -> None:
    """Where SSIM is near 1 and its variances are small."""
    args = arguments(device=device)
    args[0][..., :3] = args[2] / 255
    assert operator(args)[0][COLOR].abs() < 1e-6
    args[0][..., :3] += 0.02 * torch.rand(33, 46, 3, generator=torch.Generator().manual_seed(1)).to(device)
    compare(args)
    args[2].fill_(128)
    compare(args)


def naive_ssim(a: np.ndarray, b: np.ndarray, window: int, stride: int) -> float:
    values = []
    for channel in range(3):
        for v in range(0, a.shape[0] - window + 1, stride):
            for u in range(0, a.shape[1] - window + 1, stride):
                x, y = (i[v : v + window, u : u + window, channel].ravel() for i in (a, b))
                covariance = ((x - x.mean()) * (y - y.mean())).mean()
                values.append(
                    (2 * x.mean() * y.mean() + 1e-4)
                    * (2 * covariance + 9e-4)
                    / ((x.mean() ** 2 + y.mean() ** 2 + 1e-4) * (x.var() + y.var() + 9e-4))
                )
    return float(np.mean(values))


@pytest.mark.parametrize("size", [(21, 30), (5, 30), (21, 3), (1, 1)])
def test_ssim_is_that_of_its_windows(size: tuple[int, int], device: str) -> None:
    args = arguments(size, device=device)
    args[3].fill_(1.0)
    terms, _, _ = operator(args, ssim_share=1.0)
    a, b = args[0][..., :3].cpu().double().numpy(), args[2].cpu().double().numpy() / 255
    np.testing.assert_allclose(1 - terms[COLOR].item(), naive_ssim(a, b, min(8, *size), 4), atol=1e-5)


def test_terms_by_hand(device: str) -> None:
    """Four pixels: as it should be, too deep, half transparent, and with something right before the lens."""
    image = torch.zeros(1, 4, 5)
    alpha, depth = torch.tensor([[1.0, 0.8, 0.5, 1.0]]), torch.tensor([[2.0, 2.0, 1.0, 0.4]])
    image[0, :, :3] = 0.5
    image[0, :, 4] = torch.tensor([2.0, 2.5, 1.0, 1.0]) * alpha[0]
    color = torch.full((1, 4, 3), 51, dtype=torch.uint8)
    args = [t.to(device) for t in (image, alpha, color, depth)]
    terms, v_image, v_alpha = operator(args, ssim_share=0.0)
    assert terms.tolist() == pytest.approx([0.75 * 0.3, 0.5 / 2, (0.2 + 0.5) / 3], rel=1e-5)
    of_color, of_opacity = WEIGHTS["color"] / 12, WEIGHTS["opacity"] / 3
    assert v_image[0, :, 0].tolist() == pytest.approx([of_color] * 3 + [0])
    assert v_image[0, :, 3].tolist() == pytest.approx([COUNT / 4] * 4)
    assert v_image[0, :, 4].tolist() == pytest.approx([0, WEIGHTS["depth"] / 2 / 0.8, 0, 0])
    of_depth = -WEIGHTS["depth"] / 2 * 2.5 / 0.8
    expected = [-of_opacity, of_depth - of_opacity, -of_opacity, 0]
    assert v_alpha[0].tolist() == pytest.approx([v - COUNT / 4 for v in expected], rel=1e-5)


@pytest.mark.parametrize("ssim_share", [0.0, 0.5])
def test_what_stands_right_before_the_lens_pulls_nothing(ssim_share: float, device: str) -> None:
    args = arguments(device=device)
    args[3][:, 20:] = 0.3
    expected = operator(args, ssim_share=ssim_share)
    args[0][:, 20:, :3] = 0.9
    args[2][:, 20:] = 7
    terms, v_image, v_alpha = operator(args, ssim_share=ssim_share)
    assert torch.equal(terms, expected[0])
    assert torch.equal(v_image, expected[1])
    assert torch.equal(v_alpha, expected[2])
    assert (v_image[:, 20:, [0, 1, 2, 4, 5, 6, 7]] == 0).all()


def test_nothing_measured_has_no_loss_of_depth(device: str) -> None:
    args = arguments(device=device)
    args[3].zero_()
    terms, v_image, v_alpha = compare(args)
    assert terms[DEPTH] == terms[OPACITY] == 0
    assert (v_image[..., -1] == 0).all()
    torch.testing.assert_close(v_alpha, torch.full_like(v_alpha, -COUNT / v_alpha.numel()))


def test_layouts_do_not_matter(device: str) -> None:
    args = arguments(device=device)
    expected = operator(args)
    for a, e in zip(operator([t.transpose(0, 1).contiguous().transpose(0, 1) for t in args]), expected, strict=True):
        assert torch.equal(a, e)


@pytest.mark.parametrize(
    ("index", "bad", "message"),
    [
        (0, lambda t: t.double(), "image: expected Float"),
        (0, lambda t: t[..., :6], "image: expected 5 or 8 features"),
        (0, lambda t: t[:0], "image: expected at least one pixel"),
        (1, lambda t: t[1:], "alpha: expected sizes"),
        (2, lambda t: t.float(), "observed_color: expected Byte"),
        (2, lambda t: t[..., :2], "observed_color: expected sizes"),
        (3, lambda t: t[:, 1:], "observed_depth: expected sizes"),
    ],
)
def test_bad_arguments_raise(index: int, bad: Callable, message: str, device: str) -> None:
    args = arguments(device=device)
    args[index] = bad(args[index])
    with pytest.raises((RuntimeError, ValueError), match=message):
        operator(args)


def test_runs_are_bit_identical(device: str) -> None:
    args = arguments((120, 160), device=device)
    threads, results = torch.get_num_threads(), []
    try:
        for num in (1, 2):
            torch.set_num_threads(num)
            results.append(operator(args))
    finally:
        torch.set_num_threads(threads)
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_opcheck(device: str) -> None:
    numbers = (*WEIGHTS.values(), *OTHERS)
    torch.library.opcheck(torch.ops.panoptic_mapper.image_losses.default, (*arguments(device=device), *numbers))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_graph_and_no_synchronisation() -> None:
    args = arguments((120, 160), device="cuda")
    graph, outputs = captured(lambda: operator(args))
    for t, other in zip(args, arguments((120, 160), device="cuda", seed=3), strict=True):
        t.copy_(other)
    graph.replay()
    for a, e in zip(outputs, operator(args), strict=True):
        assert torch.equal(a, e)
