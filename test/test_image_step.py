"""The step that is differentiated by hand against the same step by autograd."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_room import SPACE, PassOn, make_mapper, wall_frame

from panoptic_mapper.density_control import DensityConfig
from panoptic_mapper.image_step import ImageStep
from panoptic_mapper.losses import LossWeights
from panoptic_mapper.mapper import PanopticMapper
from panoptic_mapper.rasterizers.base import TracingRasterizer
from panoptic_mapper.segmenters.base import Segmenter

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=[pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]),
]


def mapper_of_a_wall(device: str, relaxation: float) -> PanopticMapper:
    """Two views of a wall with a step in it, mapped a little; some Gaussians are too large, some are hidden."""
    segmenter: Segmenter = PassOn(SPACE)
    words = [f"optimizer.color_relaxation={relaxation}", "optimizer.steps_per_keyframe=3", "losses.max_scale_m=0.02"]
    mapper = make_mapper(*words, segmenter=segmenter, device=device)
    mapper.integrate(wall_frame(2.0, stamp_ns=1))
    mapper.integrate(wall_frame(1.5, stamp_ns=2))
    return mapper


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("relaxation", [0.0, 0.4])
def test_equals_the_step_by_autograd(device: str, relaxation: float) -> None:
    by_hand, by_autograd = (mapper_of_a_wall(device, relaxation) for _ in range(2))
    by_autograd.restore_state(*by_hand.export_state())  # on a GPU two maps differ a little
    by_hand.restore_state(*by_hand.export_state())
    by_autograd.optimizer._image_step = None
    before = {name: by_hand.map.gaussians[name].clone() for name in by_hand.map.gaussians.appearance.widths}
    for m in (by_hand, by_autograd):
        m.optimizer.step(m.keyframes.all[0], with_labels=False)
    changed = 0
    for name, old in before.items():
        actual, expected = (m.map.gaussians[name] for m in (by_hand, by_autograd))
        rate = getattr(by_hand.config.learning_rates, name)
        close = (actual - expected).abs() <= 0.02 * rate + 1e-6
        # Adam makes a whole step of the sign of a gradient that is next to nothing.
        assert close.float().mean() > 0.99, name
        changed += int(((actual - old).abs() > 0.1 * rate).any(1).sum())
    assert changed > 500
    for name in ("color", "depth", "opacity", "scale"):
        expected = by_autograd.optimizer.losses[name]
        torch.testing.assert_close(by_hand.optimizer.losses[name], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("with_view", [True, False])
@pytest.mark.parametrize("num_colors", [1, 4, 7])
def test_traced_gradients_are_those_of_autograd(device: str, num_colors: int, with_view: bool) -> None:
    mapper = mapper_of_a_wall(device, 0.0)
    rasterizer, keyframe = mapper.map.rasterizer, mapper.keyframes.all[0]
    assert isinstance(rasterizer, TracingRasterizer)
    ((ids, T),) = mapper.map.candidates([(keyframe.camera, keyframe.T_map_camera, None)])
    rows = mapper.map.gaussians.appearance.gather(ids)
    inputs = [rows["means"], rows["quats"], rows["log_scales"].exp(), rows["opacity_logits"][:, 0].sigmoid()]
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    view, traced = (
        rasterizer.project(*leaves, T, keyframe.camera),
        rasterizer.trace(*inputs, T, keyframe.camera, with_view),
    )
    rows = torch.arange(len(ids), device=ids.device) if traced.view is None else traced.view.visible
    assert with_view <= (traced.view is not None)
    if traced.view is not None:
        assert torch.equal(rows, view.visible)
    g = torch.Generator().manual_seed(0)
    colors = torch.rand(len(ids), num_colors, generator=g).to(device).requires_grad_()
    rendering = view.render(colors[view.visible])
    features = torch.nn.functional.pad(colors.detach(), (0, 1), value=7.0)[rows]
    image, alpha = traced.splat(features)
    torch.testing.assert_close(image[..., :-1], rendering.color.detach())
    torch.testing.assert_close(alpha, rendering.alpha.detach())
    v_image, v_alpha = (torch.randn(x.shape, generator=g).to(device) for x in (image, alpha))
    summed_depth = rendering.depth * rendering.alpha
    loss = (rendering.color * v_image[..., :-1]).sum() + (summed_depth * v_image[..., -1]).sum()
    (loss + (rendering.alpha * v_alpha).sum()).backward()
    actual = traced.backward(v_image, v_alpha)
    assert actual.features.shape == features.shape
    expected = {"means": leaves[0], "quats": leaves[1], "scales": leaves[2], "opacities": leaves[3], "features": colors}
    for name, leaf in expected.items():
        e, a = leaf.grad[rows], getattr(actual, name)
        a = a[:, :-1] if name == "features" else a
        torch.testing.assert_close(a, e, rtol=1e-3, atol=1e-4 * float(e.abs().max()), msg=name)
        assert float(e.abs().max()) > 0


def test_nothing_in_view_changes_nothing() -> None:
    mapper = mapper_of_a_wall("cpu", 0.4)
    keyframe, gaussians = mapper.keyframes.all[0], mapper.map.gaussians
    before = gaussians["means"].clone()
    step = ImageStep(gaussians, mapper.map.rasterizer, LossWeights(), DensityConfig(), 0.4)
    nothing = torch.zeros(0, dtype=torch.int64)
    assert step(keyframe, nothing, torch.eye(4)) is None
    away = np.diag([-1.0, 1.0, -1.0, 1.0])  # looks the other way
    assert step(keyframe, torch.arange(len(gaussians)), torch.tensor(away, dtype=torch.float32)) is not None
    keyframe.T_map_camera = away
    for with_labels in (False, True):
        mapper.optimizer.step(keyframe, with_labels=with_labels)
    assert torch.equal(gaussians["means"], before)


@pytest.mark.parametrize("device", DEVICES)
def test_labels_learn_as_in_a_step_by_autograd(device: str) -> None:
    by_hand, by_autograd = (mapper_of_a_wall(device, 0.4) for _ in range(2))
    by_autograd.restore_state(*by_hand.export_state())
    by_hand.restore_state(*by_hand.export_state())
    by_autograd.optimizer._image_step = None

    def learned(mapper: PanopticMapper) -> dict[str, torch.Tensor]:
        map = mapper.map
        tables = {
            name: map.gaussians[name] for name in ("semantics", "instances", "instance_id", "confidence_permille")
        }
        tables |= {name: map.queries.table[name] for name in ("centers", "embeddings")}
        return tables | {"codes": map.head.codes.detach()}

    before = {name: value.clone() for name, value in learned(by_hand).items()}
    for m in (by_hand, by_autograd):
        m.optimizer.step(m.keyframes.all[0], m.keyframes.all[1:], with_labels=True)
    for name, expected in learned(by_autograd).items():
        actual = learned(by_hand)[name]
        close = (actual - expected).abs() <= 1e-3 * (expected - before[name]).abs().max() + 1e-6
        assert close.float().mean() > 0.99, name
        if name not in ("instance_id", "confidence_permille"):
            assert not torch.equal(actual, before[name]), name
    for name in ("semantic", "panoptic", "dice", "warp", "repulsion", "color", "scale"):
        actual, expected = (m.optimizer.losses[name] for m in (by_hand, by_autograd))
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)


def test_steps_of_densification_are_by_autograd() -> None:
    mapper = mapper_of_a_wall("cpu", 0.0)
    taken: list[bool] = []
    mapper.optimizer._image_step = lambda keyframe, ids, T, with_view: taken.append(with_view)
    mapper.optimizer.on_gradients = lambda *_: None
    mapper.optimizer.step(mapper.keyframes.all[0], with_labels=False)
    assert not taken
    mapper.optimizer.on_gradients = None
    for with_labels in (False, True):
        mapper.optimizer.step(mapper.keyframes.all[0], with_labels=with_labels)
    assert taken == [False, True]
