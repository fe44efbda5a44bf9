"""From queries to panoptic labels, by hand-made masks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from panoptic_mapper.segmenters.panoptic_queries import MaskGrid, panoptic_from_queries

# Classes of the network: 0 floor (stuff), 1 chair, 2 lamp, 3 one that the label space lacks. Indices: 3, 1, 2, none.
INDEX_OF_CLASS = np.array([3, 1, 2, 0])
IS_THING = np.array([False, True, True, False])
FLOOR, CHAIR, LAMP, OTHER, NOTHING = range(5)
ROW = MaskGrid((1, 10), (1, 10), (1, 10))
HIGH = 20.0  # a logit whose probability is 1 in float32


def masks(*spans: tuple[int, int], logit: float = HIGH) -> torch.Tensor:
    """Masks [Q, 1, 10] that cover columns first..last."""
    made = torch.full((len(spans), 1, 10), -HIGH)
    for mask, (first, last) in zip(made, spans, strict=True):
        mask[0, first : last + 1] = logit
    return made


def classes(*scored: tuple[int, float]) -> torch.Tensor:
    """Class logits [Q, 5] of which the softmax is the given score at the given class, the rest shared evenly."""
    probabilities = torch.stack(
        [torch.full((5,), (1 - score) / 4).index_fill(0, torch.tensor(c), score) for c, score in scored]
    )
    return probabilities.log()


def labels(class_logits, mask_logits, grid=ROW, min_score=0.5, min_visible_share=0.8):
    return panoptic_from_queries(
        class_logits, mask_logits, INDEX_OF_CLASS, IS_THING, grid, min_score, min_visible_share
    )


def test_things_get_numbers_and_stuff_none() -> None:
    result = labels(classes((CHAIR, 0.9), (FLOOR, 0.8), (CHAIR, 0.7)), masks((0, 1), (2, 5), (7, 9)))
    assert result.semantic[0].tolist() == [1, 1, 3, 3, 3, 3, 0, 1, 1, 1]
    assert result.instance[0].tolist() == [1, 1, 0, 0, 0, 0, 0, 2, 2, 2]
    np.testing.assert_allclose(result.confidence[0], [0.9] * 2 + [0.8] * 4 + [0] + [0.7] * 3, rtol=1e-5)
    assert (result.semantic.dtype, result.instance.dtype, result.confidence.dtype) == (np.int32, np.int32, np.float32)


def test_numbers_go_on_after_stuff_of_one_class_in_two_masks() -> None:
    """Fused stuff must not wind the numbers back, or two things share one."""
    found = classes((CHAIR, 0.9), (FLOOR, 0.9), (LAMP, 0.9), (FLOOR, 0.9), (CHAIR, 0.9))
    result = labels(found, masks((0, 1), (2, 3), (4, 5), (6, 7), (8, 9)))
    assert result.semantic[0].tolist() == [1, 1, 3, 3, 2, 2, 3, 3, 1, 1]
    assert result.instance[0].tolist() == [1, 1, 0, 0, 2, 2, 0, 0, 3, 3]


def test_nothing_and_unsure_and_unknown_classes_are_void() -> None:
    found = classes((NOTHING, 0.9), (CHAIR, 0.49), (OTHER, 0.9), (LAMP, 0.9))
    result = labels(found, masks((0, 1), (2, 3), (4, 5), (6, 9)))
    assert result.semantic[0].tolist() == [0] * 6 + [2] * 4
    assert result.instance[0].tolist() == [0] * 6 + [1] * 4
    assert result.confidence[0, :6].tolist() == [0] * 6


@pytest.mark.parametrize("found", [classes((NOTHING, 0.9)), classes((CHAIR, 0.3))])
def test_an_image_without_segments_is_void(found: torch.Tensor) -> None:
    result = labels(found, masks((0, 9)))
    assert not result.semantic.any()
    assert not result.instance.any()
    assert not result.confidence.any()


def test_the_better_query_wins_and_what_loses_most_is_dropped() -> None:
    found = classes((CHAIR, 0.9), (LAMP, 0.8))
    # The lamp keeps 5 of its 6 columns (0.83), then 3 of its 6.
    assert labels(found, masks((0, 4), (4, 9))).semantic[0].tolist() == [1] * 5 + [2] * 5
    assert labels(found, masks((0, 6), (4, 9))).semantic[0].tolist() == [1] * 7 + [0] * 3
    all_kept = labels(found, masks((0, 6), (4, 9)), min_visible_share=0.4)
    assert all_kept.semantic[0].tolist() == [1] * 7 + [2] * 3


def test_pixels_that_no_mask_covers_are_void() -> None:
    """The best of bad masks takes no pixel: its probability must reach a half."""
    mask = masks((0, 9))
    mask[0, 0, 5:] = -0.1
    assert labels(classes((CHAIR, 0.9)), mask, min_visible_share=0).semantic[0].tolist() == [1] * 5 + [0] * 5


def test_confidence_is_score_times_mean_mask_probability() -> None:
    logit = float(torch.logit(torch.tensor(0.75)))
    mask = masks((0, 4), logit=logit)
    mask[0, 0, :2] = HIGH
    result = labels(classes((CHAIR, 0.8)), mask)
    np.testing.assert_allclose(result.confidence[0, :5], 0.8 * (2 * 1 + 3 * 0.75) / 5, rtol=1e-5)


def test_padding_is_cut_off_before_the_image_is_resized() -> None:
    """A 4x4 input whose upper 2 rows are the image; labels of twice its size."""
    mask = torch.full((2, 4, 4), -HIGH)
    mask[0, :, :2] = HIGH  # left half, and on into the padding
    mask[1, 2:, 2:] = HIGH  # in the padding alone
    grid = MaskGrid((4, 4), (2, 4), (4, 8))
    result = labels(classes((CHAIR, 0.9), (LAMP, 0.9)), mask, grid, min_visible_share=0)
    assert result.semantic.shape == (4, 8)
    # Linear interpolation between columns 1 and 2 crosses zero between columns 3 and 4 of the labels.
    assert result.semantic.tolist() == [[1, 1, 1, 1, 0, 0, 0, 0]] * 4


def test_half_precision_logits_give_the_same() -> None:
    found, mask = classes((CHAIR, 0.9), (FLOOR, 0.8)), masks((0, 4), (5, 9), logit=10.0)
    exact, half = labels(found, mask), labels(found.half(), mask.half())
    np.testing.assert_array_equal(exact.semantic, half.semantic)
    np.testing.assert_allclose(exact.confidence, half.confidence, rtol=2e-3)


def test_numbers_that_are_none_label_nothing() -> None:
    """Half precision can overflow."""
    found, mask = classes((CHAIR, 0.9), (LAMP, 0.9)), masks((0, 4), (5, 9))
    broken_class, broken_mask = found.clone(), mask.clone()
    broken_class[0] = torch.nan
    broken_mask[0, 0, :3] = torch.nan
    assert labels(broken_class, mask).semantic[0].tolist() == [0] * 5 + [2] * 5
    result = labels(found, broken_mask, min_visible_share=0)
    assert result.semantic[0].tolist() == [0] * 3 + [1] * 2 + [2] * 5
    assert np.isfinite(result.confidence).all()
