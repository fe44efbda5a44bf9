"""The operator of whitening matrices against S^-1 R^T in float64: values, gradients, bad input."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from operator_devices import captured
from torch import Tensor

from panoptic_mapper import ops
from panoptic_mapper.geometry import rotation_matrices


def arguments(Q: int, device: str, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Quaternions of lengths 0.1..5, logarithms of scales of 1 cm to 3 m, and a gradient of the matrices."""
    g = torch.Generator().manual_seed(seed)
    quats = torch.nn.functional.normalize(torch.randn(Q, 4, generator=g), dim=-1)
    quats *= 0.1 * 50 ** torch.rand(Q, 1, generator=g)
    log_scales = math.log(0.01) + math.log(300) * torch.rand(Q, 3, generator=g)
    return quats.to(device), log_scales.to(device), torch.randn(Q, 3, 3, generator=g).to(device)


def operator(quats: Tensor, log_scales: Tensor) -> Tensor:
    return torch.ops.panoptic_mapper.whitening_matrices(quats, log_scales)


def twin(quats: Tensor, log_scales: Tensor) -> Tensor:
    return (-log_scales).exp()[:, :, None] * rotation_matrices(quats).transpose(1, 2)


def value_and_gradients(
    function: Callable[[Tensor, Tensor], Tensor], quats: Tensor, log_scales: Tensor, v: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    quats, log_scales = quats.detach().requires_grad_(), log_scales.detach().requires_grad_()
    whitenings = function(quats, log_scales)
    return (whitenings.detach(), *torch.autograd.grad(whitenings, (quats, log_scales), v))


@pytest.mark.parametrize("Q", [1, 7, 500])
def test_operator_equals_twin(Q: int, device: str) -> None:
    args = arguments(Q, device)
    actual = value_and_gradients(operator, *args)
    expected = value_and_gradients(twin, *(a.cpu().double() for a in args))
    # Errors are relative to the largest element of a matrix, and to the terms of a gradient's sum, which may cancel.
    A, (quats, _, v) = expected[0], (a.cpu().double() for a in args)
    terms = (A * v).abs().sum((1, 2))
    bounds = (A.abs().amax((1, 2)), terms / quats.norm(dim=-1), terms)
    for a, e, bound in zip(actual, expected, bounds, strict=True):
        error = (a.cpu().double() - e).reshape(Q, -1).abs().amax(1)
        assert (error < 5e-6 * bound).all()


def test_matrices_by_hand(device: str) -> None:
    """No turn, and a quarter about z, which takes the first axis to y; lengths of quaternions do not matter."""
    quats = torch.tensor([[2.0, 0, 0, 0], [3.0, 0, 0, 3.0]], device=device)
    log_scales = torch.tensor([0.5, 0.25, 2.0], device=device).log().expand(2, 3)
    expected = torch.tensor([[[2.0, 0, 0], [0, 4, 0], [0, 0, 0.5]], [[0, 2.0, 0], [-4, 0, 0], [0, 0, 0.5]]])
    torch.testing.assert_close(operator(quats, log_scales).cpu(), expected, rtol=1e-6, atol=1e-6)


def test_covariances_become_the_identity(device: str) -> None:
    quats, log_scales, _ = arguments(50, device)
    A = operator(quats, log_scales).double()
    R, S = rotation_matrices(quats.double()), log_scales.double().exp()
    covariances = R @ (S * S).diag_embed() @ R.transpose(1, 2)
    eye = torch.eye(3, dtype=torch.float64, device=device).expand(50, 3, 3)
    torch.testing.assert_close(A @ covariances @ A.transpose(1, 2), eye, rtol=0, atol=2e-4)  # scales differ 300-fold


def test_the_length_of_a_quaternion_has_no_gradient(device: str) -> None:
    quats, log_scales, v = arguments(50, device)
    _, v_quats, _ = value_and_gradients(operator, quats, log_scales, v)
    along = (v_quats * quats).sum(-1).abs()
    assert (along < 5e-6 * (operator(quats, log_scales) * v).abs().sum((1, 2))).all()


def test_quaternions_of_no_length_stay_finite(device: str) -> None:
    quats, log_scales, v = arguments(2, device)
    for t in value_and_gradients(operator, torch.zeros_like(quats), log_scales, v):
        assert torch.isfinite(t).all()


def test_gradient_of_one_input_alone(device: str) -> None:
    quats, log_scales, v = arguments(5, device)
    _, *expected = value_and_gradients(operator, quats, log_scales, v)
    for i in range(2):
        inputs = [quats.detach().clone(), log_scales.detach().clone()]
        inputs[i].requires_grad_()
        operator(*inputs).backward(v)
        assert torch.equal(inputs[i].grad, expected[i])
        assert inputs[1 - i].grad is None


def test_layouts_do_not_matter(device: str) -> None:
    """Columns of a table, every other row, columns side by side; a gradient of one number for all."""
    quats, log_scales, v = arguments(40, device)
    expected = value_and_gradients(operator, quats, log_scales, v)

    def column_of_table(t: Tensor) -> Tensor:
        table = torch.full((len(t), 12, *t.shape[2:]), torch.nan, device=device)
        table[:, 3 : 3 + t.shape[1]] = t
        return table[:, 3 : 3 + t.shape[1]]

    def spread(t: Tensor) -> Tensor:
        return t.repeat_interleave(2, dim=0)[::2]

    def transposed(t: Tensor) -> Tensor:
        return t.movedim(0, -1).contiguous().movedim(-1, 0)

    for change in (column_of_table, spread, transposed):
        for a, e in zip(value_and_gradients(operator, *map(change, (quats, log_scales, v))), expected, strict=True):
            assert torch.equal(a, e)
    one = torch.ones((), device=device).expand(40, 3, 3)
    for a, e in zip(
        value_and_gradients(operator, quats, log_scales, one),
        value_and_gradients(operator, quats, log_scales, one.contiguous()),
        strict=True,
    ):
        assert torch.equal(a, e)


def test_no_gaussians(device: str) -> None:
    shapes = [tuple(t.shape) for t in value_and_gradients(operator, *arguments(0, device))]
    assert shapes == [(0, 3, 3), (0, 4), (0, 3)]


@pytest.mark.parametrize(
    ("index", "bad", "message"),
    [
        (0, lambda t: t.double(), "quats: expected Float"),
        (0, lambda t: t[:, :3], "quats: expected sizes"),
        (0, lambda t: t[0], "quats: expected sizes"),
        (1, lambda t: t[:-1], "log_scales: expected sizes"),
        (1, lambda t: t.half(), "log_scales: expected Float"),
        (2, lambda t: t[:-1], "v_whitenings: expected sizes"),
        (2, lambda t: t.double(), "v_whitenings: expected Float"),
    ],
)
def test_bad_arguments_raise(index: int, bad: Callable, message: str, device: str) -> None:
    args = list(arguments(4, device))
    args[index] = bad(args[index])
    quats, log_scales, v = args
    with pytest.raises((RuntimeError, ValueError), match=message):
        torch.ops.panoptic_mapper.whitening_matrices_backward(v, quats, log_scales)
    if index < 2:
        with pytest.raises((RuntimeError, ValueError), match=message):
            operator(quats, log_scales)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_tensors_on_two_devices_raise() -> None:
    ops.load()
    quats, log_scales, v = arguments(4, "cuda")
    with pytest.raises(RuntimeError, match="expected a tensor on"):
        operator(quats, log_scales.cpu())
    with pytest.raises(RuntimeError, match="expected a tensor on"):
        torch.ops.panoptic_mapper.whitening_matrices_backward(v.cpu(), quats, log_scales)


def test_opcheck(device: str) -> None:
    quats, log_scales, v = arguments(4, device)
    backward = torch.ops.panoptic_mapper.whitening_matrices_backward.default
    torch.library.opcheck(backward, (v, quats, log_scales))
    forward = torch.ops.panoptic_mapper.whitening_matrices.default
    torch.library.opcheck(forward, (quats.requires_grad_(), log_scales.requires_grad_()))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_graph_and_no_synchronisation() -> None:
    ops.load()
    args = arguments(300, "cuda")

    def run() -> tuple[Tensor, Tensor, Tensor]:
        quats, log_scales, v = args
        gradients = torch.ops.panoptic_mapper.whitening_matrices_backward(v, quats, log_scales)
        return operator(quats, log_scales), *gradients

    graph, outputs = captured(run)
    for a, b in zip(args, arguments(300, "cuda", seed=3), strict=True):
        a.copy_(b)
    graph.replay()
    for a, e in zip(outputs, run(), strict=True):
        assert torch.equal(a, e)
