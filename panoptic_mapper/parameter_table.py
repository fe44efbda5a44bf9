"""Rows of learnable vectors with their Adam state, in packed storage that grows, and the one way to change them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-15  # Adam's constants as 3D Gaussian splatting uses them


@dataclass(frozen=True)
class Rows:
    """Gathered rows: one leaf tensor for the optimiser, seen as named columns."""

    ids: Tensor  # [V] int64 rows of the table
    leaf: Tensor  # [V, D] requires grad
    columns: dict[str, Tensor]  # name -> [V, width] views of `leaf`

    def __getitem__(self, name: str) -> Tensor:
        return self.columns[name]

    def __len__(self) -> int:
        return len(self.ids)

    def gradient(self, name: str) -> Tensor:
        """The gradient [V, width] of a column after backward; 0 where none came."""
        if self.leaf.grad is None:
            return torch.zeros_like(self.columns[name])
        widths = [column.shape[1] for column in self.columns.values()]
        return self.leaf.grad.split(widths, dim=1)[list(self.columns).index(name)]


class ParameterTable:
    """Learnable rows [N, D] whose columns have names. Only rows that took part in a step are touched by it.

    Adam's moments and step counts are kept per row, so a row that is not in view does not drift on old momentum, and
    a new row gets its own bias correction.
    """

    def __init__(self, widths: dict[str, int], learning_rates: dict[str, float], device: torch.device):
        self.widths = dict(widths)
        self.device = device
        self._rates = torch.cat([torch.full((w,), learning_rates[name]) for name, w in widths.items()]).to(device)
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

    def gather(self, ids: Tensor) -> Rows:
        """Copies the rows `ids` [V] (distinct) into a leaf that gradients reach; hand it to `update` after backward."""
        leaf = self._values[ids].requires_grad_()
        columns = leaf.split(list(self.widths.values()), dim=1)
        return Rows(ids, leaf, dict(zip(self.widths, columns, strict=True)))

    def update(self, rows: Rows, which: Tensor | None = None) -> None:
        """One Adam step on gathered rows (Kingma and Ba 2015), or on those of them where `which` [V] is True."""
        grad, values, ids = rows.leaf.grad, rows.leaf.detach(), rows.ids
        if grad is None:
            return
        if which is not None and self.device.type == "cpu":
            grad, values, ids, which = grad[which], values[which], ids[which], None
        if which is None:
            self._steps[ids] += 1
            t = self._steps[ids][:, None]
            moments = self._moments[ids]
            first = moments[:, 0].lerp_(grad, 1 - BETA_1)
            second = moments[:, 1].mul_(BETA_2).addcmul_(grad, grad, value=1 - BETA_2)
            rates = self._rates
        else:  # selecting rows would make the host wait for their number: rows that are not chosen take a step of 0
            chosen = which.to(values.dtype)
            self._steps[ids] += chosen
            t = self._steps[ids][:, None].clamp_min_(1)
            moments = self._moments[ids]
            first = moments[:, 0].lerp_(grad, (1 - BETA_1) * chosen[:, None])
            second = moments[:, 1].lerp_(grad.square(), (1 - BETA_2) * chosen[:, None])
            rates = self._rates * chosen[:, None]
        self._moments[ids] = moments
        step = first / (1 - BETA_1**t) / ((second / (1 - BETA_2**t)).sqrt_() + EPSILON)
        self._values[ids] = values - rates * step

    def set_rates(self, **rates: float | list[float]) -> None:
        """Changes the learning rates of columns: one for all elements of a column, or one for each."""
        for name, rate in rates.items():
            self._rates[self._span(name)] = torch.tensor(rate).to(self._rates)

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
        self._rates = torch.cat([self._rates, self._rates.new_full((added,), rate)])

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

    def keep(self, mask: Tensor) -> Tensor:
        """Drops the rows where `mask` [N] is False; the order of the others stays. Returns which they were."""
        kept = mask.nonzero()[:, 0]
        for tensor in (self._values, self._moments, self._steps):
            tensor[: len(kept)] = tensor[: self._size][kept]
        self._size = len(kept)
        return kept

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
