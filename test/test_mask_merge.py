"""Overlapping masks to one label image, on masks small enough to see the answer."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from panoptic_mapper.segmenters.mask_merge import merge_masks, without_duplicates

CHAIR, TABLE, FLOOR = 1, 2, 3
IS_THING = np.array([False, True, True, False])


def columns(*spans: tuple[int, int]) -> np.ndarray:  # [K, 2, 10] bool, true from one column to before another
    masks = np.zeros((len(spans), 2, 10), bool)
    for mask, (start, end) in zip(masks, spans, strict=True):
        mask[:, start:end] = True
    return masks


def merged(masks: np.ndarray, scores: list[float], classes: list[int], min_area_px: float = 1):
    return merge_masks(masks, np.array(scores), np.array(classes, np.int64), IS_THING, min_area_px)


def test_the_surer_mask_gets_what_two_cover() -> None:
    labels = merged(columns((0, 6), (4, 10)), [0.5, 0.8], [CHAIR, TABLE])
    assert labels.semantic[0].tolist() == [1, 1, 1, 1, 2, 2, 2, 2, 2, 2]
    assert labels.instance[0].tolist() == [2, 2, 2, 2, 1, 1, 1, 1, 1, 1]
    np.testing.assert_allclose(labels.confidence[0], [0.5] * 4 + [0.8] * 6, rtol=1e-6)


def test_things_stand_before_stuff_and_the_rest_is_unlabeled() -> None:
    labels = merged(columns((0, 8), (2, 4)), [0.9, 0.4], [FLOOR, CHAIR])
    assert labels.semantic[0].tolist() == [3, 3, 1, 1, 3, 3, 3, 3, 0, 0]
    assert labels.instance[0].tolist() == [0, 0, 1, 1, 0, 0, 0, 0, 0, 0]
    assert labels.confidence[0, 9] == 1


def test_masks_of_which_others_hold_the_most_are_dropped() -> None:
    labels = merged(columns((0, 8), (1, 9), (8, 10)), [0.9, 0.8, 0.3], [CHAIR, TABLE, CHAIR])
    assert labels.semantic[0].tolist() == [1] * 10  # the table is another name of the chair; its rest goes to the third
    assert labels.instance[0].tolist() == [1] * 8 + [2] * 2


def test_masks_of_one_stuff_class_are_one_segment() -> None:
    labels = merged(columns((0, 6), (1, 8)), [0.9, 0.5], [FLOOR, FLOOR])  # most of the second is floor already
    assert labels.semantic[0].tolist() == [3] * 8 + [0] * 2
    assert labels.instance.max() == 0


def test_small_and_empty_masks_are_dropped() -> None:
    labels = merged(columns((0, 1), (4, 4), (5, 10)), [0.9, 0.9, 0.5], [CHAIR, CHAIR, TABLE], min_area_px=3)
    assert labels.semantic[0].tolist() == [0] * 5 + [2] * 5
    nothing = merged(columns(), [], [])
    assert nothing.semantic.shape == (2, 10)
    assert nothing.semantic.max() == 0


@given(arrays(bool, (4, 3, 5)), st.lists(st.floats(0.01, 1), min_size=4, max_size=4), st.permutations([1, 2, 3, 3]))
def test_every_pixel_is_of_a_mask_that_covers_it(masks, scores, classes) -> None:
    labels = merged(masks, scores, classes)
    for class_index in (CHAIR, TABLE, FLOOR):
        covered = masks[np.array(classes) == class_index].any(0)
        assert covered[labels.semantic == class_index].all()
    for instance in range(1, labels.instance.max() + 1):
        assert len(np.unique(labels.semantic[labels.instance == instance])) == 1
    assert ((labels.instance > 0) == IS_THING[labels.semantic]).all()


def test_of_two_boxes_on_one_thing_the_surer_is_kept() -> None:
    boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [0, 0, 10, 5], [20, 0, 30, 10]], np.float32)
    scores = np.array([0.5, 0.6, 0.9, 0.1])
    # IoU of the first two 9/11, of the third with them 0.5 and 45/105.
    assert without_duplicates(boxes, scores, 0.7).tolist() == [2, 1, 3]
    assert without_duplicates(boxes, scores, 0.9).tolist() == [2, 1, 0, 3]
    assert without_duplicates(boxes, scores, 0.4).tolist() == [2, 3]
    assert without_duplicates(boxes[:0], scores[:0], 0.5).tolist() == []
