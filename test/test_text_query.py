"""Free text to classes: names, synonyms, numbers, and meanings by a text encoder."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from panoptic_mapper.label_space import LabelSpace
from panoptic_mapper.text_query import TextMatch, TextQueryConfig, match_text
from panoptic_mapper.vocabulary import label_space_of_words

SPACE = label_space_of_words(
    ["chair", "couch|sofa", "table", "coffee table", "shelf|bookcase", "glass|wine glass", "box"], ["floor", "wall"]
)
MEANINGS = {  # unit vectors: furniture to sit on, to put things on, of the house
    "chair": (1.0, 0.0, 0.0),
    "couch": (0.8, 0.6, 0.0),
    "sofa": (0.96, 0.28, 0.0),
    "table": (0.0, 1.0, 0.0),
    "something to sit on": (1.0, 0.0, 0.0),
    "dragon": (0.0, 0.0, -1.0),
}


def encoder(texts: Sequence[str]) -> np.ndarray:
    return np.array([MEANINGS.get(text, (0.0, 0.0, 1.0)) for text in texts])


def named(text: str) -> list[str]:
    matches = match_text(text, SPACE)
    assert {m.similarity for m in matches} == {1.0}
    return [SPACE.names[m.class_index] for m in matches]


@pytest.mark.parametrize(
    ("text", "classes"),
    [
        ("chair", ["chair"]),
        ("CHAIRS", ["chair"]),
        ("the two red chairs by the sofa", ["chair", "couch"]),
        ("coffee table", ["coffee table"]),
        ("a table and a coffee table", ["table", "coffee table"]),
        ("bookcases", ["shelf"]),
        ("shelves", ["shelf"]),
        ("Wine glasses!", ["glass"]),
        ("boxes", ["box"]),
        ("the floor", ["floor"]),
        ("sofa, couch", ["couch"]),
    ],
)
def test_names_and_synonyms_are_found_in_the_text(text, classes) -> None:
    assert named(text) == classes


@pytest.mark.parametrize("text", ["armchair", "tabletop", "carpet"])
def test_parts_of_words_name_nothing(text) -> None:
    with pytest.raises(ValueError, match=f"'{text}' fits no class by name or synonym, and there is no text encoder"):
        match_text(text, SPACE)


def test_without_words_there_is_no_question() -> None:
    for text in ("", "  ", "?!"):
        with pytest.raises(ValueError, match="expected words"):
            match_text(text, SPACE)


def test_meanings_are_compared_where_no_name_is_found() -> None:
    matches = match_text("Something to sit on", SPACE, encoder, TextQueryConfig(min_similarity=0.5))
    assert [SPACE.names[m.class_index] for m in matches] == ["chair", "couch"]
    assert [m.similarity for m in matches] == pytest.approx([1.0, 0.96])  # the couch by its synonym, sofa
    only = match_text("something to sit on", SPACE, encoder, TextQueryConfig(min_similarity=0.5, max_classes=1))
    assert only == (TextMatch(1, 1.0),)
    assert match_text("chair", SPACE, encoder) == (TextMatch(1, 1.0),)  # a name goes before all likeness


def test_what_is_like_nothing_is_told() -> None:
    with pytest.raises(
        ValueError, match=r"'dragon' fits no class; the nearest is 'chair' with 0\.00, expected at least"
    ):
        match_text("dragon", SPACE, encoder)
    with pytest.raises(ValueError, match=r"fits no class; known: $"):
        match_text("dragon", LabelSpace.from_classes(()), encoder)
