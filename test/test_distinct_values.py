"""The distinct values of label images against numpy's own."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from panoptic_mapper.distinct_values import DistinctValues


@settings(max_examples=200, deadline=None)
@given(
    arrays(
        st.sampled_from([np.int32, np.uint32, np.int64]),
        array_shapes(min_dims=2, max_dims=2),
        elements=st.integers(0, 4),
    )
)
def test_equals_numpy(image: np.ndarray) -> None:
    expected, first, inverse, counts = np.unique(image, return_index=True, return_inverse=True, return_counts=True)
    distinct = DistinctValues.of(image)
    np.testing.assert_array_equal(distinct.values, expected)
    np.testing.assert_array_equal(distinct.first_pixels, first)
    np.testing.assert_array_equal(distinct.counts, counts)
    others = 7 * np.arange(len(expected)) + 3
    np.testing.assert_array_equal(distinct.replaced_by(others), others[inverse].reshape(image.shape))


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (3, 0)])
def test_an_empty_image_has_none(shape: tuple[int, int]) -> None:
    distinct = DistinctValues.of(np.zeros(shape, np.int32))
    assert (len(distinct.values), distinct.replaced_by(distinct.values).shape) == (0, shape)


def test_views_with_gaps() -> None:
    image = np.arange(24, dtype=np.int32).reshape(4, 6)[::2, ::-3] // 10
    distinct = DistinctValues.of(image)
    np.testing.assert_array_equal(distinct.replaced_by(distinct.values), image)
