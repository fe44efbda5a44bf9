"""The set of semantic classes: names, synonyms, stuff or thing, colours, and the translation of ids to indices.

Inside the library a class is its *index*: 0 is always "unlabeled" (nothing is known, never a training target),
1..C-1 are the classes. Files, topics and services carry the *id* that the label source gave the class.
"""

from __future__ import annotations

import colorsys
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

UNLABELED = 0  # index and id of "nothing is known here"
MAX_CLASS_ID = 65535  # ids travel in 16 bits


@dataclass(frozen=True)
class SemanticClass:
    """One class. `id` is the label source's number (1..65535), `is_thing` says whether it has countable instances.

    Synonyms and colour say nothing about what the class is: classes are equal without them.
    """

    id: int
    name: str
    is_thing: bool
    synonyms: tuple[str, ...] = field(default=(), compare=False)  # further names under which it is found
    color: tuple[int, int, int] | None = field(default=None, compare=False)  # RGB 0..255; None = by its index


@dataclass(frozen=True)
class LabelSpace:
    """An ordered set of classes; `classes[0]` is always "unlabeled"."""

    classes: tuple[SemanticClass, ...]
    name: str = field(default="", compare=False)  # by which other spaces speak of it; empty = none
    # By the name of another space: which of its classes are which of these, where names and synonyms do not say so.
    maps_from: Mapping[str, Mapping[str, str]] = field(default_factory=dict, compare=False, repr=False)
    is_open: bool = field(default=False, compare=False)  # a list of words that may change; ids are then ours to give

    @staticmethod
    def from_classes(classes: Iterable[SemanticClass], is_open: bool = False) -> LabelSpace:
        """Builds a space from the classes without "unlabeled", which is put in front.

        Raises:
            ValueError: an id or a name comes twice, or an id is outside 1..65535.
        """
        classes = tuple(classes)
        for what in ("id", "name"):
            value, count = Counter(getattr(c, what) for c in classes).most_common(1)[0] if classes else (None, 0)
            if count > 1:
                raise ValueError(f"label space: {what} {value!r} is given to {count} classes")
        for c in classes:
            if not 1 <= c.id <= MAX_CLASS_ID:
                raise ValueError(f"label space: class '{c.name}' has id {c.id}, expected 1..{MAX_CLASS_ID}")
        return LabelSpace((SemanticClass(UNLABELED, "unlabeled", False), *classes), is_open=is_open)

    @staticmethod
    def from_json(file: Path) -> LabelSpace:
        """Reads `classes` (id, name, isthing, and synonyms and color where it has them) of a `labels.json`.

        Raises:
            ValueError: naming the file, which cannot be read, lacks a field, or contradicts itself.
        """
        try:
            entries = json.loads(Path(file).read_text())["classes"]
            classes = [_class_from_dict(e | {"id": int(e["id"])}) for e in entries]
        except (OSError, KeyError, TypeError, ValueError) as error:  # ValueError: not JSON, not text, not a number
            raise ValueError(f"{file}: not a readable list of classes ({error!r})") from error
        try:
            return LabelSpace.from_classes(classes)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error

    def __len__(self) -> int:
        return len(self.classes)

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(c.name for c in self.classes)

    @cached_property
    def ids(self) -> np.ndarray:  # [C] int32, public id of each index
        return np.array([c.id for c in self.classes], dtype=np.int32)

    @cached_property
    def is_thing(self) -> np.ndarray:  # [C] bool; "unlabeled" is neither, and counts as stuff
        return np.array([c.is_thing for c in self.classes])

    @cached_property
    def colors(self) -> np.ndarray:  # [C, 3] uint8 RGB; "unlabeled" is black
        own = [c.color or distinct_color(i) for i, c in enumerate(self.classes[1:])]
        return np.array([(0, 0, 0), *own], dtype=np.uint8)

    @cached_property
    def index_of_word(self) -> dict[str, int]:
        """The index of each name and synonym in lower case; a name comes before another class's synonym."""
        words: dict[str, int] = {}
        for index, c in enumerate(self.classes):
            for synonym in c.synonyms:
                words.setdefault(synonym.lower(), index)
        return words | {c.name.lower(): index for index, c in enumerate(self.classes)}

    def index_of(self, name: str) -> int:
        """The index of a class by name or synonym, case-insensitively.

        Raises:
            ValueError: no class has that name; the known names are listed.
        """
        if name.lower() not in self.index_of_word:
            raise ValueError(f"unknown class '{name}'; known: {', '.join(self.names[1:])}")
        return self.index_of_word[name.lower()]

    def indices_from_ids(self, ids: np.ndarray) -> np.ndarray:
        """Translates an array of public ids to indices (int32, same shape); ids of no class become UNLABELED."""
        table = np.zeros(MAX_CLASS_ID + 1, dtype=np.int32)
        table[self.ids] = np.arange(len(self))
        ids = np.asarray(ids)
        return np.where((ids >= 0) & (ids <= MAX_CLASS_ID), table[np.clip(ids, 0, MAX_CLASS_ID)], UNLABELED)

    def extended(self, other: LabelSpace) -> LabelSpace:
        """This space and behind it the classes of `other` that it does not know by any of their words; indices stay.

        A new class keeps its id where that is free, else it gets the first free one.

        Raises:
            ValueError: a class is a thing in one space and stuff in the other.
        """
        ids, added = set(self.ids.tolist()), []
        for c, index in zip(other.classes, self.indices_of(other), strict=True):
            if index == UNLABELED and c.id != UNLABELED:
                added.append(c if c.id not in ids else replace(c, id=next(id for id in count(1) if id not in ids)))
                ids.add(added[-1].id)
            elif self.classes[index].is_thing != c.is_thing:
                is_now = "a thing" if self.classes[index].is_thing else "stuff"
                raise ValueError(f"label space: class '{c.name}' is {is_now} already, and cannot be both")
        return replace(self, classes=(*self.classes, *added), is_open=self.is_open or other.is_open) if added else self

    def indices_of(self, other: LabelSpace) -> np.ndarray:
        """The index [C_other] int32 here of each class of `other`, by name or synonym; UNLABELED where none is."""
        words, result = self.index_of_word, np.zeros(len(other), np.int32)
        for row, c in enumerate(other.classes):
            known = [words[word.lower()] for word in (c.name, *c.synonyms) if word.lower() in words]
            result[row] = known[0] if known else UNLABELED
        return result

    def to_dict(self) -> list[dict[str, Any]]:
        """The classes without "unlabeled", as JSON can hold them; `from_dict` reads it."""
        return [_class_as_dict(c) for c in self.classes[1:]]

    @staticmethod
    def from_dict(entries: Iterable[Mapping[str, Any]]) -> LabelSpace:
        return LabelSpace.from_classes(_class_from_dict(e) for e in entries)


def _class_as_dict(c: SemanticClass) -> dict[str, Any]:
    entry: dict[str, Any] = {"id": c.id, "name": c.name, "isthing": c.is_thing}
    if c.synonyms:
        entry["synonyms"] = list(c.synonyms)
    if c.color is not None:
        entry["color"] = list(c.color)
    return entry


def _class_from_dict(entry: Mapping[str, Any]) -> SemanticClass:
    color = None
    if entry.get("color") is not None:
        r, g, b = map(int, entry["color"])
        color = (r, g, b)
    return SemanticClass(entry["id"], entry["name"], bool(entry["isthing"]), tuple(entry.get("synonyms", ())), color)


def distinct_color(k: int) -> tuple[int, int, int]:
    """The k-th of an endless series of well-separated RGB colours (golden-ratio hues), 0..255."""
    hue = (0.11 + k * 0.618033988749895) % 1.0
    r, g, b = colorsys.hsv_to_rgb(hue, 0.55 + 0.4 * ((k * 7) % 3) / 2, 0.95 - 0.25 * ((k * 5) % 4) / 3)
    return round(255 * r), round(255 * g), round(255 * b)
