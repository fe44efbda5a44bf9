"""The indoor classes of the `tiny` segmenter, and how the classes of its two networks translate to them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from panoptic_mapper.label_space import LabelSpace, SemanticClass
from panoptic_mapper.segmenters.tiny_models import COCO_CLASSES, MOSAIC_CLASSES


@dataclass(frozen=True)
class TinyClass:
    """One class. A detector's box claims the pixels of `claims` inside it, or all of it where that is empty."""

    name: str
    is_thing: bool
    mosaic: tuple[str, ...] = ()  # MOSAIC classes that mean this one
    coco: tuple[str, ...] = ()  # COCO classes that mean this one
    claims: tuple[str, ...] = ()  # further MOSAIC classes that are this one when the detector says so
    max_extent_m: float = 5.0  # diagonal that fragments may be merged up to


_SEATS = ("chair", "armchair", "sofa", "bed")
_PANELS = ("painting", "mirror", "windowpane", "cabinet", "other")
CLASSES = (
    TinyClass("wall", False, ("wall", "building", "house")),
    TinyClass("floor", False, ("floor", "road", "sidewalk", "earth")),
    TinyClass("ceiling", False, ("ceiling",)),
    TinyClass("door", True, ("door",), max_extent_m=2.6),
    TinyClass("window", True, ("windowpane",)),
    TinyClass("cabinet", True, ("cabinet",)),
    TinyClass("bed", True, ("bed",), ("bed",), _SEATS, 3.2),
    TinyClass("table", True, ("table",), ("dining table",), max_extent_m=3.5),
    TinyClass("chair", True, ("chair", "armchair"), ("chair",), _SEATS, 1.5),
    TinyClass("sofa", True, ("sofa",), ("couch",), _SEATS, 4.0),
    TinyClass("shelf", True, ("shelf",)),
    TinyClass("curtain", True, ("curtain",)),
    TinyClass("picture", True, ("painting",), max_extent_m=2.0),
    TinyClass("mirror", True, ("mirror",), max_extent_m=2.5),
    TinyClass("rug", True, ("rug",)),
    TinyClass("plant", True, ("plant", "tree"), ("potted plant",), max_extent_m=2.5),
    TinyClass("person", True, ("person",), ("person",), max_extent_m=2.2),
    TinyClass("tv", True, (), ("tv",), _PANELS, 1.8),
    TinyClass("refrigerator", True, (), ("refrigerator",), ("cabinet", "door", "wall", "other"), 2.4),
    TinyClass("microwave", True, (), ("microwave",)),
    TinyClass("oven", True, (), ("oven",)),
    TinyClass("toaster", True, (), ("toaster",)),
    TinyClass("sink", True, (), ("sink",)),
    TinyClass("toilet", True, (), ("toilet",)),
    TinyClass("bench", True, (), ("bench",), _SEATS, 2.5),
    TinyClass("bottle", True, (), ("bottle",)),
    TinyClass("cup", True, (), ("cup", "wine glass")),
    TinyClass("bowl", True, (), ("bowl",)),
    TinyClass("vase", True, (), ("vase",)),
    TinyClass("book", True, (), ("book",)),
    TinyClass("laptop", True, (), ("laptop",)),
    TinyClass("keyboard", True, (), ("keyboard",)),
    TinyClass("mouse", True, (), ("mouse",)),
    TinyClass("remote", True, (), ("remote",)),
    TinyClass("phone", True, (), ("cell phone",)),
    TinyClass("clock", True, (), ("clock",)),
    TinyClass("backpack", True, (), ("backpack",)),
    TinyClass("handbag", True, (), ("handbag",)),
    TinyClass("suitcase", True, (), ("suitcase",)),
    TinyClass("umbrella", True, (), ("umbrella",)),
    TinyClass("ball", True, (), ("sports ball",)),
    TinyClass("teddy bear", True, (), ("teddy bear",)),
    TinyClass("bicycle", True, (), ("bicycle",)),
    TinyClass("cat", True, (), ("cat",)),
    TinyClass("dog", True, (), ("dog",)),
)

TINY_LABEL_SPACE = LabelSpace.from_classes(SemanticClass(i + 1, c.name, c.is_thing) for i, c in enumerate(CLASSES))
STRUCTURE = tuple(TINY_LABEL_SPACE.index_of(name) for name in ("wall", "floor", "ceiling"))
SEATS = tuple(TINY_LABEL_SPACE.index_of(name) for name in ("bed", "chair", "sofa"))


def tiny_class(index: int) -> TinyClass:
    """The row of a class index >= 1."""
    return CLASSES[index - 1]


def _translation(names: tuple[str, ...], source: str) -> np.ndarray:
    """Class index in TINY_LABEL_SPACE of each of `names`, 0 where no class takes it."""
    return np.array(
        [next((i + 1 for i, c in enumerate(CLASSES) if name in getattr(c, source)), 0) for name in names], np.int32
    )


FROM_MOSAIC = _translation(MOSAIC_CLASSES, "mosaic")  # [32]
FROM_COCO = _translation(COCO_CLASSES, "coco")  # [80]
# Which MOSAIC classes a box of each class claims: [C, 32] bool.
CLAIMS = np.array(
    [[False] * len(MOSAIC_CLASSES)] + [[m in c.mosaic + c.claims for m in MOSAIC_CLASSES] for c in CLASSES]
)
