"""The pace of frames: each gets the same time, and who overruns takes it from those that follow."""

from __future__ import annotations

import pytest

from panoptic_mapper.timing import FramePace

FRAME_S = 0.03


class Time:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s

    def frame(self, pace: FramePace, takes_s: float, waited_s: float = 0.0) -> float:
        """Does a frame; returns how much time it had."""
        had_s = pace.begin(waited_s) - self.now_s
        self.now_s += takes_s
        pace.end()
        return had_s


@pytest.fixture
def time() -> Time:
    return Time()


def test_frames_in_time_have_all_of_it(time: Time) -> None:
    pace = FramePace(FRAME_S, time)
    assert [time.frame(pace, t) for t in (0.03, 0.01, 0.03)] == pytest.approx([FRAME_S] * 3)


def test_a_frame_that_took_longer_leaves_less_to_the_next_ones(time: Time) -> None:
    pace = FramePace(FRAME_S, time)
    assert time.frame(pace, 0.075) == pytest.approx(0.03)
    # 45 ms too late: nothing is left for the next one, which takes 5 ms all the same, and 10 ms for the one after it.
    assert time.frame(pace, 0.005) == pytest.approx(-0.015)
    assert time.frame(pace, 0.010) == pytest.approx(0.010)
    assert time.frame(pace, 0.030) == pytest.approx(0.030)
    assert time.now_s - 100 == pytest.approx(4 * FRAME_S)


def test_idle_time_pays(time: Time) -> None:
    pace = FramePace(FRAME_S, time)
    time.frame(pace, 0.05)
    time.now_s += 0.015
    assert time.frame(pace, 0.02) == pytest.approx(0.025)
    time.now_s += 9.0
    assert time.frame(pace, 0.02) == pytest.approx(FRAME_S)  # nothing is saved up


def test_other_work_is_no_idle_time(time: Time) -> None:
    pace = FramePace(FRAME_S, time)
    time.frame(pace, 0.03)
    time.now_s += 0.004
    start_s = time.now_s
    time.now_s += 0.020
    pace.note_other_work(start_s)
    time.now_s += 0.001
    # 20 ms of work. It rested for 4 ms before, when nothing was owed, and for 1 ms after.
    assert time.frame(pace, 0.01) == pytest.approx(0.011)


def test_what_a_frame_waited_is_no_longer_its_time(time: Time) -> None:
    pace = FramePace(FRAME_S, time)
    assert time.frame(pace, 0.02, waited_s=0.01) == pytest.approx(0.02)
    assert time.frame(pace, 0.05) == pytest.approx(0.03)
    # The frame before took 20 ms too much, for which this one waited: that counts once.
    assert time.frame(pace, 0.01, waited_s=0.02) == pytest.approx(0.01)


def test_debt_is_bounded(time: Time) -> None:
    pace = FramePace(FRAME_S, time)
    time.frame(pace, 5.0)
    assert time.frame(pace, 0.0) == pytest.approx(-FRAME_S)
    assert time.frame(pace, 0.0) == pytest.approx(0.0)
    assert time.frame(pace, 0.0) == pytest.approx(FRAME_S)
