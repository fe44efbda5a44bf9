"""The distinct values of label images against numpy's own."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from panoptic_mapper.distinct_values import DistinctValues, Runs


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


@settings(max_examples=200, deadline=None)
@given(
    arrays(
        st.sampled_from([np.uint8, np.int32, np.int64]),
        st.tuples(st.just(2), st.integers(0, 5), st.integers(0, 5)),
        elements=st.integers(0, 2),
    )
)
def test_runs_of_pairs_are_those_of_one_number_for_both(images: np.ndarray) -> None:
    high, low = images
    pairs = high.astype(np.int64) << 32 | low
    runs = Runs.of_pairs(high, low)
    np.testing.assert_array_equal(runs.image(), pairs)
    np.testing.assert_array_equal(runs.starts, Runs.of(pairs).starts)


@settings(max_examples=100, deadline=None)
@given(arrays(np.int32, array_shapes(min_dims=2, max_dims=2), elements=st.integers(0, 4)))
def test_pixels_of_a_value(image: np.ndarray) -> None:
    distinct = DistinctValues.of(image)
    runs = distinct.runs_with(distinct.values // 2)  # of which some that follow each other are equal
    for value in range(4):
        np.testing.assert_array_equal(runs.pixels_of(value), np.flatnonzero(image // 2 == value))
