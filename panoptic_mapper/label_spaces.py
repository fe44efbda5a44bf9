"""The label spaces that come with the package, those of users, and the translation of one to another."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np

from panoptic_mapper.label_space import UNLABELED, LabelSpace
from panoptic_mapper.label_space_file import read_label_space
from panoptic_mapper.resources import resource_path

FOLDER = "config/label_spaces"


def shipped_label_spaces() -> dict[str, Path]:
    """The files of the label spaces that come with the package, by name."""
    return {file.stem: file for file in sorted(resource_path(FOLDER).glob("*.yaml"))}


def load_label_space(name_or_file: str | Path) -> LabelSpace:
    """A label space that comes with the package, by name, or of a file: .yaml, .yml, or a labels.json.

    Raises:
        ValueError: there is neither such a name nor such a file, or the file has mistakes (each with its line).
    """
    shipped = shipped_label_spaces()
    if str(name_or_file) in shipped:
        return _read_shipped(str(name_or_file))
    file = Path(name_or_file).expanduser()
    if file.suffix not in (".yaml", ".yml", ".json"):
        raise ValueError(
            f"label space '{name_or_file}': expected a file (.yaml or labels.json) or one of {', '.join(shipped)}"
        )
    return LabelSpace.from_json(file) if file.suffix == ".json" else read_label_space(file)


@cache
def _read_shipped(name: str) -> LabelSpace:
    return read_label_space(shipped_label_spaces()[name])


def class_table(source: LabelSpace, target: LabelSpace) -> np.ndarray:
    """Index in `target` of each class of `source`, int32 [C]; UNLABELED where `target` has nothing for it.

    A class is looked for in the target's `maps_from`, then by its name among the target's names and synonyms, then by
    its synonyms among them.
    """
    source, target = _as_shipped(source), _as_shipped(target)
    table = target.indices_of(source)
    explicit = target.maps_from.get(source.name, {})
    for index, c in enumerate(source.classes[1:], start=1):
        if c.name in explicit:
            table[index] = target.index_of_word.get(explicit[c.name].lower(), UNLABELED)
    return table


def _as_shipped(space: LabelSpace) -> LabelSpace:
    """The shipped space with the same classes, if there is one: maps and bags carry classes without its mappings."""
    if space.name:
        return space
    return next((s for s in map(_read_shipped, shipped_label_spaces()) if s == space), space)
