"""Slow and obvious versions of the panoptic metrics, one set of pixels per segment; labels are (class, id) pairs."""

from __future__ import annotations

from collections import Counter
from itertools import permutations

import numpy as np

from panoptic_mapper.label_space import LabelSpace

VOID = (0, 0)
Label = tuple[int, int]


def masks(labels: list[Label]) -> dict[Label, set[int]]:
    return {s: {k for k, x in enumerate(labels) if x == s} for s in set(labels)}


def panoptic(labels: list[Label], space: LabelSpace) -> list[Label]:
    """Stuff loses its ids, and a thing without an id is nothing."""
    is_thing = space.is_thing
    return [VOID if is_thing[c] and i == 0 else (c, i if is_thing[c] else 0) for c, i in labels]


def majority(labels: list[Label], space: LabelSpace) -> list[Label]:
    """Every id gets the class of most of its pixels (the lowest of equals); ids of stuff are joined."""
    votes: dict[int, Counter[int]] = {}
    for c, i in labels:
        votes.setdefault(i, Counter())[c] += 1
    winner = {i: min(count, key=lambda c: (-count[c], c)) for i, count in votes.items()}
    of_id = [(winner[i] if i else c, i) for c, i in labels]
    return [(c, i if space.is_thing[c] else 0) for c, i in of_id]


def qualities(
    predicted: list[Label], true: list[Label], threshold: float, min_size: int = 1, one_to_one: bool = True
) -> list[float | None]:
    """All mean PQs, percent, that a matching with the largest sum of IoU can have: several where sums are equal."""
    sizes = Counter(true)
    true = [s if s[0] and sizes[s] >= min_size else VOID for s in true]
    masks_t, masks_p = masks(true), {s: m for s, m in masks(predicted).items() if s[0]}
    void = masks_t.pop(VOID, set())
    per_class = []
    for c in sorted({s[0] for s in masks_t}):
        of_class = [m for s, m in masks_t.items() if s[0] == c], [m for s, m in masks_p.items() if s[0] == c]
        per_class.append(_class_qualities(*of_class, void, threshold, min_size, one_to_one))
    means: list[float | None] = [None] if not per_class else []
    for choice in _product(per_class):
        means.append(100 * float(np.mean(choice)))
    return means


def _class_qualities(
    true: list[set[int]], predicted: list[set[int]], void: set[int], threshold: float, min_size: int, one_to_one: bool
) -> set[float]:
    iou = [[len(t & p) / len(t | (p - void)) for p in predicted] for t in true]
    pairs = {(i, k) for i in range(len(true)) for k in range(len(predicted)) if iou[i][k] > threshold}
    choices = _matchings(len(true), len(predicted), pairs) if one_to_one else [pairs]
    best = max(sum(iou[i][k] for i, k in m) for m in choices)
    found = set()
    for matching in choices:
        total = sum(iou[i][k] for i, k in matching)
        if total < best - 1e-9:
            continue
        missed = len(true) - len({i for i, _ in matching})
        rest = [p for k, p in enumerate(predicted) if k not in {k for _, k in matching}]
        spurious = sum(len(p) >= min_size and len(p & void) <= 0.5 * len(p) for p in rest)
        found.add(total / (len(matching) + 0.5 * spurious + 0.5 * missed))
    return found


def _matchings(num_true: int, num_predicted: int, pairs: set[tuple[int, int]]) -> list[set[tuple[int, int]]]:
    """Every one-to-one choice of pairs, by trying all orders."""
    slots = [*range(num_predicted), *[-1] * num_true]
    return [{p for p in enumerate(order) if p in pairs} for order in set(permutations(slots, num_true))]


def _product(choices: list[set[float]]) -> list[tuple[float, ...]]:
    combined: list[tuple[float, ...]] = [()] if choices else []
    for options in choices:
        combined = [(*c, o) for c in combined for o in options]
    return combined


def is_one_of(value: float | None, expected: list[float | None]) -> bool:
    return any(value == e if value is None or e is None else abs(value - e) < 1e-6 for e in expected)
