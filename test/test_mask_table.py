"""The arrays of all masks against a loop over them, while masks, ids and keyframes change."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np

from panoptic_mapper.mask_table import MaskTable


def keyframe(stamp_ns: int, rng: random.Random) -> SimpleNamespace:
    k = SimpleNamespace(stamp_ns=stamp_ns)
    set_labels(k, rng)
    return k


def set_labels(k: SimpleNamespace, rng: random.Random) -> None:
    num = rng.randrange(6)
    k.mask_classes = [0] + [rng.randrange(9) for _ in range(num)]
    k.mask_scores = [1.0] + [rng.random() for _ in range(num)]
    k.mask_px = [rng.randrange(50)] + [rng.randrange(1, 99) for _ in range(num)]
    k.mask_ids = [0] + [rng.randrange(4) for _ in range(num)]


def check(table: MaskTable, keyframes: list[SimpleNamespace]) -> None:
    told = table.observations(keyframes)
    expected = []
    for n, k in enumerate(keyframes):
        for mask in range(1, len(k.mask_ids)):
            same = [other for other in range(len(k.mask_ids)) if k.mask_ids[other] == k.mask_ids[mask]]
            weight = k.mask_scores[mask] * k.mask_px[mask] / sum(k.mask_px[other] for other in same)
            expected.append((n, k.mask_ids[mask], k.mask_classes[mask], weight))
    frames, ids, classes, weights = zip(*expected, strict=True) if expected else ((), (), (), ())
    assert told.frames.tolist() == list(frames)
    assert told.ids.tolist() == list(ids)
    assert told.classes.tolist() == list(classes)
    np.testing.assert_allclose(told.weights, weights, rtol=1e-6)
    assert told.stamps_ns.tolist() == [k.stamp_ns for k in keyframes]


def test_they_follow_every_change() -> None:
    rng = random.Random(0)
    table, keyframes = MaskTable(), []
    check(table, keyframes)
    for step in range(60):
        keyframes.append(keyframe(step, rng))
        changed = rng.choice(keyframes)
        if rng.random() < 0.5:
            set_labels(changed, rng)
        for mask in range(1, len(changed.mask_ids)):
            changed.mask_ids[mask] = rng.randrange(4)  # in place, as association does
        check(table, keyframes)
    keyframes[10:] = [keyframe(step, rng) for step in range(5)]  # another store
    check(table, keyframes)


def test_they_are_the_same_object_until_something_changes() -> None:
    rng = random.Random(1)
    table, keyframes = MaskTable(), [keyframe(step, rng) for step in range(5)]
    keyframes[2].mask_ids = [0] + [1] * (len(keyframes[2].mask_ids) - 1)
    told = table.observations(keyframes)
    assert table.observations(keyframes) is told
    keyframes[2].mask_ids[0:] = [0] + [2] * (len(keyframes[2].mask_ids) - 1)
    changed = table.observations(keyframes)
    assert changed is not told
    assert table.observations(keyframes) is changed
    assert table.observations(keyframes[:4]) is not changed
