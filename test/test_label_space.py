"""Classes: ids and indices are translated without loss, and contradictions are refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from panoptic_mapper.label_space import MAX_CLASS_ID, LabelSpace, SemanticClass, distinct_color

SPACE = LabelSpace.from_classes(
    [SemanticClass(40, "Wall", False), SemanticClass(5, "chair", True), SemanticClass(65535, "lamp", True)]
)


def test_unlabeled_is_put_in_front() -> None:
    assert len(SPACE) == 4
    assert SPACE.names == ("unlabeled", "Wall", "chair", "lamp")
    assert SPACE.ids.tolist() == [0, 40, 5, 65535]
    assert SPACE.is_thing.tolist() == [False, False, True, True]


def test_ids_become_indices_and_unknown_ones_unlabeled() -> None:
    ids = np.array([[40, 5], [0, 6], [65535, 65536], [-1, -65531]])
    indices = SPACE.indices_from_ids(ids)
    assert indices.tolist() == [[1, 2], [0, 0], [3, 0], [0, 0]]
    assert indices.dtype == np.int32
    assert SPACE.indices_from_ids(np.array([40], np.uint16)).tolist() == [1]


@given(st.lists(st.integers(1, MAX_CLASS_ID), min_size=1, max_size=20, unique=True))
def test_indices_and_ids_are_inverse(ids: list[int]) -> None:
    space = LabelSpace.from_classes(SemanticClass(id, f"class {id}", id % 2 == 0) for id in ids)
    assert space.indices_from_ids(np.array(ids)).tolist() == list(range(1, len(ids) + 1))
    assert space.ids[space.indices_from_ids(space.ids)].tolist() == space.ids.tolist()


def test_names_are_found_in_any_case() -> None:
    assert SPACE.index_of("wall") == 1
    assert SPACE.index_of("LAMP") == 3
    with pytest.raises(ValueError, match="unknown class 'sofa'; known: Wall, chair, lamp"):
        SPACE.index_of("sofa")


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ([(1, "a"), (1, "b")], "id 1 is given to 2 classes"),
        ([(1, "a"), (2, "a")], "name 'a' is given to 2 classes"),
        ([(0, "a")], r"class 'a' has id 0, expected 1\.\.65535"),
        ([(65536, "a")], "class 'a' has id 65536"),
    ],
)
def test_contradictions_are_named(classes: list[tuple[int, str]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LabelSpace.from_classes(SemanticClass(id, name, True) for id, name in classes)


def test_no_classes_at_all() -> None:
    space = LabelSpace.from_classes(())
    assert len(space) == 1
    assert space.indices_from_ids(np.arange(5)).tolist() == [0] * 5
    assert space.colors.tolist() == [[0, 0, 0]]


def test_round_trips(tmp_path: Path) -> None:
    assert LabelSpace.from_dict(json.loads(json.dumps(SPACE.to_dict()))) == SPACE
    file = tmp_path / "labels.json"
    file.write_text(json.dumps({"classes": SPACE.to_dict()}))
    assert LabelSpace.from_json(file) == SPACE


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"classes": [{"id": 1}]}',
        '{"classes": [{"id": "x", "name": "a", "isthing": 1}]}',
        '{"classes": 3}',
        None,
    ],
)
def test_unreadable_files_are_named(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "labels.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ValueError, match=r"labels\.json: not a readable list of classes"):
        LabelSpace.from_json(file)


@pytest.mark.parametrize(
    ("second", "message"), [((1, "b"), "id 1 is given to 2"), ((2, "a"), "name 'a' is given to 2")]
)
def test_files_that_contradict_themselves_are_named(tmp_path: Path, second: tuple[int, str], message: str) -> None:
    file = tmp_path / "labels.json"
    classes = [{"id": id, "name": name, "isthing": True} for id, name in ((1, "a"), second)]
    file.write_text(json.dumps({"classes": classes}))
    with pytest.raises(ValueError, match=rf"labels\.json: label space: {message}"):
        LabelSpace.from_json(file)


def test_colors_are_distinct_and_black_is_for_unlabeled() -> None:
    space = LabelSpace.from_classes(SemanticClass(i, str(i), True) for i in range(1, 41))
    assert space.colors.shape == (41, 3)
    assert space.colors[0].tolist() == [0, 0, 0]
    distances = np.abs(space.colors[:, None].astype(int) - space.colors[None]).sum(-1)
    assert distances[~np.eye(41, dtype=bool)].min() > 10
    assert tuple(space.colors[1]) == distinct_color(0)
