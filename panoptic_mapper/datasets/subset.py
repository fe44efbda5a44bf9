"""Some frames of a sequence, as a sequence of its own."""

from __future__ import annotations

from collections.abc import Sequence

from panoptic_mapper.datasets.base import Dataset
from panoptic_mapper.frame import Frame


class Subset:
    """The frames `indices` of a dataset, in that order; they are read when asked for."""

    def __init__(self, dataset: Dataset, indices: Sequence[int]) -> None:
        self.name = dataset.name
        self.label_space = dataset.label_space
        self._dataset = dataset
        self._indices = list(indices)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Frame:
        return self._dataset[self._indices[index]]
