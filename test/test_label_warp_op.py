"""The operator of label warping against the plain-torch twin in float64: values, gradients, bad input."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from operator_devices import captured
from scipy.spatial.transform import Rotation
from torch import Tensor

from panoptic_mapper import ops
from panoptic_mapper.label_warping import TOLERANCE, TOLERANCE_M, warped_cross_entropy


def arguments(size: tuple[int, int], target_size: tuple[int, int], K: int, device: str, seed: int = 0) -> list[Tensor]:
    """Two noisy views of about the same wall. Pixels whose fate hangs on rounding have no depth."""
    g = torch.Generator().manual_seed(seed)
    (H, W), (target_H, target_W) = size, target_size
    depth = 2 + 0.02 * torch.randn(H, W, generator=g)
    target_depth = 2 + 0.02 * torch.randn(target_size, generator=g)
    for image in (depth, target_depth):
        image[torch.rand(image.shape, generator=g) < 0.1] = 0
    intrinsics = torch.tensor([1.1 * W, 1.05 * H, 0.49 * W, 0.51 * H])
    target_intrinsics = torch.tensor([1.05 * target_W, 1.1 * target_H, 0.5 * target_W, 0.48 * target_H])
    T = torch.eye(4)
    T[:3, :3] = torch.from_numpy(Rotation.from_euler("xyz", (3, -4, 6), degrees=True).as_matrix())
    T[:3, 3] = torch.tensor([0.11, -0.07, 0.05])
    doubtful = is_doubtful(depth, intrinsics, target_depth, target_intrinsics, T)
    depth[doubtful] = 0
    p = torch.rand(H, W, K, generator=g) - 0.1
    q = torch.rand(*target_size, K, generator=g) * (torch.rand(*target_size, K, generator=g) < 0.5)
    return [t.to(device) for t in (p, depth, intrinsics, q, target_depth, target_intrinsics, T)]


def is_doubtful(
    depth: Tensor, intrinsics: Tensor, target_depth: Tensor, target_intrinsics: Tensor, T: Tensor
) -> Tensor:
    """Pixels [H, W] that land within 1e-3 px of a border between pixels, or 1e-5 m of the tolerance."""
    d, T = depth.double(), T.double()
    (fx, fy, cx, cy), (gx, gy, dx, dy) = intrinsics.double(), target_intrinsics.double()
    v, u = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in depth.shape), indexing="ij")
    X = torch.stack([(u - cx) / fx * d, (v - cy) / fy * d, d], -1) @ T[:3, :3].T + T[:3, 3]
    z = X[..., 2].clamp_min(0.01)
    at = torch.stack([gx * X[..., 0] / z + dx, gy * X[..., 1] / z + dy], -1) + 0.5
    near_border = ((at - at.round()).abs() < 1e-3).any(-1)
    height, width = target_depth.shape
    column = at[..., 0].floor().clamp(0, max(width - 1, 0)).long()
    row = at[..., 1].floor().clamp(0, max(height - 1, 0)).long()
    if target_depth.numel() == 0:
        return near_border
    off = (z - target_depth.double()[row, column]).abs()
    return near_border | ((off - (TOLERANCE * z).clamp_min(TOLERANCE_M)).abs() < 1e-5)


def operator(*arguments: Tensor) -> Tensor:
    return torch.ops.panoptic_mapper.label_warp(*arguments)[0]


def value_and_gradient(
    function: Callable[..., Tensor], args: list[Tensor], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    moved = [a.to(dtype) for a in args]
    p = moved[0].detach().requires_grad_()
    loss = function(p, *moved[1:])
    (gradient,) = torch.autograd.grad(1.7 * loss, p)
    return loss.detach(), gradient


def compare(args: list[Tensor]) -> tuple[Tensor, Tensor]:
    loss, gradient = value_and_gradient(operator, args, torch.float32)
    expected_loss, expected = value_and_gradient(warped_cross_entropy, [a.cpu() for a in args], torch.float64)
    torch.testing.assert_close(loss.double().cpu(), expected_loss, rtol=2e-6, atol=1e-7)
    torch.testing.assert_close(gradient.double().cpu(), expected, rtol=2e-6, atol=1e-9)
    return loss, gradient


@pytest.mark.parametrize(
    ("size", "target_size", "K"),
    [
        ((48, 64), (48, 64), 5),
        ((48, 64), (37, 51), 64),
        ((1, 1), (1, 1), 1),
        ((33, 31), (30, 40), 3),
        ((31, 33), (30, 40), 8),
        ((31, 33), (30, 40), 20),
        ((20, 30), (20, 30), 133),
        ((20, 30), (20, 30), 260),
    ],
)
def test_operator_equals_twin(size: tuple[int, int], target_size: tuple[int, int], K: int, device: str) -> None:
    args = arguments(size, target_size, K, device)
    _, gradient = compare(args)
    if size != (1, 1):
        changed = (gradient != 0).any(-1).float().mean()
        assert 0.2 < changed < 0.99  # there is something to be seen, and not everything is


@pytest.mark.parametrize(
    ("size", "target_size", "K"), [((0, 5), (4, 5), 3), ((4, 5), (0, 5), 3), ((4, 5), (4, 5), 0), ((0, 0), (0, 0), 0)]
)
def test_empty_inputs(size: tuple[int, int], target_size: tuple[int, int], K: int, device: str) -> None:
    loss, gradient = value_and_gradient(operator, arguments(size, target_size, K, device), torch.float32)
    assert loss == 0
    assert gradient.shape == (*size, K)
    assert (gradient == 0).all()


def test_layouts_do_not_matter(device: str) -> None:
    """Every n-th pixel of larger images, tensors off the boundary of 16 bytes, channels far apart."""
    args = arguments((30, 40), (33, 44), 12, device)
    expected = value_and_gradient(operator, args, torch.float32)

    def spread(t: Tensor) -> Tensor:
        large = torch.full((2 * t.shape[0], 3 * t.shape[1], *t.shape[2:]), torch.nan, device=t.device)
        large[1::2, 2::3] = t
        return large[1::2, 2::3]

    def shifted(t: Tensor) -> Tensor:
        return torch.empty(t.numel() + 1, device=t.device)[1:].copy_(t.reshape(-1)).view(t.shape)

    def transposed(t: Tensor) -> Tensor:
        return t.movedim(0, -1).contiguous().movedim(-1, 0)

    for change in (spread, shifted, transposed):
        other = [change(a) if a.dim() > 1 else a for a in args]
        loss, gradient = value_and_gradient(operator, other, torch.float32)
        torch.testing.assert_close(loss, expected[0], rtol=1e-6, atol=0)  # the order of the sum may follow the layout
        torch.testing.assert_close(gradient, expected[1], rtol=1e-6, atol=0)


def test_what_no_depth_is(device: str) -> None:
    args = arguments((30, 40), (30, 40), 4, device)
    for image in (args[1], args[4]):
        image[3:6, 5:9] = torch.nan
        image[7:9, 5:9] = torch.inf
        image[11:13, 5:9] = -torch.inf
        image[15:17, 5:9] = -1
        image[20, 7] = 1e30
    compare(args)


def test_probabilities_that_nothing_is_said_of_do_not_matter(device: str) -> None:
    args = arguments((30, 40), (30, 40), 4, device)
    args[3][..., 2] = 0
    expected = compare(args)
    args[0][..., 2] = torch.nan
    for a, e in zip(value_and_gradient(operator, args, torch.float32), expected, strict=True):
        assert torch.equal(a, e)


def test_gradients_reach_the_probabilities_only(device: str) -> None:
    args = [a.requires_grad_() for a in arguments((12, 16), (12, 16), 4, device)]
    operator(*args).backward()
    assert (args[0].grad != 0).any()
    assert all(a.grad is None for a in args[1:])


def test_runs_are_bit_identical(device: str) -> None:
    args = arguments((120, 160), (120, 160), 16, device)
    first = value_and_gradient(operator, args, torch.float32)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        second = value_and_gradient(operator, args, torch.float32)
    finally:
        torch.set_num_threads(threads)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("index", "bad", "message"),
    [
        (0, lambda t: t.double(), "probabilities: expected Float"),
        (0, lambda t: t[0], "probabilities: expected"),
        (1, lambda t: t[:-1], "depth: expected sizes"),
        (2, lambda t: t[:3], "intrinsics: expected sizes"),
        (3, lambda t: t[..., :2], "targets: expected sizes"),
        (4, lambda t: t.half(), "target_depth: expected Float"),
        (5, lambda t: t[:3], "target_intrinsics: expected sizes"),
        (6, lambda t: t[:3], "T_target_source: expected sizes"),
    ],
)
def test_bad_arguments_raise(index: int, bad: Callable, message: str, device: str) -> None:
    args = arguments((6, 8), (6, 8), 3, device)
    args[index] = bad(args[index])
    with pytest.raises((RuntimeError, ValueError), match=message):
        operator(*args)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("index", range(7))
def test_tensors_on_two_devices_raise(index: int) -> None:
    ops.load()
    args = arguments((6, 8), (6, 8), 3, "cuda")
    args[index] = args[index].cpu()
    with pytest.raises(RuntimeError, match="expected a tensor on"):
        operator(*args)


def test_opcheck(device: str) -> None:
    args = arguments((6, 8), (7, 9), 3, device)
    args[0].requires_grad_()
    torch.library.opcheck(torch.ops.panoptic_mapper.label_warp.default, tuple(args))
    loss, mass = (t.detach() for t in torch.ops.panoptic_mapper.label_warp(*args))
    backward = torch.ops.panoptic_mapper.label_warp_backward.default
    torch.library.opcheck(backward, (loss, mass, args[0].detach(), *args[1:]))


def test_torch_compile_traces_it_whole(device: str) -> None:
    args = arguments((6, 8), (7, 9), 3, device)
    p = args[0].requires_grad_()
    (expected,) = torch.autograd.grad(operator(*args), p)
    (actual,) = torch.autograd.grad(torch.compile(operator, backend="aot_eager", fullgraph=True)(*args), p)
    assert torch.equal(actual, expected)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_graph_and_no_synchronisation() -> None:
    ops.load()
    args = arguments((120, 160), (120, 160), 16, "cuda")

    def run() -> tuple[Tensor, Tensor]:
        loss, mass = torch.ops.panoptic_mapper.label_warp(*args)
        return loss, torch.ops.panoptic_mapper.label_warp_backward(loss, mass, *args)

    graph, outputs = captured(run)
    for a, b in zip(args, arguments((120, 160), (120, 160), 16, "cuda", seed=3), strict=True):
        a.copy_(b)
    graph.replay()
    for a, e in zip(outputs, run(), strict=True):
        assert torch.equal(a, e)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_more_values_than_an_int_counts() -> None:
    """Distributions of over 2^31 values: the last rows of the image have what they have alone."""
    ops.load()
    free, _ = torch.cuda.mem_get_info()
    if free < 30e9:
        pytest.skip("needs 30 GB of free GPU memory")
    H, W, K = 4096, 4100, 130
    args = arguments((H, W), (40, 50), 1, "cuda")
    args[0], args[3] = torch.rand(H, W, K, device="cuda"), torch.rand(40, 50, K, device="cuda")
    args[6] = torch.eye(4, device="cuda")
    assert args[0].numel() > 2**31
    v_loss, mass = torch.ones((), device="cuda"), torch.full((), 1000.0, device="cuda")
    backward = torch.ops.panoptic_mapper.label_warp_backward
    whole = backward(v_loss, mass, *args)[-64:]
    intrinsics = args[2].clone()
    intrinsics[3] -= H - 64
    part = backward(v_loss, mass, args[0][-64:], args[1][-64:], intrinsics, *args[3:])
    assert (whole != 0).any()
    same = ((whole != 0) == (part != 0)).float().mean()  # a row's ray is rounded otherwise
    assert same > 0.99
