"""The protocol of recorded sequences."""

from __future__ import annotations

from typing import Protocol

from panoptic_mapper.frame import Frame
from panoptic_mapper.label_space import LabelSpace


class Dataset(Protocol):
    """A recorded sequence of posed RGB-D frames, in the order of time. Frames are read when asked for."""

    name: str
    label_space: LabelSpace | None  # None where the sequence has no labels

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Frame:
        """Frame 0 <= index < len(self), with `labels` where the sequence has them.

        Raises:
            ValueError: naming the file that is missing, broken or contradicts the others.
        """
        ...


def checked_index(index: int, dataset: Dataset) -> int:
    """The index itself; IndexError ends iteration over a dataset."""
    if not 0 <= index < len(dataset):
        raise IndexError(f"frame {index} of {len(dataset)} in {dataset.name}")
    return index
