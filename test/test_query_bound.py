"""A bound on the number of queries, for robots with little memory."""

from __future__ import annotations

import logging

import pytest
from small_room import SPACE, PassOn, mapped, wall_frame


@pytest.mark.parametrize(("bound", "expected_ids"), [(0, [1, 2]), (1, [1]), (2, [1, 2])])
def test_no_more_objects_than_the_bound_are_opened(
    bound: int, expected_ids: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    frames = [wall_frame(), wall_frame(stamp_ns=1)]
    with caplog.at_level(logging.WARNING, logger="panoptic_mapper.instances"):
        mapper = mapped(frames, f"instances.max_queries={bound}", "keyframes.translation_m=0", segmenter=PassOn(SPACE))
    assert len(mapper.keyframes) == 2
    assert mapper.map.queries.ids.tolist() == expected_ids
    # Said once, though each keyframe has a mask for which there is no room. A bound that suffices is not mentioned.
    warnings = [record.getMessage() for record in caplog.records]
    assert warnings == (["max_queries=1 is reached: no further objects are opened"] if bound == 1 else [])
