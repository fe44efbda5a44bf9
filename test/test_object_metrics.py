"""Things whatever their class, counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from panoptic_mapper.label_space import LabelSpace, SemanticClass
from panoptic_mapper.object_metrics import ObjectMetrics

SPACE = LabelSpace.from_classes([SemanticClass(1, "wall", False), SemanticClass(2, "chair", True)])


def test_matches_are_counted_by_hand_over_the_volume() -> None:
    metrics = ObjectMetrics(SPACE, min_pixels=1)
    semantic = np.array([[2, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1, 0]])
    instance = np.array([[5, 5, 5, 5, 6, 6, 6, 6, 0, 0, 0, 0]])
    found = np.array([[9, 9, 9, 0, 8, 8, 0, 0, 7, 7, 8, 0]])
    for _ in range(2):
        metrics.update(found, semantic, instance)
    result = metrics.compute()
    # 9 matches 5 with 3/4; 8 has 2/5 of 6: both are errors, as is 7 on the wall.
    assert result["sq_objects"] == pytest.approx(75.0)
    assert result["rq_objects"] == pytest.approx(100 / (1 + (2 + 1) / 2))
    assert result["pq_objects"] == pytest.approx(75 / 2.5)


def test_without_true_things_there_is_nothing_to_measure() -> None:
    metrics = ObjectMetrics(SPACE, min_pixels=1)
    metrics.update(np.array([[3, 0]]), np.array([[1, 0]]), np.array([[0, 0]]))
    assert metrics.compute()["pq_objects"] is None
