"""ScanNet's labels: raw categories and the label sets made of them, and the zips of 2D label images, read in place."""

from __future__ import annotations

import csv
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from panoptic_mapper.datasets.image_files import decode_ids
from panoptic_mapper.label_space import UNLABELED, LabelSpace, SemanticClass

LABEL_MAP_FILE = "scannetv2-labels.combined.tsv"
MAX_RAW_ID = 65535  # label images have 16 bits
# fmt: off
NYU40_NAMES = (  # ids 1..40 in this order
    "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf", "picture", "counter",
    "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror", "floor mat", "clothes", "ceiling", "books",
    "refrigerator", "television", "paper", "towel", "shower curtain", "box", "whiteboard", "person", "night stand",
    "toilet", "sink", "lamp", "bathtub", "bag", "otherstructure", "otherfurniture", "otherprop",
)
# fmt: on
SCANNET20_IDS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 16, 24, 28, 33, 34, 36, 39)  # the benchmark's, of the 40
STUFF_NAMES = ("wall", "floor", "ceiling")
LABEL_SETS: Mapping[str, tuple[int, ...]] = {"scannet20": SCANNET20_IDS, "nyu40": tuple(range(1, 41))}


@dataclass(frozen=True)
class RawCategory:
    """A category as annotators named it."""

    id: int  # as in the 2D label images
    name: str  # as in the aggregation files
    nyu40_id: int  # 0 = none


@dataclass(frozen=True)
class ScanNetClasses:
    """A label set, and which raw categories are which of its classes."""

    label_space: LabelSpace
    index_of_raw: np.ndarray  # [MAX_RAW_ID + 1] int32 class index of each raw id; UNLABELED where it is none of them

    @staticmethod
    def of_set(name: str, categories: Sequence[RawCategory]) -> ScanNetClasses:
        """The label set "scannet20" or "nyu40"; ids are those of NYU40."""
        if name not in LABEL_SETS:
            raise ValueError(f"label set: expected one of {', '.join(LABEL_SETS)}, got {name!r}")
        ids = LABEL_SETS[name]
        names = [NYU40_NAMES[i - 1] for i in ids]
        classes = [SemanticClass(i, n, n not in STUFF_NAMES) for i, n in zip(ids, names, strict=True)]
        raw_ids = {i: [c.id for c in categories if c.nyu40_id == i] for i in ids}
        return ScanNetClasses.from_raw_ids(classes, raw_ids)

    @staticmethod
    def from_raw_ids(classes: Iterable[SemanticClass], raw_ids: Mapping[int, Iterable[int]]) -> ScanNetClasses:
        """A label set of its own; `raw_ids` are the raw categories of each class id."""
        space = LabelSpace.from_classes(classes)
        table = np.full(MAX_RAW_ID + 1, UNLABELED, np.int32)
        for index, c in enumerate(space.classes[1:], start=1):
            table[list(raw_ids.get(c.id, ()))] = index
        return ScanNetClasses(space, table)


def find_label_map(folder: Path) -> Path | None:
    """The label map beside the scene or in one of the three folders above it, where ScanNet's script puts it."""
    resolved = folder.resolve()
    candidates = [p / LABEL_MAP_FILE for p in (resolved, *list(resolved.parents)[:3])]
    return next((file for file in candidates if file.is_file()), None)


def read_label_map(file: Path) -> list[RawCategory]:
    """The rows of `scannetv2-labels.combined.tsv`: columns id, raw_category, nyu40id, found by their headings.

    Raises:
        ValueError: naming the file and the line.
    """
    try:
        with open(file, newline="", encoding="utf-8") as text:
            rows = list(csv.DictReader(text, delimiter="\t", quoting=csv.QUOTE_NONE))
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: cannot be read ({error})") from error
    categories = []
    for line, row in enumerate(rows, start=2):
        try:
            category = RawCategory(int(row["id"]), row["raw_category"], int(row["nyu40id"] or 0))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{file}: line {line}: expected columns id, raw_category, nyu40id ({error!r})") from error
        if not 0 < category.id <= MAX_RAW_ID:
            raise ValueError(f"{file}: line {line}: expected an id in 1..{MAX_RAW_ID}, got {category.id}")
        categories.append(category)
    if not categories:
        raise ValueError(f"{file}: no categories; expected lines of id, raw_category, ..., nyu40id")
    return categories


class LabelArchive:
    """A zip of label images named by frame number, read without unpacking.

    Raises:
        ValueError: naming the zip that is missing, damaged, or holds no such images.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path}: cannot be read as a zip ({error})") from error
        members = ((Path(name).stem, name) for name in self._zip.namelist() if name.endswith(".png"))
        self._members = {int(stem): name for stem, name in members if stem.isdecimal()}
        if not self._members:
            raise ValueError(f"{path}: no images named by number (label-filt/0.png, ...)")

    def read(self, number: int) -> np.ndarray:  # [H, W] uint8 or uint16
        """The ids of a frame; ValueError names the zip and the image."""
        if number not in self._members:
            raise ValueError(f"{self.path}: no image {number}.png, but the recording has that frame")
        where = f"{self.path}: {self._members[number]}"
        try:
            data = self._zip.read(self._members[number])
        except (OSError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
            raise ValueError(f"{where}: damaged ({error})") from error
        return decode_ids(data, where)
