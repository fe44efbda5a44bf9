"""Segmenters that are slow, crash, hang, run out of memory or give garbage, for the process of a segmenter."""

from __future__ import annotations

import io
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from panoptic_mapper.frame import Frame, Segmentation
from panoptic_mapper.label_space import LabelSpace, SemanticClass
from panoptic_mapper.vocabulary import label_space_of_words

SPACE = LabelSpace.from_classes([SemanticClass(10, "chair", True), SemanticClass(20, "wall", False)])


class Honest:
    """Passes on the labels that came with the frame."""

    def __init__(self, label_space: LabelSpace = SPACE) -> None:
        self.label_space = label_space

    def segment(self, frame: Frame) -> Segmentation | None:
        return frame.labels


class Waiting(Honest):
    """Answers for each byte that somebody writes to a named pipe."""

    def __init__(self, pipe: Path, label_space: LabelSpace = SPACE) -> None:
        super().__init__(label_space)
        self.pipe = pipe
        self.stream: io.FileIO | None = None

    def segment(self, frame: Frame) -> Segmentation | None:
        if self.stream is None:
            self.stream = io.FileIO(self.pipe)  # waits until it is opened for writing
        self.stream.read(1)
        return super().segment(frame)


class Misbehaving(Honest):
    """Does something bad at the frames of certain stamps: always, or the first time, which a file then remembers."""

    def __init__(self, how: dict[int, str], once: Path | None = None, label_space: LabelSpace = SPACE) -> None:
        super().__init__(label_space)
        self.how, self.once = how, once

    def segment(self, frame: Frame) -> Any:
        if frame.stamp_ns not in self.how or (self.once is not None and self.once.exists()):
            return super().segment(frame)
        if self.once is not None:
            self.once.touch()
        return misbehave(self.how[frame.stamp_ns], frame)


class OnGpu(Misbehaving):
    """Needs the GPU for every frame, as a network does: where its context is broken, it labels nothing any more."""

    def segment(self, frame: Frame) -> Any:
        if torch.ones(3, device="cuda").sum().item() != 3:
            raise RuntimeError("the GPU counts wrongly")
        return super().segment(frame)


class Words:
    """Calls every pixel by its first word."""

    def __init__(self, things: Sequence[str], stuff: Sequence[str]) -> None:
        self.set_vocabulary(things, stuff)

    def set_vocabulary(self, things: Sequence[str], stuff: Sequence[str]) -> None:
        self.label_space = label_space_of_words(things, stuff)

    def segment(self, frame: Frame) -> Segmentation:
        whole = np.ones(frame.depth.shape, np.int32)
        return Segmentation(whole, whole * self.label_space.is_thing[1])


def misbehave(how: str, frame: Frame) -> Any:
    assert frame.labels is not None
    semantic, instance = frame.labels.semantic, frame.labels.instance
    if how == "exit":
        os._exit(3)
    if how == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "hang":
        time.sleep(1e6)
    if how == "exception":
        raise RuntimeError("cuDNN is in a bad mood")
    if how == "memory":
        raise MemoryError("no 3 GB left")
    if how == "cuda memory":
        raise RuntimeError("CUDA out of memory. Tried to allocate 3 GiB")
    if how == "really no cuda memory":
        torch.empty(2**45, dtype=torch.uint8, device="cuda")
    if how == "broken cuda context":  # by an assertion in a kernel
        torch.zeros(3, device="cuda")[torch.tensor([5], device="cuda")].cpu()
    return {
        "size": lambda: Segmentation(semantic[:-1], instance[:-1]),
        "class": lambda: Segmentation(semantic + len(SPACE), instance),
        "type": lambda: Segmentation(semantic.astype(np.float32), instance),
        "nan": lambda: Segmentation(semantic, instance, np.full(semantic.shape, np.nan, np.float32)),
        "score": lambda: Segmentation(semantic, instance, np.full(semantic.shape, 1.5, np.float32)),
        "negative": lambda: _unchecked(semantic - 5, instance),
        "shapes": lambda: _unchecked(semantic, instance[:3]),
        "huge": lambda: _unchecked(np.zeros((500, 500), np.int64), np.zeros((500, 500), np.int64)),
        "nothing of the kind": lambda: {"semantic": semantic},
    }[how]()


def refuse() -> Honest:
    raise ValueError("there are no weights in /nowhere")


def die() -> Honest:
    os._exit(7)


def die_while(switch: Path) -> Honest:
    """Ends the process while a file is there."""
    return die() if switch.exists() else Honest()


def make_slowly(pipe: Path) -> Honest:
    """Is made once somebody opens a named pipe for writing."""
    pipe.open().close()
    return Honest()


def sleep() -> Honest:
    time.sleep(1e6)
    return Honest()


def _unchecked(semantic: np.ndarray, instance: np.ndarray) -> Segmentation:
    labels = object.__new__(Segmentation)
    for name, value in (("semantic", semantic), ("instance", instance), ("confidence", None)):
        object.__setattr__(labels, name, value)
    return labels
