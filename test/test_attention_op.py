"""The operator of local cross attention against the plain-torch twin in float64: values, every gradient, bad input."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from operator_devices import captured
from torch import Tensor

from panoptic_mapper import ops
from panoptic_mapper.attention import panoptic_distribution, query_scores

E = 32
DIFFERENTIABLE = (0, 3, 4, 5, 6)  # of the arguments: features, keys, centers, whitenings, class_probs
NAMES = ("features", "keys", "centers", "whitenings", "class_probs")
# Storage: relative error of the norm. float32: sums of thousands of terms and the GPU's fast exponential.
STORAGES = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}

Arguments = list  # of the operator


def arguments(
    N: int, V: int, Q: int, C: int, device: str, seed: int = 0, storage: torch.dtype = torch.float32
) -> Arguments:
    """Gaussians in a room of 4 m, far from the origin, queries of half a metre; every second class is a thing."""
    g = torch.Generator().manual_seed(seed)
    corner = torch.tensor([30.0, -20.0, 2.0])
    is_thing = torch.arange(C) % 2 == 1
    values = [
        torch.randn(N, E, generator=g),
        corner + 4 * torch.rand(N, 3, generator=g),
        torch.randperm(N, generator=g)[:V].sort().values,
        torch.randn(Q, E, generator=g),
        corner + 4 * torch.rand(Q, 3, generator=g),
        1.5 * torch.randn(Q, 3, 3, generator=g),
        torch.randn(V, C, generator=g).softmax(1) if C else torch.zeros(V, 0),
        is_thing,
    ]
    moved = [value.to(device) for value in values]
    for i in (0, 6):
        moved[i] = moved[i].to(storage)
    return [*moved, int((~is_thing).sum())]


def operator(*arguments: Tensor | int) -> Tensor:
    return torch.ops.panoptic_mapper.local_cross_attention(*arguments)


def twin(*arguments: Tensor | int) -> Tensor:
    features, means, visible, keys, centers, whitenings, class_probs, is_thing, _ = arguments
    scores = query_scores(features[visible], means[visible], keys, centers, whitenings)
    return panoptic_distribution(class_probs, (~is_thing).nonzero()[:, 0], is_thing.nonzero()[:, 0], scores)


def values_and_gradients(
    function: Callable[..., Tensor], args: Arguments, dtype: torch.dtype | None, upstream: Tensor
) -> list[Tensor]:
    """The distribution and the gradients of all that is differentiable, in float64 on the CPU."""
    moved = [a.to("cpu", dtype) if dtype and isinstance(a, Tensor) and a.is_floating_point() else a for a in args]
    if dtype:
        moved = [a.cpu() if isinstance(a, Tensor) else a for a in moved]
    leaves = [moved[i].detach().requires_grad_() for i in DIFFERENTIABLE]
    for i, leaf in zip(DIFFERENTIABLE, leaves, strict=True):
        moved[i] = leaf
    output = function(*moved)
    gradients = torch.autograd.grad(output, leaves, upstream.to(output))
    return [t.detach().double().cpu() for t in (output, *gradients)]


def assert_close(actual: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for name, a, e in zip(("distribution", *NAMES), actual, expected, strict=True):
        assert a.shape == e.shape, name
        assert torch.isfinite(a).all(), name
        assert (a - e).norm() <= tolerance * e.norm() + 1e-12, f"{name}: {(a - e).norm()} of {e.norm()}"


def compare(args: Arguments, tolerance: float = STORAGES[torch.float32]) -> list[Tensor]:
    D = args[-1] + 1 + len(args[3])
    upstream = torch.randn(len(args[2]), D, generator=torch.Generator().manual_seed(7)).to(args[0].dtype)
    expected = values_and_gradients(twin, args, torch.float64, upstream)
    actual = values_and_gradients(operator, args, None, upstream)
    assert_close(actual, expected, tolerance)
    return actual


@pytest.mark.parametrize(
    ("N", "V", "Q", "C"),
    [
        (500, 300, 20, 6),
        (300, 300, 33, 21),  # all visible
        (1, 1, 1, 2),
        (130, 129, 65, 3),  # one more than a tile of Gaussians, and of queries
        (70, 31, 64, 40),
        (513, 257, 301, 70),
        (200, 100, 5, 1),  # no thing class
        (5000, 3000, 32, 4),
    ],
)
def test_operator_equals_twin(N: int, V: int, Q: int, C: int, device: str) -> None:
    compare(arguments(N, V, Q, C, device))


@pytest.mark.parametrize("storage", STORAGES)
def test_half_precision_is_storage_only(storage: torch.dtype, device: str) -> None:
    """The inputs are rounded before the comparison; what is left is the rounding of the outputs."""
    compare(arguments(400, 300, 70, 9, device, storage=storage), STORAGES[storage])


@pytest.mark.parametrize(
    ("N", "V", "Q", "C"), [(0, 0, 3, 4), (5, 0, 3, 4), (5, 4, 0, 4), (0, 0, 0, 0), (5, 4, 3, 0), (5, 0, 0, 1)]
)
def test_empty_inputs(N: int, V: int, Q: int, C: int, device: str) -> None:
    compare(arguments(N, V, Q, C, device))


def test_layouts_do_not_matter(device: str) -> None:
    args = arguments(200, 90, 13, 5, device)
    upstream = torch.randn(90, args[-1] + 14, generator=torch.Generator().manual_seed(1)).to(device)
    expected = values_and_gradients(operator, args, None, upstream)

    def padded(t: Tensor) -> Tensor:  # rows further apart
        return torch.cat([t, torch.full_like(t, torch.nan)], dim=-1)[..., : t.shape[-1]]

    def shifted(t: Tensor) -> Tensor:  # not on a boundary of 16 bytes
        flat = torch.empty(t.numel() + 1, dtype=t.dtype, device=t.device)[1:]
        return flat.copy_(t.reshape(-1)).view(t.shape)

    def transposed(t: Tensor) -> Tensor:
        return t.T.contiguous().T if t.dim() == 2 else t.transpose(-1, -2).contiguous().transpose(-1, -2)

    for change in (padded, shifted, transposed):
        other = [change(a) if isinstance(a, Tensor) and a.is_floating_point() else a for a in args]
        other[2] = torch.stack([args[2], args[2]], dim=1)[:, 0]
        for a, e in zip(values_and_gradients(operator, other, None, change(upstream)), expected, strict=True):
            assert torch.equal(a, e)


def test_extreme_values_stay_finite(device: str) -> None:
    """Certain similarities, points and queries very far from each other, scores of nothing at all."""
    args = arguments(64, 40, 9, 4, device)
    args[0] *= 100
    args[4][:3] += 1e6
    args[5][3:6] *= 1e4
    args[5][6:] *= 1e15
    upstream = torch.ones(40, args[-1] + 10, device=device)
    upstream[:, -1] = 3
    for name, value in zip(("distribution", *NAMES), values_and_gradients(operator, args, None, upstream), strict=True):
        assert torch.isfinite(value).all(), name
    assert operator(*args).sum(1).cpu().allclose(torch.ones(40))


def test_unseen_gaussians_get_no_gradient(device: str) -> None:
    args = arguments(300, 20, 4, 3, device)
    gradients = values_and_gradients(operator, args, None, torch.randn(20, 7).to(device))
    unseen = torch.ones(300, dtype=torch.bool)
    unseen[args[2].cpu()] = False
    assert (gradients[1][unseen] == 0).all()
    assert (gradients[1][~unseen] != 0).any()


def test_runs_are_bit_identical(device: str) -> None:
    args = arguments(3000, 2000, 40, 6, device)
    upstream = torch.randn(2000, args[-1] + 41, generator=torch.Generator().manual_seed(1)).to(device)
    first = values_and_gradients(operator, args, None, upstream)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        second = values_and_gradients(operator, args, None, upstream)
    finally:
        torch.set_num_threads(threads)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("index", "value"), [(0, -1), (-1, 50), (3, 1 << 62), (3, -(1 << 62)), (5, 3)], ids=lambda v: str(v)
)
@pytest.mark.parametrize("backward", [False, True])
def test_wrong_rows_are_an_error(index: int, value: int, backward: bool, device: str) -> None:
    """Outside of the features, or not ascending. On CUDA the error waits for the kernel, and its rows are NaN."""
    args = arguments(50, 8, 3, 4, device)
    args[2][index] = value
    upstream = torch.ones(8, args[-1] + 4, device=device)

    def run() -> Tensor:
        if backward:
            return torch.ops.panoptic_mapper.local_cross_attention_backward(upstream, *args)[0]
        return operator(*args)

    if device == "cpu":
        with pytest.raises(IndexError, match="visible: expected strictly ascending rows"):
            run()
        return
    output = run()
    torch.cuda.synchronize()
    with pytest.raises(IndexError, match="visible: expected strictly ascending rows"):
        ops.raise_device_errors()
    ops.raise_device_errors()  # told once
    if backward:
        assert torch.isfinite(output).all()
    else:
        assert output[:, args[-1] :].isnan().any(1).sum() in (1, 2)
    compare(arguments(50, 8, 3, 4, device))  # nothing is broken


def test_wrong_number_of_stuff_classes_is_an_error(device: str) -> None:
    args = arguments(50, 8, 3, 4, device)
    args[-1] = 3
    if device == "cpu":
        with pytest.raises(ValueError, match="num_stuff: expected 2"):
            operator(*args)
        return
    operator(*args)
    torch.cuda.synchronize()
    with pytest.raises(ValueError, match="num_stuff"):  # the next call tells
        operator(*args)
    ops.raise_device_errors()  # told once


@pytest.mark.parametrize(
    ("index", "bad", "message"),
    [
        (0, lambda t: t.double(), "features: expected float32"),
        (0, lambda t: t[:, :31], "features: expected sizes"),
        (0, lambda t: t[0], "features, visible, keys, class_probs: expected"),
        (1, lambda t: t[:-1], "means: expected sizes"),
        (2, lambda t: t.int(), "visible: expected Long"),
        (3, lambda t: t.half(), "keys: expected Float"),
        (4, lambda t: t[:-1], "centers: expected sizes"),
        (5, lambda t: t[:, :2], "whitenings: expected sizes"),
        (6, lambda t: t.half(), "class_probs: expected Float"),
        (6, lambda t: t[:-1], "class_probs: expected sizes"),
        (7, lambda t: t.int(), "is_thing: expected Bool"),
        (8, lambda n: -1, "num_stuff: expected 0..4"),
        (8, lambda n: 5, "num_stuff: expected 0..4"),
    ],
)
def test_bad_arguments_raise(index: int, bad: Callable, message: str, device: str) -> None:
    args = arguments(50, 8, 3, 4, device)
    args[index] = bad(args[index])
    with pytest.raises((RuntimeError, ValueError), match=message):
        operator(*args)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("index", range(8))
def test_tensors_on_two_devices_raise(index: int) -> None:
    ops.load()
    args = arguments(50, 8, 3, 4, "cuda")
    args[index] = args[index].cpu()
    with pytest.raises(RuntimeError, match="expected a tensor on"):
        operator(*args)


def test_opcheck(device: str) -> None:
    args = arguments(40, 20, 5, 4, device)
    for i in DIFFERENTIABLE:
        args[i].requires_grad_()
    torch.library.opcheck(torch.ops.panoptic_mapper.local_cross_attention.default, tuple(args))
    detached = [a.detach() if isinstance(a, Tensor) else a for a in args]
    upstream = torch.randn(20, args[-1] + 6).to(device)
    torch.library.opcheck(torch.ops.panoptic_mapper.local_cross_attention_backward.default, (upstream, *detached))


def test_torch_compile_traces_it_whole(device: str) -> None:
    args = arguments(40, 20, 5, 4, device)
    args[0].requires_grad_()

    def loss(*inputs: Tensor | int) -> Tensor:
        return (operator(*inputs) ** 2).sum()

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    (expected,) = torch.autograd.grad(loss(*args), args[0])
    (actual,) = torch.autograd.grad(compiled(*args), args[0])
    assert torch.equal(actual, expected)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_graph_and_no_synchronisation() -> None:
    ops.load()
    args = arguments(3000, 2000, 70, 9, "cuda")
    upstream = torch.randn(2000, args[-1] + 71, generator=torch.Generator().manual_seed(1)).cuda()

    def run() -> tuple[Tensor, ...]:
        backward = torch.ops.panoptic_mapper.local_cross_attention_backward
        return operator(*args), *backward(upstream, *args)

    graph, outputs = captured(run)
    other = arguments(3000, 2000, 70, 9, "cuda", seed=5)
    for a, b in zip(args[:-1], other[:-1], strict=True):
        a.copy_(b)
    graph.replay()
    for a, e in zip(outputs, run(), strict=True):
        assert torch.equal(a, e)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_more_pairs_than_an_int_counts() -> None:
    """V x D of over 2^31 elements in half precision; spot-checked in the last rows, which a wrapped index misses."""
    ops.load()
    V, Q = 2_100_000, 1_030
    free, _ = torch.cuda.mem_get_info()
    if free < 14e9:
        pytest.skip("needs 14 GB of free GPU memory")
    args = arguments(V, V, Q, 4, "cuda", storage=torch.bfloat16)
    output = operator(*args)
    assert output.numel() > 2**31
    last = torch.arange(V - 500, V, device="cuda")
    tail = [*args]
    tail[2], tail[6] = last, args[6][-500:]
    assert torch.equal(output[-500:], operator(*tail))
    upstream = torch.zeros_like(output)
    upstream[-500:].normal_()
    v_features = torch.ops.panoptic_mapper.local_cross_attention_backward(upstream, *args)[0]
    expected = torch.ops.panoptic_mapper.local_cross_attention_backward(upstream[-500:], *tail)[0]
    assert torch.equal(v_features[-500:], expected[-500:])
    assert (v_features[-500:] != 0).any()
