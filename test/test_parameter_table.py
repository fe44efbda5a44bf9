"""The table of learnable rows against torch.optim.Adam, and what growth and removal leave untouched."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from panoptic_mapper import parameter_table
from panoptic_mapper.parameter_table import BETA_1, BETA_2, EPSILON, ParameterTable

WIDTHS = {"a": 2, "b": 3}
RATES = {"a": 1e-2, "b": 5e-2}


def random_columns(n: int, seed: int = 0) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {name: torch.randn(n, width, generator=g) for name, width in WIDTHS.items()}


def make_table(n: int = 6) -> ParameterTable:
    table = ParameterTable(WIDTHS, RATES, torch.device("cpu"))
    table.append(**random_columns(n))
    return table


def loss_of(a: Tensor, b: Tensor) -> Tensor:
    return (a.square().sum(1) * torch.arange(1, len(a) + 1)).sum() + (b - 1).pow(4).sum() + (a[:, :1] * b).sum()


def step(table: ParameterTable, ids: list[int]) -> None:
    rows = table.gather(torch.tensor(ids))
    loss_of(rows["a"], rows["b"]).backward()
    table.update(rows)


def state(table: ParameterTable) -> Tensor:
    return torch.cat([table["a"], table["b"]], 1).clone()


def test_steps_are_those_of_adam() -> None:
    table = make_table()
    a, b = (table[name].clone().requires_grad_() for name in WIDTHS)
    adam = torch.optim.Adam(
        [{"params": [a], "lr": RATES["a"]}, {"params": [b], "lr": RATES["b"]}], betas=(BETA_1, BETA_2), eps=EPSILON
    )
    for _ in range(20):
        step(table, [0, 1, 2, 3, 4, 5])
        adam.zero_grad()
        loss_of(a, b).backward()
        adam.step()
    # float32 rounding in another order, amplified over the steps
    torch.testing.assert_close(table["a"], a.detach(), rtol=0, atol=1e-2 * RATES["a"])
    torch.testing.assert_close(table["b"], b.detach(), rtol=0, atol=1e-2 * RATES["b"])


def test_each_element_of_a_column_can_have_its_rate() -> None:
    table = make_table()
    table.set_rates(a=[0.0, 0.5], b=0.25)
    before = state(table)
    step(table, [0, 1, 2, 3, 4, 5])
    # The first step of Adam is the rate.
    expected = torch.tensor([0.0, 0.5, 0.25, 0.25, 0.25]).expand(6, 5)
    torch.testing.assert_close((state(table) - before).abs(), expected)


def test_a_wider_table_goes_on_as_before() -> None:
    table, wide = make_table(), make_table()
    step(table, [0, 1, 2, 3, 4, 5])
    step(wide, [0, 1, 2, 3, 4, 5])
    wide.widen("c", 2, 0.1)
    wide.widen("c", 3, 0.2)
    assert wide["c"].tolist() == [[0, 0, 0]] * 6
    rows = wide.gather(torch.arange(6))
    (loss_of(rows["a"], rows["b"]) + rows["c"].sum()).backward()
    assert rows.gradient("c").tolist() == [[1, 1, 1]] * 6
    assert rows.gradient("a").shape == (6, 2)
    wide.update(rows)
    step(table, [0, 1, 2, 3, 4, 5])
    assert torch.equal(state(wide), state(table))
    assert (wide["c"][:, :2] < 0).all()
    with pytest.raises(ValueError, match="expected the last column, c, got a"):
        wide.widen("a", 4, 0.1)
    with pytest.raises(ValueError, match="expected a width of at least 3, got 2"):
        wide.widen("c", 2, 0.1)


def test_rows_that_were_not_gathered_are_untouched() -> None:
    table = make_table()
    step(table, [0, 1, 2, 3, 4, 5])
    before = state(table)
    step(table, [4, 1])
    after = state(table)
    assert torch.equal(after[[0, 2, 3, 5]], before[[0, 2, 3, 5]])
    assert (after[[4, 1]] != before[[4, 1]]).all()


def test_a_late_row_moves_like_a_new_one() -> None:
    """Bias correction counts a row's own steps."""
    busy, fresh = make_table(), make_table()
    for _ in range(50):
        step(busy, [0, 1])
    for table in (busy, fresh):
        rows = table.gather(torch.tensor([3]))
        rows["a"].sum().backward()
        table.update(rows)
    assert torch.equal(busy["a"][3], fresh["a"][3])
    torch.testing.assert_close(busy["a"][3], random_columns(6)["a"][3] - RATES["a"])


def test_only_the_chosen_rows_move() -> None:
    chosen, plain = make_table(), make_table()
    for ids, which in (([0, 1, 2, 3], [True, False, False, True]), ([3, 2, 5], [True, False, False])):
        rows = chosen.gather(torch.tensor(ids))
        (rows["a"].sin().sum() + rows["b"].square().sum()).backward()
        chosen.update(rows, torch.tensor(which))
        rows = plain.gather(torch.tensor(ids)[torch.tensor(which)])
        (rows["a"].sin().sum() + rows["b"].square().sum()).backward()
        plain.update(rows)
    assert torch.equal(state(chosen), state(plain))
    assert torch.equal(state(chosen)[[1, 2, 4, 5]], torch.cat(list(random_columns(6).values()), 1)[[1, 2, 4, 5]])
    # A row that was left out has no momentum and no steps from it: it moves like a new one.
    for table in (chosen, plain):
        rows = table.gather(torch.tensor([1]))
        rows["a"].sum().backward()
        table.update(rows)
    torch.testing.assert_close(chosen["a"][1], random_columns(6)["a"][1] - RATES["a"])
    assert torch.equal(state(chosen), state(plain))


def test_rows_without_gradient_stay() -> None:
    table = make_table()
    before = state(table)
    table.update(table.gather(torch.tensor([1, 2])))
    rows = table.gather(torch.tensor([1, 2]))
    rows["a"].square().sum().backward()
    table.update(rows)
    assert torch.equal(table["b"], before[:, 2:])
    assert not torch.equal(table["a"], before[:, :2])


def test_gathered_rows_are_a_copy() -> None:
    table = make_table()
    rows = table.gather(torch.tensor([2, 0]))
    assert torch.equal(rows["b"].detach(), table["b"][[2, 0]])
    with torch.no_grad():
        rows["a"].fill_(9)
        rows["b"].fill_(9)
    assert torch.equal(state(table), torch.cat(list(random_columns(6).values()), 1))


def test_growth_keeps_values_and_momentum() -> None:
    grown, plain = make_table(3), make_table(3)
    for table in (grown, plain):
        step(table, [0, 1, 2])
    for seed in range(1, 8):
        grown.append(**random_columns(seed, seed))
        torch.testing.assert_close(grown["a"][-seed:], random_columns(seed, seed)["a"], rtol=0, atol=0)
    assert len(grown) == 3 + sum(range(1, 8))
    for table in (grown, plain):
        step(table, [0, 1, 2])
    assert torch.equal(grown["a"][:3], plain["a"])


@pytest.mark.parametrize("rows_at_a_time", [1, 2, 100])
def test_keep_keeps_rows_with_their_momentum_and_forgets_the_others(rows_at_a_time: int, monkeypatch) -> None:
    monkeypatch.setattr(parameter_table, "ROWS_AT_A_TIME", rows_at_a_time)
    kept, plain = make_table(), make_table()
    for table in (kept, plain):
        step(table, [0, 1, 2, 3, 4, 5])
    kept.keep(torch.tensor([1, 4, 5]))
    assert torch.equal(state(kept), state(plain)[[1, 4, 5]])
    kept.append(**random_columns(2, 5))
    fresh = ParameterTable(WIDTHS, RATES, torch.device("cpu"))
    fresh.append(**random_columns(2, 5))
    for table, ids in ((kept, [3, 4]), (fresh, [0, 1])):  # old momentum must not reach new rows
        rows = table.gather(torch.tensor(ids))
        rows["b"].sum().backward()
        table.update(rows)
    assert torch.equal(kept["b"][3:], fresh["b"])
    for table, ids in ((kept, [0, 1, 2]), (plain, [1, 4, 5])):
        rows = table.gather(torch.tensor(ids))
        rows["b"].sum().backward()
        table.update(rows)
    assert torch.equal(kept["b"][:3], plain["b"][[1, 4, 5]])


def test_set_rows_changes_these_rows_and_columns_only() -> None:
    table = make_table()
    before = state(table)
    new = torch.tensor([[7.0, 8.0], [9.0, 10.0]])
    table.set_rows(torch.tensor([4, 0]), a=new)
    assert torch.equal(table["a"][[4, 0]], new)
    assert torch.equal(table["a"][[1, 2, 3, 5]], before[[1, 2, 3, 5], :2])
    assert torch.equal(table["b"], before[:, 2:])


def test_set_rows_forgets_the_momentum_of_what_it_sets() -> None:
    table, plain = make_table(), make_table()
    for _ in range(300):
        step(table, [0, 1])
        step(plain, [0, 1])
    table.set_rows(torch.tensor([0]), a=torch.tensor([[1.0, 1.0]]))
    for t in (table, plain):
        rows = t.gather(torch.tensor([0, 1]))
        (0 * rows["a"]).sum().backward()
        t.update(rows)
    assert table["a"][0].tolist() == [1, 1]  # without a gradient it stays where it was set
    assert torch.equal(table["a"][1], plain["a"][1])
    assert torch.equal(table["b"], plain["b"])  # the other columns go on as if nothing had happened


def test_steps_after_set_rows_are_not_larger_than_the_learning_rate() -> None:
    table = make_table()

    def step_of_a() -> Tensor:
        before = table["a"][0].clone()
        rows = table.gather(torch.tensor([0]))
        rows["a"].sum().backward()
        table.update(rows)
        return before - table["a"][0]

    for _ in range(1000):
        moved = step_of_a()
    torch.testing.assert_close(moved, torch.full((2,), RATES["a"]), rtol=1e-3, atol=0)
    table.set_rows(torch.tensor([0]), a=torch.tensor([[5.0, -5.0]]))
    for _ in range(30):
        moved = step_of_a()
        assert (moved > 0).all()
        assert (moved <= 1.01 * RATES["a"]).all()


def test_wrong_columns_are_named() -> None:
    table = make_table()
    with pytest.raises(ValueError, match=r"columns \['b'\] are missing or unknown"):
        table.append(a=torch.zeros(1, 2))
    with pytest.raises(ValueError, match=r"columns \['c'\] are missing or unknown"):
        table.append(**random_columns(1), c=torch.zeros(1, 2))
    with pytest.raises(KeyError, match="c"):
        table["c"]
    assert len(table) == 6


def test_memory_is_that_of_the_tensors() -> None:
    table = make_table(8)
    assert table.nbytes == 8 * 4 * (5 + 2 * 5 + 1)
