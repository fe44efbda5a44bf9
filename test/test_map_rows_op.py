"""The operators that read and change rows of a table: against indexing, and against torch.optim.Adam in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from operator_devices import captured
from torch import Tensor

from panoptic_mapper import ops

WIDTHS = [3, 1, 4]
BETAS, EPSILON = (0.9, 0.999), 1e-15


def table(N: int, device: str, seed: int = 0) -> list[Tensor]:
    """Values, moments and step counts of rows that never took a step, and the rates of their columns."""
    g = torch.Generator().manual_seed(seed)
    D = sum(WIDTHS)
    values, rates = torch.randn(N, D, generator=g), 0.01 + 0.1 * torch.rand(D, generator=g)
    return [t.to(device) for t in (values, torch.zeros(N, 2, D), torch.zeros(N), rates)]


def gradients_of(V: int, device: str, seed: int = 0) -> list[Tensor | None]:
    g = torch.Generator().manual_seed(100 + seed)
    return [torch.randn(V, width, generator=g).to(device) for width in WIDTHS]


def gather(values: Tensor, ids: Tensor, widths: list[int] = WIDTHS) -> list[Tensor]:
    return torch.ops.panoptic_mapper.gather_columns(values, ids, widths)


def adam(
    rows: list[Tensor],
    ids: Tensor,
    gradients: list[Tensor | None],
    which: Tensor | None = None,
    epsilon: float = EPSILON,
) -> None:
    values, moments, steps, rates = rows
    torch.ops.panoptic_mapper.adam_rows_(values, moments, steps, ids, which, gradients, WIDTHS, rates, *BETAS, epsilon)


class AdamOfRows:
    """torch.optim.Adam in float64 on each column of each row alone; a row's columns share its number of steps.

    The gradients are given, so what Adam adds is its step at a rate of 1 times the rate of the element.
    """

    def __init__(self, rows: list[Tensor], epsilon: float):
        self.start, self.rates = rows[0].cpu().double(), rows[3].cpu().double()
        N = len(self.start)
        self.counts = [0] * N
        self.moved = [[torch.nn.Parameter(torch.zeros(w, dtype=torch.float64)) for w in WIDTHS] for _ in range(N)]
        self.adams = [torch.optim.Adam(columns, lr=1.0, betas=BETAS, eps=epsilon) for columns in self.moved]
        for columns, optimizer in zip(self.moved, self.adams, strict=True):
            for column in columns:
                column.grad = torch.zeros_like(column)
            optimizer.step()  # makes the moments, which are 0, and moves nothing

    def step(self, ids: Tensor, gradients: list[Tensor | None], which: Tensor | None) -> None:
        for i, row in enumerate(ids.tolist()):
            if which is not None and not which[i]:
                continue
            for column, gradient in zip(self.moved[row], gradients, strict=True):
                self.adams[row].state[column]["step"].fill_(self.counts[row])
                column.grad = None if gradient is None else gradient[i].cpu().double()
            self.adams[row].step()
            self.counts[row] += 1

    def values(self) -> Tensor:
        return self.start + self.rates * torch.stack([torch.cat(columns) for columns in self.moved]).detach()

    def moments(self) -> Tensor:
        names = ("exp_avg", "exp_avg_sq")
        of_rows = [
            torch.stack([torch.cat([adam.state[column][name] for column in columns]) for name in names])
            for columns, adam in zip(self.moved, self.adams, strict=True)
        ]
        return torch.stack(of_rows)


def check_index_error(device: str, call: Callable[[], Any]) -> None:
    """On the CPU the call raises; on a GPU what is asked after a synchronisation does, once."""
    if device == "cpu":
        with pytest.raises(IndexError, match="rows"):
            call()
        return
    call()
    torch.cuda.synchronize()
    with pytest.raises(IndexError):
        ops.raise_device_errors()
    ops.raise_device_errors()


@pytest.mark.parametrize("V", [0, 1, 700])
def test_gathered_columns_are_those_of_the_rows(V: int, device: str) -> None:
    values = table(1000, device)[0]
    ids = torch.randperm(1000, generator=torch.Generator().manual_seed(1))[:V].to(device)
    gathered = gather(values, ids)
    assert len(gathered) == len(WIDTHS)
    for column, expected in zip(gathered, values[ids].split(WIDTHS, dim=1), strict=True):
        assert column.is_contiguous()
        assert torch.equal(column, expected)


def test_gathered_columns_are_copies(device: str) -> None:
    values = table(4, device)[0]
    before = values.clone()
    for column in gather(values, torch.arange(4, device=device)):
        column.fill_(7)
    assert torch.equal(values, before)


def test_gathered_from_a_table_without_rows(device: str) -> None:
    gathered = gather(table(0, device)[0], torch.zeros(0, dtype=torch.int64, device=device))
    assert [tuple(column.shape) for column in gathered] == [(0, width) for width in WIDTHS]


@pytest.mark.parametrize("epsilon", [1e-15, 1e-3])
def test_steps_are_those_of_adam(epsilon: float, device: str) -> None:
    """Other rows at each step, given by ids, by a mask of them, or by both; some columns without gradients."""
    N = 24
    rows, g = table(N, device), torch.Generator().manual_seed(2)
    oracle = AdamOfRows(rows, epsilon)
    for step in range(8):
        ids = torch.randperm(N, generator=g)[: 10 + step].to(device)
        which = None if step % 3 == 0 else (torch.rand(len(ids), generator=g) < 0.6).to(device)
        gradients = gradients_of(len(ids), device, seed=step)
        if step in (1, 4):
            gradients[step % 3] = None
        adam(rows, ids, gradients, which, epsilon)
        oracle.step(ids, gradients, which)
    values, moments, steps, _ = (t.cpu() for t in rows)
    assert len(set(oracle.counts)) > 3  # rows have bias corrections of their own
    assert steps.tolist() == oracle.counts
    torch.testing.assert_close(values.double(), oracle.values(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(moments.double(), oracle.moments(), rtol=1e-5, atol=1e-7)


def test_the_first_step_is_as_long_as_the_rate(device: str) -> None:
    """Whatever the gradient's length: both moments are corrected for their start at 0."""
    rows = table(5, device)
    before = rows[0].clone()
    gradients = [1e-4 * g for g in gradients_of(5, device)]
    adam(rows, torch.arange(5, device=device), gradients)
    expected = -rows[3] * torch.cat(gradients, dim=1).sign()
    torch.testing.assert_close(rows[0] - before, expected, rtol=0, atol=1e-6)


def test_other_rows_and_columns_stay_as_they_are(device: str) -> None:
    rows = table(9, device)
    everyone = torch.arange(9, device=device)
    adam(rows, everyone, gradients_of(9, device))  # now there are moments that could move something
    before = [t.clone() for t in rows]
    ids = torch.tensor([6, 2, 8], device=device)
    which = torch.tensor([True, False, True], device=device)
    adam(rows, ids, [None, *gradients_of(3, device)[1:]], which)
    changed = torch.zeros(9, sum(WIDTHS), dtype=torch.bool, device=device)
    changed[[6, 8], WIDTHS[0] :] = True
    assert torch.equal(rows[0] != before[0], changed)
    assert torch.equal(rows[1] != before[1], changed[:, None].expand_as(rows[1]))
    assert (rows[2] - before[2]).tolist() == [0, 0, 0, 0, 0, 0, 1, 0, 1]


def test_a_step_without_gradients_is_only_counted(device: str) -> None:
    rows = table(3, device)
    before = [t.clone() for t in rows]
    adam(rows, torch.tensor([1], device=device), [None] * len(WIDTHS))
    assert torch.equal(rows[0], before[0])
    assert torch.equal(rows[1], before[1])
    assert rows[2].tolist() == [0, 1, 0]


def test_no_ids_change_nothing(device: str) -> None:
    for N in (0, 4):
        rows = table(N, device)
        before = [t.clone() for t in rows]
        adam(rows, torch.zeros(0, dtype=torch.int64, device=device), gradients_of(0, device))
        assert all(torch.equal(a, b) for a, b in zip(rows, before, strict=True))


def test_layouts_do_not_matter(device: str) -> None:
    """Gradients, ids and masks with gaps, transposed, or of one number for all; tables within larger ones."""
    ids = torch.randperm(50, generator=torch.Generator().manual_seed(3))[:30].to(device)
    which = (ids % 3 > 0).to(device)
    gradients = gradients_of(30, device)
    gradients[1] = gradients[1][:1].expand(30, 1)
    expected = table(50, device)
    adam(expected, ids, [g.contiguous() for g in gradients], which)

    def spread(t: Tensor) -> Tensor:
        large = torch.zeros(2 * len(t), *t.shape[1:], dtype=t.dtype, device=t.device)
        large[1::2] = t
        return large[1::2]

    def reserved(t: Tensor) -> Tensor:
        return torch.cat([t, torch.full((7, *t.shape[1:]), 5.0, device=t.device)])

    *tensors, rates = table(50, device)
    tensors = [reserved(t) for t in tensors]
    rows = [t[:50] for t in tensors] + [spread(rates)]
    moved = [spread(gradients[0]), gradients[1], gradients[2].T.contiguous().T]
    adam(rows, spread(ids), moved, spread(which))
    for actual, whole, e in zip(rows, tensors, expected[:3], strict=False):
        assert torch.equal(actual, e)
        assert (whole[50:] == 5).all()
    for a, e in zip(gather(rows[0], spread(ids)), gather(expected[0], ids), strict=True):
        assert torch.equal(a, e)


def test_runs_are_bit_identical(device: str) -> None:
    ids = torch.randperm(3000, generator=torch.Generator().manual_seed(4))[:2500].to(device)

    def run() -> list[Tensor]:
        rows = table(3000, device)
        for seed in range(3):
            adam(rows, ids, gradients_of(2500, device, seed))
        return [*rows, *gather(rows[0], ids)]

    threads, results = torch.get_num_threads(), []
    try:
        for num in (1, 2):
            torch.set_num_threads(num)
            results.append(run())
    finally:
        torch.set_num_threads(threads)
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("row", [-1, 6, 2**40])
def test_rows_outside_of_the_table_are_index_errors(row: int, device: str) -> None:
    rows = table(6, device)
    ids = torch.tensor([2, row, 4], device=device)
    check_index_error(device, lambda: gather(rows[0], ids))
    before = [t.clone() for t in rows]
    check_index_error(device, lambda: adam(rows, ids, gradients_of(3, device)))
    others = [0, 1, 3, 5]
    for actual, expected in zip(rows[:3], before[:3], strict=True):
        assert torch.equal(actual[others], expected[others])
    check_index_error(device, lambda: gather(rows[0][:0], ids))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gathered_rows_outside_of_the_table_are_nan() -> None:
    ops.load()
    values = table(6, "cuda")[0]
    gathered = torch.cat(gather(values, torch.tensor([2, 6, 4], device="cuda")), dim=1)
    assert torch.equal(gathered[[0, 2]], values[[2, 4]])
    assert gathered[1].isnan().all()
    with pytest.raises(IndexError):
        ops.raise_device_errors()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda a: a | {"values": a["values"].double()}, "values: expected Float"),
        (lambda a: a | {"values": a["values"][0]}, "values, ids: expected"),
        (lambda a: a | {"values": a["values"].T.contiguous().T}, "values: expected a contiguous"),
        (lambda a: a | {"ids": a["ids"].int()}, "ids: expected Long"),
        (lambda a: a | {"ids": a["ids"][None]}, "values, ids: expected"),
        (lambda a: a | {"widths": [3, 1, 3]}, "widths: expected a sum of 8"),
        (lambda a: a | {"widths": [3, 1, 5]}, "widths: expected a sum of 8"),
        (lambda a: a | {"widths": [4, 0, 4]}, "widths: expected positive"),
        (lambda a: a | {"widths": [9, -5, 4]}, "widths: expected positive"),
        (lambda a: a | {"widths": [1] * 17}, "widths: expected at most 16"),
    ],
)
def test_bad_arguments_of_gather_raise(bad: Callable[[dict], dict], message: str, device: str) -> None:
    args = bad({"values": table(6, device)[0], "ids": torch.tensor([2, 4], device=device), "widths": WIDTHS})
    with pytest.raises((RuntimeError, ValueError), match=message):
        gather(**args)


@pytest.mark.parametrize(
    ("name", "bad", "message"),
    [
        ("values", lambda t: t.half(), "values: expected Float"),
        ("values", lambda t: t.T.contiguous().T, "values: expected a contiguous"),
        ("moments", lambda t: t[:, 0], "moments: expected sizes"),
        ("moments", lambda t: t[:-1], "moments: expected sizes"),
        ("moments", lambda t: t.transpose(0, 1).contiguous().transpose(0, 1), "moments, steps: expected contiguous"),
        ("steps", lambda t: t.long(), "steps: expected Float"),
        ("steps", lambda t: t[:-1], "steps: expected sizes"),
        ("ids", lambda t: t.int(), "ids: expected Long"),
        ("which", lambda t: t.float(), "which: expected Bool"),
        ("which", lambda t: t[:1], "which: expected sizes"),
        ("gradients", lambda g: g[:2], "gradients: expected one for each of 3"),
        ("gradients", lambda g: [g[0], g[2], None], "gradients: expected sizes"),
        ("gradients", lambda g: [g[0][:1], None, None], "gradients: expected sizes"),
        ("gradients", lambda g: [g[0].double(), None, None], "gradients: expected Float"),
        ("widths", lambda w: [4, 1, 4], "widths: expected a sum of 8"),
        ("rates", lambda t: t[:3], "rates: expected sizes"),
        ("rates", lambda t: t.double(), "rates: expected Float"),
    ],
)
def test_bad_arguments_of_adam_raise(name: str, bad: Callable, message: str, device: str) -> None:
    values, moments, steps, rates = table(6, device)
    args = {
        "values": values,
        "moments": moments,
        "steps": steps,
        "ids": torch.tensor([2, 4], device=device),
        "which": torch.tensor([True, False], device=device),
        "gradients": gradients_of(2, device),
        "widths": WIDTHS,
        "rates": rates,
    }
    args[name] = bad(args[name])
    before = [t.clone() for t in (values, moments, steps)]
    with pytest.raises((RuntimeError, ValueError), match=message):
        torch.ops.panoptic_mapper.adam_rows_(**args, beta_1=BETAS[0], beta_2=BETAS[1], epsilon=EPSILON)
    assert all(torch.equal(a, b) for a, b in zip((values, moments, steps), before, strict=True))


def test_opcheck(device: str) -> None:
    values, moments, steps, rates = table(6, device)
    ids, gradients = torch.tensor([2, 4], device=device), [None, *gradients_of(2, device)[1:]]
    torch.library.opcheck(torch.ops.panoptic_mapper.gather_columns.default, (values, ids, WIDTHS))
    torch.library.opcheck(
        torch.ops.panoptic_mapper.adam_rows_.default,
        (values, moments, steps, ids, None, gradients, WIDTHS, rates, *BETAS, EPSILON),
        test_utils=("test_schema", "test_faketensor"),
    )


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_graph_and_no_synchronisation() -> None:
    ops.load()
    rows, expected = table(500, "cuda"), table(500, "cuda")
    ids, gradients = torch.arange(0, 500, 2, device="cuda"), gradients_of(250, "cuda")

    def run(rows: list[Tensor]) -> list[Tensor]:
        adam(rows, ids, gradients)
        return gather(rows[0], ids)

    graph, outputs = captured(lambda: run(rows), trial=lambda: run([t.clone() for t in expected]))
    for seed in range(3):
        for gradient, other in zip(gradients, gradients_of(250, "cuda", seed), strict=True):
            gradient.copy_(other)
        graph.replay()
        for actual, e in zip(outputs, run(expected), strict=True):
            assert torch.equal(actual, e)
    for actual, e in zip(rows, expected, strict=True):
        assert torch.equal(actual, e)
