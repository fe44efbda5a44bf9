"""A loss that was captured in a CUDA graph is the loss: its value, what it reports, and its gradients."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from panoptic_mapper.captured_loss import CapturedLoss
from panoptic_mapper.density_control import DensityConfig
from panoptic_mapper.image_loss import IMAGE_TERMS, image_loss
from panoptic_mapper.losses import LossWeights
from panoptic_mapper.seen_counter import ERROR_SCALE

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

LOSS = partial(image_loss, weights=LossWeights(), density=DensityConfig())
NUM_DIFFERENTIABLE = 3  # colour, depth, opacity


def images(size: tuple[int, int] = (48, 64), seed: int = 0) -> tuple[Tensor, ...]:
    """Rendered colour, depth and opacity, and the observed colour and depth, which has holes."""
    g = torch.Generator().manual_seed(seed)
    depth = 1 + torch.rand(size, generator=g)
    observed_depth = depth + 0.1 * torch.randn(size, generator=g)
    observed_depth[torch.rand(size, generator=g) < 0.1 + 0.1 * seed] = 0
    made = (
        torch.rand(*size, 3, generator=g),
        depth,
        torch.rand(size, generator=g),
        torch.randint(0, 256, (*size, 3), generator=g, dtype=torch.uint8),
        observed_depth,
    )
    return tuple(t.cuda() for t in made)


def values_and_gradients(loss, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Total, reports, and the gradients of 1.7 times the total and something that the loss does not know."""
    rendered = [t.clone().requires_grad_() for t in given[:NUM_DIFFERENTIABLE]]
    total, report, errors = loss(*rendered, *given[NUM_DIFFERENTIABLE:])
    assert not report.requires_grad
    assert not errors.requires_grad
    (1.7 * total + rendered[1].square().mean()).backward()
    return (total.detach(), report, errors / ERROR_SCALE, *(t.grad for t in rendered))


def test_captured_loss_equals_the_plain_one() -> None:
    captured = CapturedLoss(LOSS, images(seed=5), NUM_DIFFERENTIABLE)
    results = []
    for seed in range(4):
        given = images(seed=seed)
        actual, expected = values_and_gradients(captured, given), values_and_gradients(LOSS, given)
        assert actual[1].shape == (len(IMAGE_TERMS),)
        for a, e in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, e, rtol=1e-5, atol=1e-9)
        assert all((image != 0).any() for image in actual[2:])
        results.append((actual, [a.clone() for a in actual]))
    assert len({float(actual[0]) for actual, _ in results}) == 4
    for actual, kept in results:  # later calls have not overwritten what earlier ones gave
        assert all(torch.equal(a, k) for a, k in zip(actual, kept, strict=True))


def test_layouts_and_the_images_that_it_was_captured_with_do_not_matter() -> None:
    first = images(seed=5)
    captured = CapturedLoss(LOSS, first, NUM_DIFFERENTIABLE)
    for image in first:
        image.zero_()  # it has its own
    given = images(seed=1)
    expected = values_and_gradients(LOSS, given)
    strided = tuple(t.transpose(0, 1).contiguous().transpose(0, 1) for t in given)
    for a, e in zip(values_and_gradients(captured, strided), expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-5, atol=1e-9)


def test_two_sizes_side_by_side() -> None:
    sizes = ((48, 64), (30, 41))
    captured = [CapturedLoss(LOSS, images(size), NUM_DIFFERENTIABLE) for size in sizes]
    for seed in (1, 2):
        for loss, size in zip(captured, sizes, strict=True):
            given = images(size, seed)
            actual, expected = values_and_gradients(loss, given), values_and_gradients(LOSS, given)
            for a, e in zip(actual, expected, strict=True):
                torch.testing.assert_close(a, e, rtol=1e-5, atol=1e-9)


def test_nothing_measured_gives_no_loss_of_depth() -> None:
    captured = CapturedLoss(LOSS, images(), NUM_DIFFERENTIABLE)
    given = list(images(seed=1))
    given[4].zero_()
    _, report, _, *gradients = values_and_gradients(captured, tuple(given))
    assert report[IMAGE_TERMS.index("depth")] == 0
    assert report[IMAGE_TERMS.index("opacity")] == 0
    assert (gradients[2] == 0).all()
    assert (gradients[0] != 0).any()


def test_no_wait_for_the_device() -> None:
    captured = CapturedLoss(LOSS, images(), NUM_DIFFERENTIABLE)
    given = images(seed=1)
    values_and_gradients(captured, given)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        values_and_gradients(captured, given)
    finally:
        torch.cuda.set_sync_debug_mode("default")
