"""Words that an open-vocabulary model looks for, as a label space that may change while it runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from panoptic_mapper.frame import Frame, Segmentation
from panoptic_mapper.label_space import LabelSpace, SemanticClass

SYNONYMS_DIVIDER = "|"
FORBIDDEN = ".?"  # they divide phrases in the prompts of detectors
MAX_LETTERS = 60


@runtime_checkable
class OpenVocabulary(Protocol):
    """A segmenter whose classes are words; `label_space.is_open` says whether they may really be changed."""

    label_space: LabelSpace

    def segment(self, frame: Frame) -> Segmentation | None: ...

    def set_vocabulary(self, things: Sequence[str], stuff: Sequence[str]) -> None:
        """Looks for other words from the next frame on.

        Raises:
            ValueError: a word is wrong; the words are as before.
        """
        ...


def label_space_of_words(things: Sequence[str], stuff: Sequence[str]) -> LabelSpace:
    """The classes of words such as "chair" or "couch|sofa", of which the first names the class.

    Raises:
        ValueError: there is no word, or one is empty, too long, comes twice, or has a character that divides phrases.
    """
    entries = [(entry, True) for entry in things] + [(entry, False) for entry in stuff]
    if not entries:
        raise ValueError("vocabulary: expected at least one word")
    classes = []
    for id, (entry, is_thing) in enumerate(entries, start=1):
        name, *synonyms = (" ".join(word.lower().split()) for word in entry.split(SYNONYMS_DIVIDER))
        classes.append(SemanticClass(id, name, is_thing, tuple(synonyms)))
    words = Counter(word for c in classes for word in (c.name, *c.synonyms))
    for word, count in words.items():
        if not word or len(word) > MAX_LETTERS or any(letter in word for letter in FORBIDDEN):
            raise ValueError(f"vocabulary: expected 1..{MAX_LETTERS} letters and none of '{FORBIDDEN}', got '{word}'")
        if count > 1:
            raise ValueError(f"vocabulary: '{word}' comes {count} times")
    return LabelSpace.from_classes(classes, is_open=True)
