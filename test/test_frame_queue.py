"""The frame queue: order, bounds, waiting for poses, and the reason of every drop."""

import numpy as np
import pytest

from panoptic_mapper.frame import PinholeCamera
from panoptic_mapper.frame_queue import FrameQueue, FrameQueueConfig, Observation
from panoptic_mapper.pose_buffer import Missing, PoseBuffer, PoseBufferConfig

CAMERA = PinholeCamera(4.0, 4.0, 3.5, 2.5, 8, 6)
MS = 1_000_000


class ManualClock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def observation(stamp_ns: int, depth_m: float = 1.0) -> Observation:
    depth = np.full((6, 8), depth_m, np.float32)
    return Observation(stamp_ns, "camera", np.zeros((6, 8, 3), np.uint8), depth, CAMERA)


def pose_at(x_m: float) -> np.ndarray:
    T = np.eye(4)
    T[0, 3] = x_m
    return T


def make_queue(**settings) -> tuple[FrameQueue, PoseBuffer, ManualClock]:
    clock, poses = ManualClock(), PoseBuffer(PoseBufferConfig(max_gap_s=0.2))
    return FrameQueue(poses, FrameQueueConfig(**settings), clock), poses, clock


def pop_stamps(queue: FrameQueue) -> list[int]:
    stamps = []
    while (queued := queue.pop()) is not None:
        stamps.append(queued.frame.stamp_ns)
    return stamps


def test_frame_waits_for_its_pose_and_gets_the_interpolated_one():
    queue, poses, clock = make_queue()
    ready_calls = []
    queue.on_ready = lambda: ready_calls.append(clock())
    poses.add(0, pose_at(0.0))
    queue.put(observation(50 * MS))
    assert queue.pop() is None
    assert queue.num_queued == 1
    assert ready_calls == []
    clock.now_s += 0.3
    poses.add(100 * MS, pose_at(1.0))
    queue.resolve()
    queued = queue.pop()
    assert queued.frame.T_map_camera[0, 3] == pytest.approx(0.5)
    assert queued.arrival_s == 100.0  # waiting counts as latency
    assert len(ready_calls) == 1
    assert queue.drops == {}


def test_frame_without_a_pose_is_dropped_after_the_wait_and_not_before():
    queue, _, clock = make_queue(pose_wait_s=1.0)
    queue.put(observation(1 * MS))
    clock.now_s += 0.999
    queue.resolve()
    assert queue.drops == {}
    clock.now_s += 0.001
    queue.resolve()
    assert queue.drops == {"no_pose": 1}
    assert queue.num_queued == 0
    assert queue.pop() is None


def test_frame_that_can_never_get_a_pose_is_dropped_at_once():
    queue, poses, _ = make_queue()
    poses.add(1000 * MS, pose_at(0.0))
    queue.put(observation(10 * MS))
    assert queue.drops == {"no_pose": 1}


def test_frames_leave_in_order_even_if_a_later_pose_is_known_first():
    class OnlyLater:
        known = (20,)

        def lookup(self, stamp_ns, frame_id):
            return np.eye(4) if stamp_ns in self.known else Missing.NOT_YET

    poses = OnlyLater()
    queue = FrameQueue(poses, FrameQueueConfig(), ManualClock())
    queue.put(observation(10))
    queue.put(observation(20))
    assert pop_stamps(queue) == []
    poses.known = (10, 20)
    queue.resolve()
    assert pop_stamps(queue) == [10, 20]


def test_the_oldest_is_dropped_when_the_worker_is_slow():
    queue, poses, _ = make_queue(capacity=3)
    for k in range(5):
        poses.add(k * 30 * MS, pose_at(k))
        queue.put(observation(k * 30 * MS))
    assert queue.num_queued == 3
    assert queue.drops == {"queue_full": 2}
    assert pop_stamps(queue) == [60 * MS, 90 * MS, 120 * MS]


def test_a_frame_in_hand_is_counted_until_it_is_done_with():
    queue, poses, _ = make_queue(capacity=1)
    for k in range(3):
        poses.add(k * 30 * MS, pose_at(k))
        queue.put(observation(k * 30 * MS))
        assert queue.pop() is not None
    assert queue.pop() is None
    assert (queue.num_queued, queue.drops) == (3, {})  # they are no longer the queue's to drop
    queue.finish()
    queue.finish("bad_frame", "why")
    assert (queue.num_queued, queue.drops) == (1, {"bad_frame": 1})
    queue.clear()
    queue.finish()
    assert (queue.num_queued, queue.drops) == (0, {})


def test_the_oldest_is_dropped_when_poses_do_not_come():
    queue, _, _ = make_queue(max_waiting=2, pose_wait_s=10.0)
    for k in range(5):
        queue.put(observation(k))
    assert queue.num_queued == 2
    assert queue.drops == {"queue_full": 3}


def test_disorder_is_dropped_and_a_jump_back_in_time_is_a_new_start():
    queue, poses, _ = make_queue(time_jump_s=5.0)
    for stamp_ns in (10_000 * MS, 10_000 * MS, 9_000 * MS, 10_030 * MS):
        poses.add(stamp_ns, pose_at(0.0))
        queue.put(observation(stamp_ns))
    assert queue.drops == {"out_of_order": 2}
    assert pop_stamps(queue) == [10_000 * MS, 10_030 * MS]
    poses.add(30 * MS, pose_at(2.0))
    queue.put(observation(30 * MS))
    assert queue.pop().frame.T_map_camera[0, 3] == 2.0
    assert queue.drops == {"out_of_order": 2}


def test_a_frame_whose_parts_disagree_is_counted():
    queue, poses, _ = make_queue()
    warnings = []
    queue.on_drop = lambda reason, message: warnings.append((reason, message))
    poses.add(5, pose_at(0.0))
    queue.put(Observation(5, "camera", np.zeros((6, 8, 3), np.uint8), np.zeros((3, 4), np.float32), CAMERA))
    assert queue.drops == {"bad_frame": 1}
    assert "depth image" in warnings[0][1]


def test_counters_pausing_and_clearing():
    queue, poses, _ = make_queue()
    poses.add(5, pose_at(0.0))
    queue.put(observation(5))
    queue.reject("bad_image", "unknown encoding")
    queue.count("bad_pose", "NaN")
    queue.set_paused(True)
    queue.put(observation(6))
    queue.set_paused(False)
    assert queue.drops == {"bad_image": 1, "bad_pose": 1, "paused": 1}
    assert queue.num_received == 3  # a pose is no observation
    assert queue.num_queued == 1
    queue.clear()
    assert (queue.num_queued, queue.num_received, queue.drops) == (0, 0, {})
    queue.put(observation(5))  # the last stamp is forgotten too
    assert pop_stamps(queue) == [5]
