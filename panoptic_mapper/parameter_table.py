"""Rows of learnable vectors with their Adam state, in packed storage that grows, and the one way to change them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from panoptic_mapper import ops

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-15  # Adam's constants as 3D Gaussian splatting uses them
ROWS_AT_A_TIME = 2**18  # are moved where some are dropped: a copy of the whole table needs its memory again


@dataclass(frozen=True)
class Rows:
    """Gathered rows: named columns, each a leaf that gradients reach."""

    ids: Tensor  # [V] int64 rows of the table
    columns: dict[str, Tensor]  # name -> [V, width]

    def __getitem__(self, name: str) -> Tensor:
        return self.columns[name]

    def __len__(self) -> int:
        return len(self.ids)

    def gradient(self, name: str) -> Tensor:
        """The gradient [V, width] of a column after backward; 0 where none came."""
        column = self.columns[name]
        return torch.zeros_like(column) if column.grad is None else column.grad


class ParameterTable:
    """Learnable rows [N, D] whose columns have names. Only rows that took part in a step are touched by it.

    Adam's moments and step counts are kept per row, so a row that is not in view does not drift on old momentum, and
    a new row gets its own bias correction.
    """

    def __init__(self, widths: dict[str, int], learning_rates: dict[str, float], device: torch.device):
        self.widths = dict(widths)
        self.device = device
        rates = torch.cat([torch.full((w,), learning_rates[name]) for name, w in widths.items()])
        self.rates = rates.to(device)  # [D] Adam's step sizes
        width = sum(widths.values())
        self._values = torch.zeros(0, width, device=device)
        self._moments = torch.zeros(0, 2, width, device=device)
        self._steps = torch.zeros(0, device=device)
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, name: str) -> Tensor:
        """All rows of a column [N, width], detached: a live view; writing to it changes the table.

        It must not be kept beyond the next `append` or `keep`, which move rows to other places.
        """
        return self._values[: self._size, self._span(name)]

    @property
    def nbytes(self) -> int:
        """Memory that is held, spare capacity included."""
        return sum(t.nbytes for t in (self._values, self._moments, self._steps))

    @property
    def storage(self) -> tuple[Tensor, Tensor, Tensor]:
        """Values [N, D], Adam's moments [N, 2, D], and numbers of steps [N], for operators that change them in place.

        They must not be kept, see `__getitem__`.
        """
        return self._values[: self._size], self._moments[: self._size], self._steps[: self._size]

    def gather(self, ids: Tensor) -> Rows:
        """Copies the rows `ids` [V] (distinct) into leaves for gradients; hand them to `update` after backward."""
        ops.load()
        values = self._values[: self._size]
        columns = torch.ops.panoptic_mapper.gather_columns(values, ids, list(self.widths.values()))
        for column in columns:
            column.requires_grad_()
        return Rows(ids, dict(zip(self.widths, columns, strict=True)))

    def update(self, rows: Rows, which: Tensor | None = None) -> None:
        """One Adam step on gathered rows (Kingma and Ba 2015), or on those of them where `which` [V] is True.

        Columns that no gradient reached stay as they are. The equations are in cuda/map_rows.h.
        """
        gradients = {name: column.grad for name, column in rows.columns.items() if column.grad is not None}
        if gradients:
            self.step(rows.ids, gradients, which)

    def step(self, ids: Tensor, gradients: dict[str, Tensor], which: Tensor | None = None) -> None:
        """The same with gradients [V, width], by column, of the rows `ids` [V]."""
        torch.ops.panoptic_mapper.adam_rows_(
            *self.storage,
            ids,
            which,
            [gradients.get(name) for name in self.widths],
            list(self.widths.values()),
            self.rates,
            BETA_1,
            BETA_2,
            EPSILON,
        )

    def set_rates(self, **rates: float | list[float]) -> None:
        """Changes the learning rates of columns: one for all elements of a column, or one for each."""
        for name, rate in rates.items():
            self.rates[self._span(name)] = torch.tensor(rate).to(self.rates)

    def widen(self, name: str, width: int, rate: float) -> None:
        """Makes the last column `name` wider, or adds it; what is new is 0 in all rows, and has no moments."""
        if name in self.widths and name != list(self.widths)[-1]:
            raise ValueError(f"widen: expected the last column, {list(self.widths)[-1]}, got {name}")
        added = width - self.widths.get(name, 0)
        if added < 0:
            raise ValueError(f"widen: expected a width of at least {self.widths[name]}, got {width}")
        self.widths[name] = width
        self._values = torch.nn.functional.pad(self._values, (0, added))
        self._moments = torch.nn.functional.pad(self._moments, (0, added))
        self.rates = torch.cat([self.rates, self.rates.new_full((added,), rate)])

    def append(self, **columns: Tensor) -> None:
        """Adds rows; every column must be given, [n, width] each."""
        missing = set(self.widths) ^ set(columns)
        if missing:
            raise ValueError(f"append: columns {sorted(missing)} are missing or unknown")
        new = torch.cat([columns[name].to(self._values, non_blocking=True) for name in self.widths], dim=1)
        end = self._size + len(new)
        if end > len(self._values):
            self._reserve(max(end, 2 * len(self._values)))
        self._values[self._size : end] = new
        self._moments[self._size : end] = 0
        self._steps[self._size : end] = 0
        self._size = end

    def keep(self, kept: Tensor) -> None:
        """Keeps only the rows `kept` [n] int64, ascending."""
        for tensor in (self._values, self._moments, self._steps):
            for start in range(0, len(kept), ROWS_AT_A_TIME):  # a row moves down: none is overwritten before it is read
                part = kept[start : start + ROWS_AT_A_TIME]
                tensor[start : start + len(part)] = tensor[part]
        self._size = len(kept)

    def set_rows(self, ids: Tensor, **columns: Tensor) -> None:
        """Overwrites columns of the rows `ids` [n] and forgets the direction in which these were moving.

        The second moment, the scale of their gradients, stays: without it the next step would be up to three times the
        learning rate, because a row's bias correction knows only how often the row was updated.
        """
        for name, values in columns.items():
            span = self._span(name)
            self._values[ids, span] = values.to(self._values, non_blocking=True)
            self._moments[:, 0, span].index_fill_(0, ids, 0)

    def _span(self, name: str) -> slice:
        """Where a column lies in a row."""
        start = 0
        for other, width in self.widths.items():
            if other == name:
                return slice(start, start + width)
            start += width
        raise KeyError(name)

    def _reserve(self, capacity: int) -> None:
        for name in ("_values", "_moments", "_steps"):
            old = getattr(self, name)
            new = old.new_zeros(capacity, *old.shape[1:])
            new[: self._size] = old[: self._size]
            setattr(self, name, new)
