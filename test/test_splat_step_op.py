"""The operators of a step on what a rasteriser draws: against torch and autograd, and the step of `adam_rows_`."""

from __future__ import annotations

import pytest
import torch
from operator_devices import captured
from torch import Tensor

from panoptic_mapper import ops

WIDTHS = {"means": 3, "quats": 4, "log_scales": 3, "opacity_logits": 1, "colors": 3}
BETAS, EPSILON = (0.9, 0.999), 1e-15
MAX_SCALE, V_EXCESS, LEAST, RELAXATION, MIN_WEIGHT = 0.8, 0.3, 0.1, 0.7, 0.25


def table(N: int, device: str) -> list[Tensor]:
    """Values, moments and numbers of steps of rows that took some, and the rates of their elements."""
    g, D = torch.Generator().manual_seed(0), sum(WIDTHS.values())
    moments = torch.rand(N, 2, D, generator=g)
    steps = torch.randint(0, 4, (N,), generator=g).float()
    tensors = [torch.randn(N, D, generator=g), moments * (steps > 0)[:, None, None], steps]
    return [t.to(device) for t in (*tensors, 0.01 + 0.1 * torch.rand(D, generator=g))]


def gradients(V: int, device: str, num_features: int = 8) -> list[Tensor]:
    """Of means, quats, scales, opacities and features, whose weights are between 0 and 0.5."""
    g = torch.Generator().manual_seed(1)
    v = [torch.randn(V, *width, generator=g) for width in ((3,), (4,), (3,), (), (num_features,))]
    v[4][:, 3] = 0.5 * torch.rand(V, generator=g)
    return [t.to(device) for t in v]


def inputs(values: Tensor, ids: Tensor, with_copies: bool = True) -> tuple[Tensor, ...]:
    ops.load()
    return torch.ops.panoptic_mapper.splat_inputs(values, ids, with_copies)


def step(
    rows: list[Tensor], ids: Tensor, v: list[Tensor], relaxation: float = RELAXATION, is_valid: Tensor | None = None
) -> None:
    ops.load()
    values, moments, steps, rates = rows
    torch.ops.panoptic_mapper.splat_step_(
        values,
        moments,
        steps,
        ids,
        is_valid,
        *v,
        rates,
        *BETAS,
        EPSILON,
        MAX_SCALE,
        V_EXCESS,
        LEAST,
        relaxation,
        MIN_WEIGHT,
    )


def twin_inputs(values: Tensor, with_copies: bool) -> list[Tensor]:
    means, quats, log_scales, logits, colors = values.split(list(WIDTHS.values()), dim=1)
    copies = colors if with_copies else colors[:, :0]
    features = torch.cat([colors, torch.ones_like(logits), copies, torch.zeros_like(logits)], dim=1)
    return [means, quats, log_scales.exp(), logits[:, 0].sigmoid(), features]


def twin_step(rows: list[Tensor], ids: Tensor, v: list[Tensor], relaxation: float) -> None:
    """By autograd through `twin_inputs` in float64, and the operator that is tested on its own."""
    values, moments, steps, rates = rows
    leaf = values[ids].double().requires_grad_()
    drawn = twin_inputs(leaf, False)
    excess = (drawn[2] - MAX_SCALE).clamp_min(0).sum()
    features = torch.cat([v[4][:, :4], torch.zeros_like(v[4][:, :1])], dim=1)
    total = sum((x * g.double()).sum() for x, g in zip(drawn, [*v[:4], features], strict=True)) + V_EXCESS * excess
    (gradient,) = torch.autograd.grad(total, leaf)
    columns = [c.contiguous() for c in gradient.float().split(list(WIDTHS.values()), dim=1)]
    weights = v[4][:, 3:4]
    torch.ops.panoptic_mapper.adam_rows_(
        values, moments, steps, ids, weights[:, 0] > LEAST, columns, list(WIDTHS.values()), rates, *BETAS, EPSILON
    )
    if relaxation > 0:
        values[ids, 11:] += relaxation * v[4][:, 4:7] / weights.clamp_min(MIN_WEIGHT)


@pytest.mark.parametrize("with_copies", [True, False])
@pytest.mark.parametrize("V", [0, 1, 777])
def test_inputs_are_those_of_the_oracle(V: int, with_copies: bool, device: str) -> None:
    values = table(1000, device)[0]
    ids = torch.randperm(1000, generator=torch.Generator().manual_seed(2))[:V].to(device)
    for actual, expected in zip(inputs(values, ids, with_copies), twin_inputs(values[ids], with_copies), strict=True):
        assert actual.is_contiguous()
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("relaxation", [RELAXATION, 0.0])
@pytest.mark.parametrize("V", [0, 1, 777])
def test_steps_are_those_of_the_oracle(V: int, relaxation: float, device: str) -> None:
    rows, expected = table(1000, device), table(1000, device)
    ids = torch.randperm(1000, generator=torch.Generator().manual_seed(3))[:V].to(device)
    v = gradients(V, device, num_features=8 if relaxation else 5)
    step(rows, ids, v, relaxation)
    twin_step(expected, ids, v, relaxation)
    for actual, e in zip(rows, expected, strict=True):
        torch.testing.assert_close(actual, e, rtol=1e-4, atol=1e-6)
    if V > 100:
        old = table(1000, device)
        moved = (rows[0] != old[0]).any(1)
        assert 0.5 * V < moved.sum() <= V  # rows that are not seen stay, but for relaxed colours
        assert torch.equal(
            rows[2] - old[2], torch.zeros(1000, device=device).index_put((ids,), (v[4][:, 3] > LEAST).float())
        )


def test_a_step_that_is_not_valid_changes_nothing(device: str) -> None:
    rows, ids, v = table(60, device), torch.arange(0, 60, 2, device=device), gradients(30, device)
    before = [t.clone() for t in rows]
    step(rows, ids, v, is_valid=torch.tensor([False], device=device))
    assert all(torch.equal(a, b) for a, b in zip(rows, before, strict=True))
    step(rows, ids, v, is_valid=torch.tensor([True], device=device))
    step(before, ids, v)
    assert all(torch.equal(a, b) for a, b in zip(rows, before, strict=True))


def test_layouts_do_not_matter(device: str) -> None:
    rows, expected = table(60, device), table(60, device)
    ids, v = torch.arange(0, 60, 2, device=device), gradients(30, device)
    step(expected, ids, v)
    spread = [torch.stack([t, t], dim=-1)[..., 0] for t in v]
    step(rows, torch.stack([ids, ids], dim=1)[:, 0], spread)
    for actual, e in zip(rows, expected, strict=True):
        assert torch.equal(actual, e)


def test_what_does_not_fit_is_named(device: str) -> None:
    rows, ids, v = table(6, device), torch.arange(3, device=device), gradients(3, device)
    with pytest.raises(RuntimeError, match="v_means"):
        step(rows, ids, [v[0][:2], *v[1:]])
    with pytest.raises(ValueError, match="v_features"):
        step(rows, ids, [*v[:4], v[4][:, :5]])
    with pytest.raises(RuntimeError, match="values"):
        inputs(rows[0][:, :13], ids)


@pytest.mark.parametrize("row", [-1, 6, 2**40])
def test_wrong_rows_are_index_errors(row: int, device: str) -> None:
    rows, ids = table(6, device), torch.tensor([2, row, 4], device=device)
    before = [t.clone() for t in rows]
    for call in (lambda: inputs(rows[0], ids), lambda: step(rows, ids, gradients(3, device))):
        if device == "cpu":
            with pytest.raises(IndexError, match="rows"):
                call()
            continue
        result = call()
        torch.cuda.synchronize()
        with pytest.raises(IndexError):
            ops.raise_device_errors()
        if result is not None:
            assert all(t[1].isnan().any() and not t[0].isnan().any() for t in result)
    others = [0, 1, 3, 5]
    for actual, expected in zip(rows[:3], before[:3], strict=True):
        assert torch.equal(actual[others], expected[others])


def test_opcheck(device: str) -> None:
    values, moments, steps, rates = table(5, device)
    ids = torch.tensor([2, 4], device=device)
    torch.library.opcheck(torch.ops.panoptic_mapper.splat_inputs.default, (values, ids, True))
    numbers = (*BETAS, EPSILON, MAX_SCALE, V_EXCESS, LEAST, RELAXATION, MIN_WEIGHT)
    torch.library.opcheck(
        torch.ops.panoptic_mapper.splat_step_.default,
        (values, moments, steps, ids, None, *gradients(2, device), rates, *numbers),
        test_utils=("test_schema", "test_faketensor"),
    )


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_graph_and_no_synchronisation() -> None:
    rows, expected = table(500, "cuda"), table(500, "cuda")
    ids, v = torch.arange(0, 500, 2, device="cuda"), gradients(250, "cuda")

    def run(rows: list[Tensor]) -> tuple[Tensor, ...]:
        step(rows, ids, v)
        return inputs(rows[0], ids)

    graph, outputs = captured(lambda: run(rows), trial=lambda: run([t.clone() for t in expected]))
    for _ in range(3):
        graph.replay()
        for actual, e in zip(outputs, run(expected), strict=True):
            assert torch.equal(actual, e)
    for actual, e in zip(rows, expected, strict=True):
        assert torch.equal(actual, e)
