"""What a view of the map really shows."""

from __future__ import annotations

import numpy as np
import torch
from small_room import CAMERA, SPACE, PassOn, gaussian_columns, make_mapper, opaque_wall

from panoptic_mapper.panoptic_map import MapView
from panoptic_mapper.rasterizers.base import Rendering
from panoptic_mapper.seen_counter import COUNT_WEIGHT, ERROR_SCALE, MIN_SEEN_PX, RELAXED_PX, SeenCounter


def view_of(means: torch.Tensor, T_map_camera: np.ndarray | None = None, **columns: torch.Tensor) -> MapView:
    """A view from the map's origin along z, onto an opaque wall at z = 2 and Gaussians at `means` after it."""
    mapper = make_mapper(segmenter=PassOn(SPACE))
    mapper.map.gaussians.append(opaque_wall(), anchor=0)
    mapper.map.gaussians.append(gaussian_columns(means, **columns), anchor=0)
    return mapper.map.view(CAMERA, np.eye(4) if T_map_camera is None else T_map_camera)


def seen_of(view: MapView) -> torch.Tensor:
    """What the counter finds beside a loss that has gradients of its own."""
    counter = SeenCounter(view)
    rendering = view.render(counter)
    (rendering.color.square().mean() + counting_term(counter, rendering)).backward()
    return counter.seen()


def counting_term(counter: SeenCounter, rendering: Rendering, errors: torch.Tensor | None = None) -> torch.Tensor:
    """The term of `image_loss` by which Gaussians are counted, and the one that sends them errors [H, W, 3]."""
    _, ones, copies, _ = counter.image(rendering).split([3, 1, 0 if errors is None else 3, 1], dim=-1)
    term = COUNT_WEIGHT * (ones[..., 0] - rendering.alpha).mean()
    return term if errors is None else term + (copies * ERROR_SCALE * errors).sum()


def test_what_is_behind_a_wall_is_projected_but_not_seen() -> None:
    view = view_of(torch.tensor([[0.1, 0.1, 1.0], [0.1, 0.1, 3.0], [-0.5, 0.2, 5.0], [0.3, 0.0, 1.9]]))
    num_candidates = len(view.gaussians)
    assert set(range(num_candidates - 4, num_candidates)) <= set(view.projection.visible.tolist())
    seen = seen_of(view)
    assert seen[-4:].tolist() == [True, False, False, True]
    assert seen[:-4].float().mean() > 0.5  # the wall itself is


def test_what_is_not_projected_and_what_is_transparent_is_not_seen() -> None:
    just_outside = [1.2 * 19.5 / 40, 0.0, 1.0]  # a candidate, for its centre is near the image
    means = torch.tensor([just_outside, [0.0, 0, 1], [0.0, 0.2, 1]])
    small = torch.full((3, 3), 1e-2).log()  # 0.4 px
    view = view_of(means, log_scales=small, opacity_logits=torch.tensor([[3.0], [-4.0], [3.0]]))
    assert seen_of(view)[-3:].tolist() == [False, False, True]


def test_a_view_of_nothing_sees_nothing() -> None:
    view = view_of(torch.zeros(0, 3), np.diag([-1.0, 1, -1, 1]))  # turned around
    assert seen_of(view).tolist() == []


def test_counting_is_that_of_blended_weights_and_moves_nothing() -> None:
    def gradient(is_counted: bool) -> tuple[torch.Tensor, torch.Tensor]:
        view = view_of(torch.tensor([[0.1, 0.1, 1.0], [0.1, 0.1, 3.0]]))
        counter = SeenCounter(view)
        rendering = view.render(counter if is_counted else None)
        loss = rendering.color.square().mean()
        (loss + counting_term(counter, rendering) if is_counted else loss).backward()
        ones = torch.ones(len(view.visible_ids), 1, requires_grad=True)
        (total_px,) = torch.autograd.grad(view.projection.blend(ones).sum(), ones)
        gradients = [view.gaussians.gradient(name) for name in view.gaussians.columns]
        return torch.cat(gradients, dim=1), counter.seen()[view.projection.visible] == (total_px[:, 0] > MIN_SEEN_PX)

    counted, same = gradient(True)
    plain, _ = gradient(False)
    assert same.all()
    torch.testing.assert_close(counted, plain, rtol=0, atol=1e-5 * float(plain.abs().max()))


def test_colours_follow_the_mean_error_of_their_pixels_and_nothing_else_moves() -> None:
    view = view_of(torch.tensor([[0.1, 0.1, 1.0], [0.1, 0.1, 3.0]]))
    before = view.map.gaussians["colors"].clone()
    colors = view.colors().detach().requires_grad_()
    ones = torch.ones(len(colors), 1, requires_grad=True)
    errors = torch.randn(CAMERA.height, CAMERA.width, 3, generator=torch.Generator().manual_seed(0))
    ((view.projection.blend(colors) * errors).sum() + view.projection.blend(ones).sum()).backward()
    steps = 0.4 * colors.grad / ones.grad.clamp_min(RELAXED_PX)

    counter = SeenCounter(view, with_errors=True)
    rendering = view.render(counter)
    (rendering.color.square().mean() + counting_term(counter, rendering, errors)).backward()
    counter.relax_colors(0.4)
    after = view.map.gaussians["colors"]
    torch.testing.assert_close(after[view.visible_ids] - before[view.visible_ids], steps, rtol=1e-3, atol=1e-5)
    assert float(steps.abs().max()) > 0.05
    behind = len(before) - 1
    torch.testing.assert_close(after[behind], before[behind], rtol=0, atol=1e-4)

    plain = view_of(torch.tensor([[0.1, 0.1, 1.0], [0.1, 0.1, 3.0]]))
    plain.render().color.square().mean().backward()
    actual, expected = (
        torch.cat([v.gaussians.gradient(name) for name in v.gaussians.columns], dim=1) for v in (view, plain)
    )
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_without_errors_no_colour_follows() -> None:
    view = view_of(torch.tensor([[0.1, 0.1, 1.0]]))
    before = view.map.gaussians["colors"].clone()
    counter = SeenCounter(view)
    rendering = view.render(counter)
    (rendering.color.square().mean() + counting_term(counter, rendering)).backward()
    counter.relax_colors(1.0)
    assert torch.equal(view.map.gaussians["colors"], before)
