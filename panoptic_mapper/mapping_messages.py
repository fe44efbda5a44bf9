"""What the node's process and that of the mapper say to each other; arrays go through shared memory.

The node sends `SentFrame` and `Request`, the mapper `FrameDone`, `Answer`, `NewVersion`, and its log records.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from panoptic_mapper.map_service import MapperFailure
from panoptic_mapper.shared_memory import Parcel

NUM_FRAMES = 2  # in the mapper's hand at a time: the one that it integrates, and the next, so that it never waits
NUM_REQUESTS = 10  # at a time; as many as threads of the node may ask for something
# Exceptions that go to the caller as what they are; any other is an internal error.
TOLD = (MapperFailure, TimeoutError, OSError, ValueError)


@dataclass(frozen=True)
class SentFrame:
    """A `Frame` in the memory of its slot, and the rest of a `QueuedFrame`: CLOCK_MONOTONIC is one for both."""

    slot: int
    parcel: Parcel
    arrival_s: float
    ready_s: float
    age_s: float


@dataclass(frozen=True)
class FrameDone:
    """The slot is free again: the frame is in the map, or was dropped for a reason."""

    slot: int
    reason: str = ""
    message: str = ""


@dataclass(frozen=True)
class Request:
    """A call of a method. The answer has the same number, and its arrays lie in the memory of the slot."""

    number: int
    slot: int
    method: str
    args: tuple[Any, ...]


@dataclass(frozen=True)
class Answer:
    """What a method returned, or the exception that it raised: one of `TOLD`, and its text."""

    number: int
    result: Parcel | None = None
    error: tuple[type[Exception], str] | None = None


@dataclass(frozen=True)
class NewVersion:
    """The map may have changed."""

    version: int
