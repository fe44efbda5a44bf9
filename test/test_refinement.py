"""Refinement while mapping: which Gaussians become four, what these are like, and that nobody else changes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_room import CAMERA, CPU, SPACE, PassOn, gaussian_columns, make_mapper, wall_frame
from torch import Tensor

from panoptic_mapper.density_control import DensityConfig
from panoptic_mapper.gaussian_map import GaussianConfig, GaussianMap, LearningRates
from panoptic_mapper.keyframes import Keyframe, KeyframeConfig, KeyframeStore
from panoptic_mapper.rasterizers.base import Rendering
from panoptic_mapper.refinement import refine

DEPTH_M = 2.0
CONFIG = DensityConfig(stride_px=2, scale=0.5, refine_coarseness=3.0, refine_error=0.1)
NEW_SIZE = DEPTH_M / CAMERA.fx  # m, of a new Gaussian: half of two pixels
COARSE = 4 * NEW_SIZE


def make_keyframe(depth: np.ndarray | None = None) -> Keyframe:
    frame = wall_frame(DEPTH_M)
    if depth is not None:
        frame = replace(frame, depth=depth)
    return KeyframeStore(KeyframeConfig(), 0).add(frame, frame.labels, CPU)


def make_map(means: list[tuple[float, float, float]], size: float = COARSE, base: str = "3dgs") -> GaussianMap:
    gaussians = GaussianMap(LearningRates(), CPU, GaussianConfig(base=base))
    columns = gaussian_columns(torch.tensor(means), log_scales=torch.full((len(means), 3), size).log())
    gaussians.append(columns | {"semantics": torch.rand(len(means), 16)}, anchor=0)
    gaussians["class_index"][:] = 7
    return gaussians


def rendering(keyframe: Keyframe, error: float) -> Rendering:
    """Images of a map that has the depth right, and colours that are off by `error` everywhere."""
    return Rendering(keyframe.color / 255 + error, keyframe.depth, torch.ones_like(keyframe.depth))


def refined(gaussians: GaussianMap, keyframe: Keyframe, error: float = 0.2, config: DensityConfig = CONFIG) -> Tensor:
    return refine(gaussians, torch.arange(len(gaussians)), keyframe, rendering(keyframe, error), config)


def test_a_coarse_gaussian_becomes_four_on_the_surface_with_the_colours_of_their_pixels() -> None:
    keyframe, gaussians = make_keyframe(), make_map([(0.02, -0.03, DEPTH_M), (0.3, 0.2, DEPTH_M + 0.03)])
    semantics = gaussians["semantics"].clone()
    gaussians["log_scales"][0] = np.log(2 * NEW_SIZE)  # fine enough
    before = {name: gaussians[name][0].clone() for name in gaussians.widths}
    refined(gaussians, keyframe)
    assert len(gaussians) == 5
    assert all(torch.equal(gaussians[name][0], value) for name, value in before.items())
    means = gaussians["means"][1:]
    np.testing.assert_allclose(means[:, 2], DEPTH_M, atol=1e-5)  # not the 2.03 of the one that they replace
    offsets = means[:, :2] * (DEPTH_M + 0.03) / DEPTH_M - torch.tensor([0.3, 0.2])
    assert sorted(map(tuple, (offsets / (0.7 * COARSE)).round(decimals=3).tolist())) == [
        (-1, -1), (-1, 1), (1, -1), (1, 1)
    ]  # fmt: skip
    u, v = (means[:, :2] / means[:, 2:] * CAMERA.fx + torch.tensor([CAMERA.cx, CAMERA.cy])).round().long().T
    np.testing.assert_allclose(gaussians["colors"][1:] * 255, keyframe.color[v, u], atol=1e-4)
    np.testing.assert_allclose(gaussians["log_scales"][1:].exp(), COARSE / 2, rtol=1e-5)
    assert torch.equal(gaussians["semantics"][1:], semantics[1].expand(4, -1))
    assert gaussians["class_index"].tolist() == [7] * 5


@pytest.mark.parametrize(
    ("mean", "error", "changed"),
    [
        ((0.0, 0.0, DEPTH_M), 0.05, {}),  # the colours are right as they are
        ((0.0, 0.0, DEPTH_M), 0.2, {"refine_coarseness": 5.0}),  # it is fine enough
        ((0.0, 0.0, DEPTH_M - 0.2), 0.2, {}),  # in front of the surface
        ((0.0, 0.0, DEPTH_M + 0.2), 0.2, {}),  # hidden
        ((5.0, 0.0, DEPTH_M), 0.2, {}),  # beside the image
        ((0.0, 0.0, -DEPTH_M), 0.2, {}),  # behind the camera
    ],
)
def test_others_stay_as_they_are(mean: tuple[float, float, float], error: float, changed: dict[str, float]) -> None:
    keyframe, gaussians = make_keyframe(), make_map([mean])
    before = {name: gaussians[name].clone() for name in gaussians.widths}
    refined(gaussians, keyframe, error, replace(CONFIG, **changed))
    assert len(gaussians) == 1
    assert all(torch.equal(gaussians[name], value) for name, value in before.items())


def test_without_depth_nothing_is_refined() -> None:
    gaussians = make_map([(0.0, 0.0, DEPTH_M)])
    refined(gaussians, make_keyframe(np.zeros((30, 40), np.float32)))
    assert len(gaussians) == 1


def test_parts_are_labelled_anew_where_their_labels_differ() -> None:
    """The left half of the wall is a chair, the right half a table."""
    at_the_border, within = (0.0, -0.1, DEPTH_M), (0.6, -0.1, DEPTH_M)
    gaussians = make_map([within, at_the_border])
    assert refined(gaussians, make_keyframe()).tolist() == [1, 3, 5, 7]
    assert len(gaussians) == 8


def test_parts_beyond_an_edge_keep_the_colour_and_stay_where_they_are() -> None:
    depth = np.full((30, 40), DEPTH_M, np.float32)
    u_edge = round(CAMERA.cx) + 1
    depth[:, u_edge:] = 3.0
    keyframe, gaussians = make_keyframe(depth), make_map([(0.0, 0.0, DEPTH_M)])
    refined(gaussians, keyframe)
    right = gaussians["means"][:, 0] > 0
    assert right.sum() == 2
    np.testing.assert_allclose(gaussians["colors"][right], 0.5)
    np.testing.assert_allclose(gaussians["means"][right, 2], DEPTH_M, atol=1e-5)
    assert (gaussians["colors"][~right] != 0.5).all()


def test_a_surfel_stays_as_thin() -> None:
    gaussians = make_map([(0.0, 0.0, DEPTH_M)], base="surfel")
    gaussians["log_scales"][:, 2] = -9.0
    refined(gaussians, make_keyframe())
    np.testing.assert_allclose(gaussians["log_scales"][:, :2].exp(), COARSE / 2, rtol=1e-5)
    np.testing.assert_allclose(gaussians["log_scales"][:, 2], -9.0)


def test_a_mapper_that_comes_near_refines_and_labels_what_it_refines() -> None:
    """From 4 m, then from 1 m: what was made from afar is four times as large as new Gaussians are now."""
    near = np.eye(4)
    near[2, 3] = 3.0
    u, v = np.meshgrid(np.arange(CAMERA.width), np.arange(CAMERA.height))
    smooth = np.stack([127 + 100 * np.sin(u / 4), 127 + 100 * np.sin(v / 4), 0 * u + 90], axis=-1).astype(np.uint8)
    frames = [wall_frame(4.0), replace(wall_frame(1.0, near, stamp_ns=10**9), color=smooth)]
    coarse, fine = (
        make_mapper(f"density.refine_coarseness={c}", "optimizer.steps_per_keyframe=0", segmenter=PassOn(SPACE))
        for c in (0, 2)
    )
    for mapper in (coarse, fine):
        for frame in frames:
            mapper.integrate(frame)
    assert len(fine.map.gaussians) > len(coarse.map.gaussians)
    errors = [
        np.abs(m.render(frames[1].camera, near).color.astype(float) - frames[1].color).mean() for m in (coarse, fine)
    ]
    assert errors[1] < 0.8 * errors[0]
    true = frames[1].labels.semantic
    right = [(m.render(frames[1].camera, near).semantic == true).mean() for m in (coarse, fine)]
    assert right[1] >= right[0]
