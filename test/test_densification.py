"""Splitting: which Gaussians, what becomes of them, and what their labels and Adam's moments are."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch
from small_room import CAMERA, CPU, SPACE, PassOn, gaussian_columns, make_mapper, mapped, wall_frame
from torch import Tensor

from panoptic_mapper.densification import (
    SPLIT_SHRINK,
    DensificationConfig,
    ScreenGradients,
    densify,
    reset_opacities,
)
from panoptic_mapper.gaussian_map import BOOK, GaussianConfig, GaussianMap, LearningRates
from panoptic_mapper.geometry import rotation_matrices

CONFIG = DensificationConfig(gradient=1.0, max_gaussians=1000)
SMALL, LARGE = (0.01, 0.02, 0.04), (0.2, 0.1, 0.05)


def make_map(sizes: list[tuple[float, ...]], base: str = "3dgs") -> GaussianMap:
    """Gaussians of those standard deviations, each with its own place, colour, features, label and anchor."""
    n, g = len(sizes), torch.Generator().manual_seed(1)
    gaussians = GaussianMap(LearningRates(), CPU, GaussianConfig(base=base, sh_degree=1))  # type: ignore[arg-type]
    columns = gaussian_columns(
        torch.randn(n, 3, generator=g),
        quats=torch.randn(n, 4, generator=g),
        log_scales=torch.tensor(sizes).log(),
        opacity_logits=torch.randn(n, 1, generator=g),
        colors=torch.rand(n, 3, generator=g),
        semantics=torch.randn(n, 16, generator=g),
        instances=torch.randn(n, 32, generator=g),
        harmonics=torch.randn(n, 9, generator=g),
    )
    gaussians.append(columns, anchor=0)
    for number, name in enumerate(BOOK):
        gaussians[name][:] = 10 * number + torch.arange(n, dtype=torch.int32)
    return gaussians


def gradients_of(gaussians: GaussianMap, means: list[float]) -> ScreenGradients:
    gradients = ScreenGradients(gaussians)
    gradients.total[:] = 2 * torch.tensor(means)
    gradients.views[:] = 2
    return gradients


def rows_of(gaussians: GaussianMap) -> dict[str, Tensor]:
    return {name: gaussians[name].clone() for name in (*gaussians.widths, *BOOK)}


def test_gradients_are_those_of_the_places_in_the_image() -> None:
    mapper = make_mapper("rasterizer=torch", segmenter=PassOn(SPACE))
    g = torch.Generator().manual_seed(0)
    places = torch.rand(20, 3, generator=g) * torch.tensor([1.6, 1.2, 2.0]) + torch.tensor([-0.8, -0.6, 2.0])
    sizes = torch.full((20, 3), 0.02).log()
    mapper.map.gaussians.append(gaussian_columns(places, log_scales=sizes, colors=torch.rand(20, 3, generator=g)), 0)
    T = np.eye(4)
    T[:3, :3] = np.array([[0.8, 0, 0.6], [0, 1, 0], [-0.6, 0, 0.8]])
    T[:3, 3] = -1.8, 0, 0.6
    view = mapper.map.view(CAMERA, T)
    visible = view.projection.visible
    assert len(visible) > 10
    means2d = view.projection.means2d  # type: ignore[attr-defined]
    means2d.retain_grad()
    target = torch.rand(CAMERA.height, CAMERA.width, 3, generator=g)
    (view.render().color - target).square().sum().backward()
    seen = torch.zeros(len(view.gaussians), dtype=torch.bool)
    seen[visible[::2]] = True
    gradients = ScreenGradients(mapper.map.gaussians)
    for _ in range(3):
        gradients.add(SimpleNamespace(camera=CAMERA), view, seen)  # type: ignore[arg-type]
    ids = view.gaussians.ids[visible[::2]]
    expected = (means2d.grad[::2] * torch.tensor([CAMERA.width / 2, CAMERA.height / 2])).norm(dim=1)
    # The oracle holds the shape of a splat fixed; a shift also changes that a little.
    torch.testing.assert_close(gradients.mean[ids], expected, rtol=0.05, atol=0.01 * float(expected.max()))
    assert gradients.views[ids].tolist() == [3] * len(ids)
    others = torch.ones(20, dtype=torch.bool)
    others[ids] = False
    assert gradients.total[others].tolist() == [0] * int(others.sum())
    before = gradients.mean
    gradients.keep(~others)
    assert torch.equal(gradients.mean, before[~others])


def covariances(gaussians: GaussianMap) -> Tensor:  # [N, 3, 3]
    axes = rotation_matrices(gaussians["quats"]) * gaussians["log_scales"].exp()[:, None]
    return axes @ axes.transpose(1, 2)


def test_two_along_the_longest_axis_have_the_mean_and_the_covariance_of_the_one() -> None:
    gaussians = make_map([SMALL, LARGE, SMALL, LARGE])
    before, covariance = rows_of(gaussians), covariances(gaussians)
    assert densify(gaussians, gradients_of(gaussians, [1.1, 1.1, 0.9, 0.9]), CONFIG) == 2
    after = rows_of(gaussians)
    for name, values in after.items():
        assert torch.equal(values[2:4], before[name][2:]), name  # gradients below the threshold
        if name not in ("means", "log_scales", "opacity_logits"):
            assert torch.equal(values[[0, 1, 4, 5]], before[name][[0, 1, 0, 1]]), name
    torch.testing.assert_close((after["means"][:2] + after["means"][4:]) / 2, before["means"][:2])
    half = (after["means"][4:] - after["means"][:2])[..., None] / 2
    torch.testing.assert_close(covariances(gaussians)[:2] + half @ half.transpose(1, 2), covariance[:2])
    for name in ("log_scales", "opacity_logits"):
        assert torch.equal(after[name][:2], after[name][4:])
    sizes = after["log_scales"][:2].exp()
    torch.testing.assert_close(sizes[0], torch.tensor(SMALL) / torch.tensor([1, 1, SPLIT_SHRINK]))
    torch.testing.assert_close(sizes[1], torch.tensor(LARGE) / torch.tensor([SPLIT_SHRINK, 1, 1]))

    def depth_along(rows: dict[str, Tensor]) -> Tensor:
        return -torch.log1p(-rows["opacity_logits"][:2, 0].sigmoid()) * rows["log_scales"][:2].exp().amax(1)

    torch.testing.assert_close(2 * depth_along(after), depth_along(before))


def test_a_surfel_stays_as_thin_and_its_parts_lie_in_its_plane() -> None:
    thin = (0.1, 0.2, 1e-4)
    gaussians = make_map([thin], base="surfel")
    gaussians["quats"][:] = torch.tensor([1.0, 0, 0, 0])
    place = gaussians["means"][0].clone()
    densify(gaussians, gradients_of(gaussians, [2.0]), CONFIG)
    torch.testing.assert_close(
        gaussians["log_scales"][1].exp(), torch.tensor(thin) / torch.tensor([1, SPLIT_SHRINK, 1])
    )
    assert (gaussians["means"] - place)[:, [0, 2]].abs().max() < 1e-6


def test_no_more_than_the_limit_and_the_worst_first() -> None:
    gaussians = make_map([SMALL] * 6)
    before = rows_of(gaussians)["means"]
    config = DensificationConfig(gradient=1.0, max_gaussians=8)
    assert densify(gaussians, gradients_of(gaussians, [2.0, 9, 3, 0, 7, 4]), config) == 2
    assert len(gaussians) == 8
    moved = (gaussians["means"][:6] != before).any(1)
    assert moved.nonzero()[:, 0].tolist() == [1, 4]
    assert densify(gaussians, gradients_of(gaussians, [9.0] * 8), config) == 0


def test_new_rows_have_no_moments_and_old_ones_keep_the_scale_of_their_gradients() -> None:
    mapper = mapped([wall_frame()], segmenter=PassOn(SPACE))
    gaussians = mapper.map.gaussians
    n = len(gaussians)
    table = gaussians.appearance
    assert (table._steps[:n] > 0).all()
    second = table._moments[:n, 1].clone()
    densify(gaussians, gradients_of(gaussians, [2.0] * n), CONFIG)
    assert len(gaussians) == 2 * n
    assert (table._steps[n : 2 * n] == 0).all()
    assert (table._moments[n : 2 * n] == 0).all()
    assert torch.equal(table._moments[:n, 1], second)
    mean_columns = slice(0, 3)
    assert (table._moments[:n, 0, mean_columns] == 0).all()


def test_opacities_are_lowered_and_come_back_where_they_are_needed() -> None:
    sizes_stay = "learning_rates.log_scales=8e-3"  # nearly: else they grow instead of the opacities
    mapper = mapped([wall_frame()], "optimizer.steps_per_keyframe=0", sizes_stay, segmenter=PassOn(SPACE))
    gaussians = mapper.map.gaussians
    gaussians["opacity_logits"][0] = -2.5
    reset_opacities(gaussians, DensificationConfig(reset_opacity=0.2))
    alpha = gaussians["opacity_logits"][:, 0].sigmoid()
    torch.testing.assert_close(alpha[1:], torch.full_like(alpha[1:], 0.2))
    torch.testing.assert_close(alpha[0], torch.tensor(-2.5).sigmoid())  # is not raised
    mapper.refine(60)
    assert gaussians["opacity_logits"][:, 0].sigmoid().median() > 0.5


def test_nothing_to_densify() -> None:
    gaussians = make_map([SMALL])
    gaussians.keep(torch.tensor([False]))
    assert densify(gaussians, ScreenGradients(gaussians), CONFIG) == 0
