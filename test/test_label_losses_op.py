"""The operators of label losses: targets against a loop, losses and gradients against plain torch in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from operator_devices import captured
from torch import Tensor

from panoptic_mapper import ops
from panoptic_mapper.losses import PROBABILITY_FLOOR, floored_log, masked_mean

NUM_STUFF = 3
V_LOSSES = (1.7, -0.6, 0.4)


# Targets


def target_arguments(H: int, W: int, device: str = "cpu", seed: int = 0) -> list[Tensor | int]:
    """Random labels of 4 masks, 5 classes and 6 query rows, with numbers that mean nothing, and -1, among them."""
    g = torch.Generator().manual_seed(seed)
    K, C, R = 4, 5, 6
    tables = [
        torch.tensor([-1, 3, -1, 0, R + 2]),  # query rows of no mask and of the masks
        torch.tensor([2, 4, 1, -1, 3]),  # their classes
        0.5 + torch.rand(K + 1, generator=g),
        torch.tensor([2, -1, 0, 1, -1, 3]),  # places of the query rows in the view
        torch.tensor([-1, 0, 1, -1, -1]),  # stuff columns of the classes
        torch.tensor([-1, 0, 1, 3, 4]),  # semantic columns
    ]
    images = [
        torch.randint(-1, K + 3, (H, W), generator=g, dtype=torch.int32),
        torch.randint(-1, C + 2, (H, W), generator=g, dtype=torch.int32),
        torch.rand(H, W, generator=g) < 0.2,
        torch.rand(H, W, generator=g),
    ]
    return [*(t.to(device) for t in (*images, *tables)), NUM_STUFF + 1]


def targets_by_loop(
    mask_index: Tensor,
    semantic: Tensor,
    disputed: Tensor | None,
    confidence: Tensor,
    mask_rows: Tensor,
    mask_classes: Tensor,
    mask_factors: Tensor,
    positions: Tensor,
    stuff_of_classes: Tensor,
    semantic_of_classes: Tensor,
    first_query: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """A pixel in a mask asks for the mask's query and the mask's class, another for the class it is labelled with."""
    panoptic_targets = torch.full(mask_index.shape, -1)
    semantic_targets, weights = panoptic_targets.clone(), confidence.clone()
    queries = {k: int(row) for k, row in enumerate(mask_rows) if k > 0 and 0 <= row < len(positions)}
    for v, u in torch.cartesian_prod(*map(torch.arange, mask_index.shape)).reshape(-1, 2).tolist():
        k, label = int(mask_index[v, u]), int(semantic[v, u])
        in_mask = k in range(1, len(mask_rows))
        if in_mask:
            label = int(mask_classes[k])
            weights[v, u] *= mask_factors[k]
        if disputed is not None and disputed[v, u]:
            continue
        is_class = label in range(len(semantic_of_classes))
        if is_class:
            semantic_targets[v, u] = semantic_of_classes[label]
        if in_mask and k in queries and positions[queries[k]] >= 0:
            panoptic_targets[v, u] = first_query + positions[queries[k]]
        if not in_mask and is_class:
            panoptic_targets[v, u] = stuff_of_classes[label]
    return panoptic_targets, semantic_targets, weights


def compare_targets(args: list[Tensor | int], expected: tuple[Tensor, ...] | None = None) -> tuple[Tensor, ...]:
    if expected is None:
        expected = targets_by_loop(*(a.cpu() if isinstance(a, Tensor) else a for a in args))
    actual = torch.ops.panoptic_mapper.label_targets(*args)
    for a, e in zip(actual, expected, strict=True):
        assert a.is_contiguous()
        assert a.dtype == e.dtype
        assert torch.equal(a.cpu(), e)
    return expected


@pytest.mark.parametrize("size", [(1, 1), (33, 31), (48, 64)])
def test_targets_are_those_of_the_loop(size: tuple[int, int], device: str) -> None:
    args = target_arguments(*size, device)
    panoptic, semantic, _ = compare_targets(args)
    if size != (1, 1):  # each kind of target is there
        assert set(panoptic.unique().tolist()) == {-1, 0, 1, NUM_STUFF + 1 + 1, NUM_STUFF + 1 + 2}
        assert set(semantic.unique().tolist()) == {-1, 0, 1, 3, 4}
    compare_targets([*args[:2], None, *args[3:]])


def test_targets_by_hand(device: str) -> None:
    """Class 1 is stuff, class 2 a thing; mask 1 is query row 5, which is in the view, mask 2 row 4, which is not."""
    mask_index = [[0, 0, 1, 1, 2, 0, 0]]
    semantic = [[1, 2, 1, 2, 2, 0, 1]]
    disputed = [[False, False, False, True, False, False, True]]
    args = [
        torch.tensor(mask_index, dtype=torch.int32),
        torch.tensor(semantic, dtype=torch.int32),
        torch.tensor(disputed),
        torch.full((1, 7), 0.5),
        torch.tensor([-1, 5, 4]),
        torch.tensor([0, 2, 2]),
        torch.tensor([1.0, 4.0, 2.0]),
        torch.tensor([-1, -1, -1, -1, -1, 7]),
        torch.tensor([-1, 0, -1]),
        torch.tensor([-1, 0, 1]),
    ]
    panoptic, semantic_targets, weights = torch.ops.panoptic_mapper.label_targets(*(a.to(device) for a in args), 2)
    assert panoptic.tolist() == [[0, -1, 2 + 7, -1, -1, -1, -1]]
    assert semantic_targets.tolist() == [[0, 1, 1, -1, 1, -1, -1]]
    assert weights.tolist() == [[0.5, 0.5, 2, 2, 1, 0.5, 0.5]]


def test_layouts_of_labels_do_not_matter(device: str) -> None:
    """Every n-th pixel of larger images, columns side by side, tables with gaps, one confidence for all pixels."""
    args = target_arguments(20, 30, device)
    images, tables, first_query = args[:4], args[4:10], args[10]
    expected = compare_targets(args)

    def spread(t: Tensor) -> Tensor:
        large = torch.ones([n * s for n, s in zip(t.shape, (2, 3), strict=False)], dtype=t.dtype, device=device)
        index = (slice(1, None, 2), slice(2, None, 3))[: t.dim()]
        large[index] = t
        return large[index]

    compare_targets([*map(spread, images), *map(spread, tables), first_query], expected)
    compare_targets([*(t.T.contiguous().T for t in images), *tables, first_query], expected)
    args[3] = torch.tensor(0.3, device=device).expand(20, 30)
    compare_targets(args)


def test_targets_of_nothing(device: str) -> None:
    """No pixels; no masks; no queries; no classes."""
    for size in ((0, 5), (5, 0), (0, 0)):
        args = target_arguments(*size, device)
        assert all(t.shape == size for t in torch.ops.panoptic_mapper.label_targets(*args))
    for emptied in ((4, 5, 6), (7,), (8, 9), (4, 5, 6, 7, 8, 9)):
        args = target_arguments(9, 8, device)
        for i in emptied:
            args[i] = args[i][:0]
        compare_targets(args)


@pytest.mark.parametrize(
    ("index", "bad", "message"),
    [
        (0, lambda t: t.long(), "mask_index: expected Int"),
        (0, lambda t: t[0], "mask_index: expected sizes"),
        (1, lambda t: t.long(), "semantic: expected Int"),
        (1, lambda t: t[1:], "semantic: expected sizes"),
        (2, lambda t: t.int(), "disputed: expected Bool"),
        (2, lambda t: t[:, 1:], "disputed: expected sizes"),
        (3, lambda t: t.double(), "confidence: expected Float"),
        (3, lambda t: t[0], "confidence: expected sizes"),
        (4, lambda t: t.int(), "mask_rows: expected Long"),
        (5, lambda t: t[1:], "mask_classes: expected sizes"),
        (6, lambda t: t[1:], "mask_factors: expected sizes"),
        (7, lambda t: t.int(), "positions: expected Long"),
        (8, lambda t: t[None], "stuff_of_classes: expected sizes"),
        (9, lambda t: t[1:], "semantic_of_classes: expected sizes"),
    ],
)
def test_bad_arguments_of_targets_raise(index: int, bad: Callable, message: str, device: str) -> None:
    args = target_arguments(4, 5, device)
    args[index] = bad(args[index])
    with pytest.raises((RuntimeError, ValueError), match=message):
        torch.ops.panoptic_mapper.label_targets(*args)


# Losses


def arguments(size: tuple[int, int], Q: int, T: int, device: str, seed: int = 0, S: int = NUM_STUFF) -> list:
    """Images [H, W, Q] and [H, W, P + T]; about one pixel in six has no target."""
    g = torch.Generator().manual_seed(seed)
    P = S + 1 + Q
    masks = torch.rand(*size, Q, generator=g)
    logs = floored_log(torch.rand(*size, P + T, generator=g))
    targets = [torch.randint(0, n, size, generator=g) if n else torch.full(size, -1) for n in (P, S + T)]
    for t in targets:
        t[torch.rand(size, generator=g) < 1 / 6] = -1
    weights = torch.rand(size, generator=g) + 0.1
    return [*(t.to(device) for t in (masks, logs, *targets, weights)), S]


def operator(*args: Tensor | int) -> Tensor:
    return torch.ops.panoptic_mapper.label_losses(*args)[0]


def cross_entropy(log_probabilities: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    logs = log_probabilities.gather(-1, targets.clamp_min(0)[..., None])[..., 0]
    return masked_mean(-logs, weights * (targets >= 0))


def dice_loss(masks: Tensor, targets: Tensor, counted: Tensor) -> Tensor:
    """Mean dice cost over the queries that are a target; masks [H, W, Q], targets and counted [H, W]."""
    num_queries = masks.shape[-1]
    if num_queries == 0:
        return masks.sum()
    own = masks.gather(-1, targets.clamp_min(0)[..., None])[..., 0]
    bins = torch.where(targets >= 0, targets, num_queries).reshape(-1)  # one more bin, for the pixels of no query
    sums = masks.new_zeros(num_queries + 1)
    intersection = sums.index_add(0, bins, own.reshape(-1))[:num_queries]
    target_px = sums.index_add(0, bins, torch.ones_like(own).reshape(-1))[:num_queries]
    mask_px = (masks * counted[..., None]).sum((0, 1))
    dice = (2 * intersection + 1) / (target_px + mask_px + 1)
    return masked_mean(1 - dice, (target_px > 0).to(masks.dtype))


def oracle(
    masks: Tensor, logs: Tensor, panoptic_targets: Tensor, semantic_targets: Tensor, weights: Tensor, S: int
) -> Tensor:
    P = S + 1 + masks.shape[-1]
    num_semantic = S + logs.shape[-1] - P
    placed = torch.where((panoptic_targets >= 0) & (panoptic_targets < P), panoptic_targets, -1)
    known = (semantic_targets >= 0) & (semantic_targets < num_semantic)
    columns = torch.where(semantic_targets < S, semantic_targets, P + semantic_targets - S)
    losses = [
        cross_entropy(logs, torch.where(known, columns, -1), weights),
        cross_entropy(logs, placed, weights),
        dice_loss(masks, (placed - S - 1).clamp_min(-1), known),
    ]
    return torch.stack(losses)


def values_and_gradients(
    function: Callable[..., Tensor], args: list, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    moved = [a.to(dtype) if isinstance(a, Tensor) and a.is_floating_point() else a for a in args]
    inputs = [a.detach().requires_grad_() for a in moved[:2]]
    losses = function(*inputs, *moved[2:])
    gradients = torch.autograd.grad(losses, inputs, torch.tensor(V_LOSSES).to(losses))
    return (losses.detach(), *gradients)


def compare(args: list) -> tuple[Tensor, Tensor, Tensor]:
    losses, *gradients = values_and_gradients(operator, args)
    on_cpu = [a.cpu() if isinstance(a, Tensor) else a for a in args]
    expected_losses, *expected = values_and_gradients(oracle, on_cpu, torch.float64)
    torch.testing.assert_close(losses.double().cpu(), expected_losses, rtol=3e-6, atol=1e-7)
    for gradient, e in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient.double().cpu(), e, rtol=3e-6, atol=1e-10)
    return (losses, *gradients)


@pytest.mark.parametrize("size", [(1, 1), (33, 31), (48, 64)])
@pytest.mark.parametrize("Q", [0, 1, 20, 150, 300])
@pytest.mark.parametrize("T", [0, 5])
def test_operator_equals_twin(T: int, Q: int, size: tuple[int, int], device: str) -> None:
    losses, v_masks, v_logs = compare(arguments(size, Q, T, device))
    if size != (1, 1):
        assert (losses[:2] > 0.5).all()
        assert (v_logs != 0).any(-1).float().mean() > 0.8
        assert Q == 0 or (v_masks != 0).any()


def test_images_of_many_blocks(device: str) -> None:
    compare(arguments((120, 160), 20, 5, device))


@pytest.mark.parametrize(("S", "T"), [(0, 0), (0, 4), (7, 0)])
def test_maps_without_stuff_or_without_things(S: int, T: int, device: str) -> None:
    compare(arguments((20, 30), 6, T, device, S=S))


def test_queries_that_no_pixel_asks_for_have_no_loss(device: str) -> None:
    args = arguments((20, 30), 9, 2, device)
    first = NUM_STUFF + 1
    args[2][args[2] >= first + 4] = -1
    _, v_masks, _ = compare(args)
    assert (v_masks[..., 4:] == 0).all()
    assert (v_masks[..., :4] != 0).any()


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (0, 0), (6, 8)])
def test_no_target_no_loss(size: tuple[int, int], device: str) -> None:
    args = arguments(size, 5, 4, device)
    args[2].fill_(-1)
    args[3].fill_(-1)
    losses, v_masks, v_logs = values_and_gradients(operator, args)
    assert losses.tolist() == [0, 0, 0]
    assert v_masks.shape == args[0].shape
    assert v_logs.shape == args[1].shape
    assert (v_masks == 0).all()
    assert (v_logs == 0).all()


@pytest.mark.parametrize("kind", ["panoptic", "semantic"])
def test_targets_outside_of_the_columns_count_as_none(kind: str, device: str) -> None:
    Q, T = 5, 4
    args = arguments((20, 30), Q, T, device)
    index, num_columns = (2, NUM_STUFF + 1 + Q) if kind == "panoptic" else (3, NUM_STUFF + T)
    args[index][::2] = -1
    expected = compare(args)
    args[index][::2] = torch.tensor([num_columns, 2**40, -2], device=device).repeat(10)
    for a, e in zip(compare(args), expected, strict=True):
        assert torch.equal(a, e)


def test_pixels_that_nothing_is_said_of_do_not_matter(device: str) -> None:
    args = arguments((20, 30), 5, 4, device)
    args[2][3:7] = args[3][3:7] = -1
    expected = values_and_gradients(operator, args)
    for i in (0, 1, 4):
        args[i][3:7] = torch.nan
    for a, e in zip(values_and_gradients(operator, args), expected, strict=True):
        assert torch.equal(a, e)


def test_small_weights_are_not_blown_up(device: str) -> None:
    """A mean is over a weight of at least 1: one uncertain pixel does not speak as loudly as an image of them."""
    args = arguments((2, 2), 2, 2, device)
    args[4].fill_(0.1)
    losses, _, _ = compare(args)
    args[4].fill_(0.05)
    torch.testing.assert_close(compare(args)[0][:2], losses[:2] / 2)


def test_cross_entropies_by_hand(device: str) -> None:
    """Two stuff classes, no query, one thing class: its column of the logarithms comes after the panoptic ones."""
    probabilities = torch.tensor([[[0.5, 0.25, 0.2, 0.3], [0.9, 0.1, 0.4, 0.6], [0.3, 0.2, 0.1, 0.1]]], device=device)
    probabilities.requires_grad_()
    weights = torch.tensor([[1.0, 0.5, 1.0]], device=device)
    semantic, panoptic = torch.tensor([[0, 2, -1]], device=device), torch.tensor([[1, -1, 2]], device=device)
    losses = operator(torch.zeros(1, 3, 0, device=device), floored_log(probabilities), panoptic, semantic, weights, 2)
    floor = PROBABILITY_FLOOR
    by_hand = [
        -(math.log(0.5 + floor) + 0.5 * math.log(0.6 + floor)) / 1.5,
        -(math.log(0.25 + floor) + math.log(0.1 + floor)) / 2,
        0,
    ]
    assert losses.tolist() == pytest.approx(by_hand, rel=1e-5)
    losses.sum().backward()
    expected = torch.zeros(3, 4)
    expected[0, 0] = -1 / (0.5 + floor) / 1.5
    expected[1, 3] = -0.5 / (0.6 + floor) / 1.5
    expected[0, 1] = -1 / (0.25 + floor) / 2
    expected[2, 2] = -1 / (0.1 + floor) / 2
    torch.testing.assert_close(probabilities.grad[0].cpu(), expected, rtol=1e-5, atol=0)


def test_cross_entropy_of_an_empty_map_is_finite(device: str) -> None:
    probabilities = torch.zeros(1, 1, 2, device=device, requires_grad=True)
    target, weight = torch.zeros(1, 1, dtype=torch.int64, device=device), torch.ones(1, 1, device=device)
    losses = operator(torch.zeros(1, 1, 0, device=device), floored_log(probabilities), target, target, weight, 1)
    losses.sum().backward()
    assert losses.tolist() == pytest.approx([-math.log(PROBABILITY_FLOOR), -math.log(PROBABILITY_FLOOR), 0])
    assert torch.isfinite(probabilities.grad).all()
    assert probabilities.grad[0, 0, 0] < 0  # and it pulls


def dice_of(masks: Tensor, targets: Tensor, counted: Tensor) -> Tensor:
    """The operator's dice of masks [H, W, Q] alone; targets are queries, there is no stuff."""
    logs = torch.zeros(*masks.shape[:2], masks.shape[-1] + 2, device=masks.device)
    placed = torch.where(targets >= 0, targets + 1, -1)
    semantic = torch.where(counted, 0, -1)
    losses = operator(masks, logs, placed, semantic, torch.ones_like(masks[..., 0]), 0)
    assert losses[:2].tolist() == [0, 0]
    return losses[2]


def test_dice_by_hand(device: str) -> None:
    # Query 0 is the target of pixels 0 and 1, query 2 of pixel 2; nothing is asked of query 1; pixel 4 is unknown.
    rows = [[1.0, 0, 0], [0.5, 0, 0], [0, 0.4, 0.6], [0.25, 0, 0.1], [1.0, 1.0, 1.0]]
    masks = torch.tensor([rows], device=device, requires_grad=True)
    targets = torch.tensor([[0, 0, 2, -1, -1]], device=device)
    counted = torch.tensor([[True, True, True, True, False]], device=device)
    loss = dice_of(masks, targets, counted)
    dice_0 = (2 * 1.5 + 1) / (2 + 1.75 + 1)
    dice_2 = (2 * 0.6 + 1) / (1 + 0.7 + 1)
    assert loss.item() == pytest.approx(((1 - dice_0) + (1 - dice_2)) / 2)
    loss.backward()
    assert (masks.grad[0, 4] == 0).all()
    assert (masks.grad[..., 1] == 0).all()
    of_mask = (2 * 1.5 + 1) / 4.75**2 / 2
    assert masks.grad[0, :, 0].tolist() == pytest.approx([of_mask - 1 / 4.75] * 2 + [of_mask] * 2 + [0])


def test_dice_counts_a_target_whose_class_is_unknown(device: str) -> None:
    """Its pixel is in the intersection and in the number of targets, not in the mask's."""
    masks = torch.tensor([[[0.8], [0.5]]], device=device)
    loss = dice_of(masks, torch.zeros(1, 2, dtype=torch.int64, device=device), torch.tensor([[True, False]]).to(device))
    assert loss.item() == pytest.approx(1 - (2 * 1.3 + 1) / (2 + 0.8 + 1))


def test_dice_of_perfect_and_of_no_masks(device: str) -> None:
    masks = torch.eye(2, device=device).repeat(1, 5, 1)
    targets, everywhere = masks[0].argmax(-1)[None], torch.ones(1, 10, dtype=torch.bool, device=device)
    assert dice_of(masks, targets, everywhere).item() == pytest.approx(0, abs=1e-6)
    masks.requires_grad_()
    loss = dice_of(masks, torch.full_like(targets, -1), everywhere)
    loss.backward()
    assert loss == 0
    assert (masks.grad == 0).all()


def test_layouts_do_not_matter(device: str) -> None:
    """Every n-th pixel of larger images, tensors off the boundary of 16 bytes, channels far apart."""
    args = arguments((20, 30), 6, 4, device)
    expected = values_and_gradients(operator, args)

    def spread(t: Tensor) -> Tensor:
        large = torch.zeros(2 * t.shape[0], 3 * t.shape[1], *t.shape[2:], dtype=t.dtype, device=device)
        large[1::2, 2::3] = t
        return large[1::2, 2::3]

    def shifted(t: Tensor) -> Tensor:
        return torch.empty(t.numel() + 1, dtype=t.dtype, device=device)[1:].copy_(t.reshape(-1)).view(t.shape)

    def transposed(t: Tensor) -> Tensor:
        return t.movedim(0, -1).contiguous().movedim(-1, 0)

    for change in (spread, shifted, transposed):
        other = [change(a) if isinstance(a, Tensor) else a for a in args]
        for a, e in zip(values_and_gradients(operator, other), expected, strict=True):
            assert torch.equal(a, e)


def test_gradients_reach_the_images_only(device: str) -> None:
    args = arguments((12, 16), 4, 3, device)
    for i in (0, 1, 4):
        args[i].requires_grad_()
    losses, sums = torch.ops.panoptic_mapper.label_losses(*args)
    assert not sums.requires_grad
    losses[2].backward()
    assert (args[0].grad != 0).any()
    assert (args[1].grad == 0).all()  # masks alone have a dice
    losses = operator(*args)
    losses[0].backward()
    assert (args[1].grad != 0).any()
    assert args[4].grad is None


def test_runs_are_bit_identical(device: str) -> None:
    args = arguments((120, 160), 16, 5, device)
    threads, results = torch.get_num_threads(), []
    try:
        for num in (1, 2):
            torch.set_num_threads(num)
            results.append(values_and_gradients(operator, args))
    finally:
        torch.set_num_threads(threads)
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("index", "bad", "message"),
    [
        (0, lambda t: t.double(), "masks: expected Float"),
        (0, lambda t: t[0], "masks: expected sizes"),
        (1, lambda t: t.half(), "logs: expected Float"),
        (1, lambda t: t[1:], "logs: expected sizes"),
        (1, lambda t: t[..., :5], "logs: expected at least 7"),
        (2, lambda t: t.int(), "panoptic_targets: expected Long"),
        (2, lambda t: t[:, 1:], "panoptic_targets: expected sizes"),
        (3, lambda t: t.int(), "semantic_targets: expected Long"),
        (3, lambda t: t[0], "semantic_targets: expected sizes"),
        (4, lambda t: t.double(), "weights: expected Float"),
        (4, lambda t: t[1:], "weights: expected sizes"),
        (5, lambda S: -1, "num_stuff: expected at least 0"),
        (5, lambda S: 7, "logs: expected at least 11"),
    ],
)
def test_bad_arguments_raise(index: int, bad: Callable, message: str, device: str) -> None:
    args = arguments((6, 8), 3, 2, device)
    losses, sums = torch.ops.panoptic_mapper.label_losses(*args)
    args[index] = bad(args[index])
    with pytest.raises((RuntimeError, ValueError), match=message):
        operator(*args)
    with pytest.raises((RuntimeError, ValueError), match=message):
        torch.ops.panoptic_mapper.label_losses_backward(losses, sums, *args)


def test_bad_arguments_of_backward_raise(device: str) -> None:
    args = arguments((6, 8), 3, 2, device)
    losses, sums = torch.ops.panoptic_mapper.label_losses(*args)
    with pytest.raises(RuntimeError, match="v_losses: expected sizes"):
        torch.ops.panoptic_mapper.label_losses_backward(losses[:2], sums, *args)
    with pytest.raises(RuntimeError, match="sums: expected sizes"):
        torch.ops.panoptic_mapper.label_losses_backward(losses, sums[:-1], *args)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_tensors_on_two_devices_raise() -> None:
    ops.load()
    for function, made in (
        (torch.ops.panoptic_mapper.label_losses, arguments((6, 8), 3, 2, "cuda")),
        (torch.ops.panoptic_mapper.label_targets, target_arguments(6, 8, "cuda")),
    ):
        for i in range(len(made) - 1):
            args = [a.cpu() if i == j else a for j, a in enumerate(made)]
            with pytest.raises(RuntimeError, match="expected a tensor on"):
                function(*args)


def test_opcheck(device: str) -> None:
    args = arguments((6, 8), 3, 2, device)
    losses, sums = torch.ops.panoptic_mapper.label_losses(*args)
    torch.library.opcheck(torch.ops.panoptic_mapper.label_losses_backward.default, (losses, sums, *args))
    for image in args[:2]:
        image.requires_grad_()
    torch.library.opcheck(torch.ops.panoptic_mapper.label_losses.default, tuple(args))


def test_opcheck_of_targets(device: str) -> None:
    args = target_arguments(6, 8, device)
    targets = torch.ops.panoptic_mapper.label_targets.default
    torch.library.opcheck(targets, tuple(args))
    torch.library.opcheck(targets, (*args[:2], None, *args[3:]), test_utils=("test_schema", "test_faketensor"))


def test_torch_compile_traces_it_whole(device: str) -> None:
    args = arguments((6, 8), 3, 2, device)
    compiled = torch.compile(operator, backend="aot_eager", fullgraph=True)
    for a, e in zip(values_and_gradients(compiled, args), values_and_gradients(operator, args), strict=True):
        assert torch.equal(a, e)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_graph_and_no_synchronisation() -> None:
    ops.load()
    labels, args = target_arguments(120, 160, "cuda"), arguments((120, 160), 16, 5, "cuda")
    v_losses = torch.tensor(V_LOSSES, device="cuda")

    def run() -> tuple[Tensor, ...]:
        targets = torch.ops.panoptic_mapper.label_targets(*labels)
        losses, sums = torch.ops.panoptic_mapper.label_losses(*args[:2], *targets, NUM_STUFF)
        gradients = torch.ops.panoptic_mapper.label_losses_backward(v_losses, sums, *args[:2], *targets, NUM_STUFF)
        return (*targets, losses, *gradients)

    graph, outputs = captured(run)
    others = [*target_arguments(120, 160, "cuda", seed=3)[:4], *arguments((120, 160), 16, 5, "cuda", seed=3)[:2]]
    for a, b in zip([*labels[:4], *args[:2]], others, strict=True):
        a.copy_(b)
    graph.replay()
    for a, e in zip(outputs, run(), strict=True):
        assert torch.equal(a, e)
