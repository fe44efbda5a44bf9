"""Which keyframe the 2D model gets next, and which stay without labels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from panoptic_mapper.frame import Frame, PinholeCamera
from panoptic_mapper.segmenters.label_queue import LabelQueue, LabelQueueConfig, LabelRequest

CAMERA = PinholeCamera(4.0, 4.0, 1.5, 1.5, 4, 4)


def request(arrival_s: float) -> LabelRequest:
    frame = Frame(0, np.zeros((4, 4, 3), np.uint8), np.ones((4, 4), np.float32), np.eye(4), CAMERA)
    return LabelRequest(frame, arrival_s)


def filled(arrivals_s, **settings) -> LabelQueue:
    queue = LabelQueue(LabelQueueConfig(**settings))
    for arrival_s in arrivals_s:
        queue.put(request(arrival_s))
    return queue


def taken(queue: LabelQueue, now_s: float) -> list[float]:
    result = []
    while (next_request := queue.take(now_s)) is not None:
        result.append(next_request.arrival_s)
    return result


@pytest.mark.parametrize(("order", "expected"), [("newest", [3, 2, 1]), ("oldest", [1, 2, 3])])
def test_the_order_is_that_of_the_configuration(order, expected) -> None:
    assert taken(filled([1, 2, 3], order=order), now_s=4) == expected


def test_beyond_the_capacity_the_oldest_stays_without_labels() -> None:
    queue = filled([1, 2, 3, 4], capacity=2, order="oldest")
    assert (len(queue), queue.given_up) == (2, {"queue_full": 2})
    assert taken(queue, now_s=4) == [3, 4]


def test_a_frame_that_is_tried_again_keeps_its_place() -> None:
    queue = filled([1, 2], order="oldest")
    first = queue.take(now_s=3)
    queue.put(first)
    assert taken(queue, now_s=3) == [1, 2]


def test_frames_that_waited_too_long_are_given_up() -> None:
    queue = filled([1, 2, 3], max_age_s=5)
    assert taken(queue, now_s=7.5) == [3]
    assert +queue.given_up == {"too_old": 2}


def test_frames_are_taken_at_the_rate_that_is_allowed() -> None:
    queue = filled([0, 0, 0], max_rate_hz=2)
    assert queue.wait_s(10.0) == 0
    queue.take(10.0)
    assert queue.wait_s(10.1) == pytest.approx(0.4)
    assert queue.wait_s(10.6) == 0
    taken(queue, 10.6)
    assert queue.wait_s(10.6) is None
    assert filled([0]).wait_s(0.0) == 0  # without a bound at once


@given(st.lists(st.sampled_from(["put", "take", "wait"]), max_size=60))
def test_nothing_is_lost_without_a_trace(steps) -> None:
    queue, now_s, num_put, num_taken = LabelQueue(LabelQueueConfig(capacity=3, max_age_s=4)), 0.0, 0, 0
    for step in steps:
        if step == "put":
            queue.put(request(now_s))
            num_put += 1
        elif step == "take":
            num_taken += queue.take(now_s) is not None
        now_s += step == "wait"
        assert len(queue) <= 3
    assert num_put == num_taken + len(queue) + sum(queue.given_up.values())
