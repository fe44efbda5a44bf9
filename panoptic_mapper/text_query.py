"""Free text to classes: by names and synonyms, else by the similarity of meaning, where there is a text encoder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from panoptic_mapper.config import Config, param
from panoptic_mapper.label_space import LabelSpace

ENDINGS = (("lves", "lf"), ("ies", "y"), ("sses", "ss"), ("ches", "ch"), ("shes", "sh"), ("xes", "x"))


@dataclass(frozen=True)
class TextQueryConfig(Config):
    """How free text is matched to classes."""

    encoder: str = param(
        "",
        "Model that compares meanings, a sentence encoder or CLIP: hub id (owner/name or owner/name@commit) or folder;"
        " empty = names and synonyms.",
    )
    offline: bool = param(False, "Never ask the network: the model must be in the cache or in a folder.")
    min_similarity: float = param(
        0.35, "Least cosine of text and class; about 0.35 for sentence encoders, 0.8 for CLIP.", ge=-1, le=1
    )
    max_classes: int = param(3, "At most so many classes match by meaning.", ge=1)


class TextEncoder(Protocol):
    """Maps texts to unit vectors [n, D]; near means of like meaning."""

    def __call__(self, texts: Sequence[str]) -> np.ndarray: ...


def create_text_encoder(config: TextQueryConfig) -> TextEncoder | None:
    """The configured encoder, which loads its model with the first question, or None."""
    if not config.encoder:
        return None
    from panoptic_mapper.text_encoder import TransformersEncoder

    return TransformersEncoder(config)


@dataclass(frozen=True)
class TextMatch:
    """A class that a text may mean."""

    class_index: int
    similarity: float  # 1 for its name or a synonym, else the cosine, 0..1


def match_text(
    text: str, label_space: LabelSpace, encoder: TextEncoder | None = None, config: TextQueryConfig | None = None
) -> tuple[TextMatch, ...]:
    """The classes that a text names, or those that it is most similar to, the most similar first.

    A text names a class where the class's name or a synonym is in it, whole and in any number: "two red chairs" names
    "chair". Of names within each other the longest counts: "coffee table" does not name "table".

    Raises:
        ValueError: the text is empty, or fits no class; the known ones are listed.
    """
    config = config or TextQueryConfig()
    words = _words(text)
    if not words:
        raise ValueError(f"text: expected words, got '{text}'")
    named = _named_classes(words, label_space)
    if named:
        return tuple(TextMatch(index, 1.0) for index in named)
    if encoder is None or len(label_space) == 1:
        hint = "" if encoder is not None else " by name or synonym, and there is no text encoder to compare meanings"
        raise ValueError(f"text: '{text}' fits no class{hint}; known: {', '.join(label_space.names[1:])}")
    similarities = _similarities(" ".join(words), label_space, encoder)
    order = np.argsort(-similarities, kind="stable")[: config.max_classes]
    matches = [TextMatch(int(i) + 1, min(1.0, max(0.0, float(similarities[i])))) for i in order]
    matches = [m for m, i in zip(matches, order, strict=True) if similarities[i] >= config.min_similarity]
    if not matches:
        best = label_space.names[order[0] + 1]
        raise ValueError(
            f"text: '{text}' fits no class; the nearest is '{best}' with {similarities[order[0]]:.2f},"
            f" expected at least {config.min_similarity:g}"
        )
    return tuple(matches)


def _named_classes(words: list[str], label_space: LabelSpace) -> list[int]:
    """Indices of the classes whose words are in a text, in the order of the text."""
    phrases = {
        tuple(_words(name)): index
        for index, c in reversed(list(enumerate(label_space.classes)))  # of equal words the first class has them
        if index > 0
        for name in (*c.synonyms, c.name)
    }
    longest = max(map(len, phrases), default=0)
    found, start = [], 0
    while start < len(words):
        for length in range(min(longest, len(words) - start), 0, -1):
            index = phrases.get(tuple(words[start : start + length]))
            if index is not None:
                found.append(index)
                start += length - 1
                break
        start += 1
    return list(dict.fromkeys(found))


def _words(text: str) -> list[str]:
    """The words of a text, lower case and in the singular."""
    return [_singular(word) for word in re.findall(r"[\w'-]+", text.lower())]


def _singular(word: str) -> str:
    """Near enough for comparing words that both went through it."""
    for ending, singular in ENDINGS:
        if word.endswith(ending) and len(word) > len(ending) + 1:
            return word.removesuffix(ending) + singular
    return word[:-1] if word.endswith("s") and not word.endswith(("ss", "us")) and len(word) > 3 else word


def _similarities(text: str, label_space: LabelSpace, encoder: TextEncoder) -> np.ndarray:
    """Cosine [C - 1] of a text and each class, that of its most similar word."""
    names = [(name, row) for row, c in enumerate(label_space.classes[1:]) for name in (c.name, *c.synonyms)]
    vectors = encoder([text, *(name for name, _ in names)])
    result = np.full(len(label_space) - 1, -1.0)
    np.maximum.at(result, [row for _, row in names], vectors[1:] @ vectors[0])
    return result
