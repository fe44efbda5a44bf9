"""The mapping thread: one owner of the map, tasks between frames, and no failure ends it."""

import threading

import numpy as np
import pytest

from panoptic_mapper.frame import PinholeCamera
from panoptic_mapper.frame_queue import FrameQueue, Observation
from panoptic_mapper.snapshot import MapStats
from panoptic_mapper.timing import RateMeter, RollingPercentiles
from panoptic_mapper.worker import STATS_EVERY_S, MappingWorker, WorkerConfig

CAMERA = PinholeCamera(8.0, 8.0, 7.5, 3.5, 16, 8)
TIMEOUT_S = 10.0  # of waits that end at once unless something is broken


class RecordingMapper:
    """Notes what is done to it, by which thread; fails at chosen stamps."""

    def __init__(self, failures: dict[int, Exception] | None = None) -> None:
        self.failures = failures or {}
        self.stamps: list[int] = []
        self.num_refined = 0
        self.last_stamp_ns = 0
        self.threads: set[int] = set()

    def integrate(self, frame, waited_s):
        self.threads.add(threading.get_ident())
        if frame.stamp_ns in self.failures:
            raise self.failures[frame.stamp_ns]
        self.stamps.append(frame.stamp_ns)
        self.last_stamp_ns = frame.stamp_ns
        return f"report {frame.stamp_ns}"

    def refine(self, num_steps):
        self.num_refined += num_steps

    def stats(self):
        return MapStats(len(self.stamps), 0, 0, 0, 0, {}, {})


class Still:
    """A camera that never moves."""

    def lookup(self, stamp_ns, frame_id):
        return np.eye(4)


class ManualClock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def observation(stamp_ns: int, age_s: float = 0.0) -> Observation:
    color, depth = np.zeros((8, 16, 3), np.uint8), np.ones((8, 16), np.float32)
    return Observation(stamp_ns, "camera", color, depth, CAMERA, age_s=age_s)


def make_worker(mapper=None, clock=None, **settings) -> MappingWorker:
    settings = {"idle_refine_steps": 0, **settings}
    frames = FrameQueue(Still(), clock=clock or ManualClock())
    return MappingWorker(mapper or RecordingMapper(), frames, WorkerConfig(**settings))


def run_until_idle(worker: MappingWorker) -> None:
    while worker.step():
        pass


def test_frames_are_integrated_in_order_and_reported():
    worker, reports = make_worker(), []
    worker.on_integrated = lambda frame, report: reports.append((frame.stamp_ns, report))
    for stamp_ns in (10, 20, 30):
        worker.frames.put(observation(stamp_ns))
    run_until_idle(worker)
    assert reports == [(10, "report 10"), (20, "report 20"), (30, "report 30")]
    assert (worker.num_integrated, worker.last_stamp_ns, worker.stats.num_frames) == (3, 30, 3)


def test_a_failing_frame_is_skipped_counted_and_the_next_one_mapped(caplog):
    mapper = RecordingMapper({10: ValueError("depth is empty"), 20: RuntimeError("out of memory")})
    worker = make_worker(mapper)
    for stamp_ns in (10, 20, 30):
        worker.frames.put(observation(stamp_ns))
    run_until_idle(worker)
    assert mapper.stamps == [30]
    assert worker.frames.drops == {"bad_frame": 1, "error": 1}
    assert (worker.num_integrated, worker.frames.num_queued) == (1, 0)
    assert "out of memory" in worker.last_error
    assert "Traceback" in caplog.text
    assert caplog.text.count("Traceback") == 1  # a refused frame is no failure of ours


def test_each_change_of_the_map_is_told_before_its_frame_is_done():
    worker, told = make_worker(RecordingMapper({20: ValueError("depth is empty")}), max_idle_refine_steps=3), []
    worker.on_version = lambda version: told.append((version, worker.frames.num_queued))
    for stamp_ns in (10, 20):
        worker.frames.put(observation(stamp_ns))
        run_until_idle(worker)
    assert told == [(1, 1), (2, 1)]
    assert worker.version == 2


def test_a_frame_is_done_with_even_if_the_mapper_cannot_say_how_it_is():
    mapper = RecordingMapper()
    worker = make_worker(mapper)
    mapper.stats = lambda: 1 / 0
    worker.frames.put(observation(10))
    run_until_idle(worker)
    assert (worker.frames.num_queued, worker.frames.drops) == (0, {})
    assert worker.last_error == "the mapper cannot say how it is"


def test_statistics_are_taken_while_frames_come_without_a_pause_but_not_of_each():
    clock, mapper = ManualClock(), RecordingMapper()
    worker, taken = make_worker(mapper, clock), []
    stats = mapper.stats
    mapper.stats = lambda: taken.append(len(mapper.stamps)) or stats()
    for stamp_ns in range(1, 8):
        worker.frames.put(observation(stamp_ns))
    for _ in range(7):
        worker.step()
        clock.now_s += STATS_EVERY_S / 2
    assert taken == [4, 7]
    worker.submit(lambda m: None)
    assert worker.step()
    assert taken == [4, 7]
    worker.submit(lambda m: worker.note_replacement())
    assert worker.step()
    assert taken == [4, 7, 7]
    worker.frames.put(observation(10))
    run_until_idle(worker)
    assert taken == [4, 7, 7, 8]


def test_latency_counts_waiting_and_age():
    clock = ManualClock()
    worker = make_worker(clock=clock)
    worker.frames.put(observation(1, age_s=0.5))
    clock.now_s += 0.25
    run_until_idle(worker)
    assert worker.latency_ms.percentiles() == pytest.approx((250, 250, 250))
    assert worker.stamp_latency_ms.percentiles([50]) == pytest.approx((750,))


def test_idle_refinement_is_bounded_and_starts_again_after_a_frame():
    mapper = RecordingMapper()
    worker = make_worker(mapper, idle_refine_steps=4, max_idle_refine_steps=10)
    run_until_idle(worker)
    assert mapper.num_refined == 0  # there is nothing to refine before the first frame
    worker.frames.put(observation(1))
    run_until_idle(worker)
    assert mapper.num_refined == 10
    worker.frames.put(observation(2))
    run_until_idle(worker)
    assert mapper.num_refined == 20


def test_failing_refinement_neither_ends_the_worker_nor_loops():
    class Stubborn(RecordingMapper):
        def refine(self, num_steps):
            super().refine(num_steps)
            raise RuntimeError("diverged")

    worker = make_worker(Stubborn(), idle_refine_steps=1)
    worker.frames.put(observation(1))
    run_until_idle(worker)
    assert worker._mapper.num_refined == 1
    assert "diverged" in worker.last_error


def test_a_paused_worker_answers_tasks_lets_frames_wait_and_goes_on():
    mapper = RecordingMapper()
    worker = make_worker(mapper)
    worker.pause()
    worker.frames.put(observation(1))
    answer = worker.submit(lambda m: len(m.stamps))
    run_until_idle(worker)
    assert answer.result(0) == 0
    assert worker.frames.num_queued == 1
    worker.resume()
    worker.frames.put(observation(2))
    run_until_idle(worker)
    assert mapper.stamps == [1, 2]


def test_a_failing_task_tells_its_caller_and_leaves_the_map():
    mapper = RecordingMapper()
    worker = make_worker(mapper)
    worker.frames.put(observation(1))
    failed = worker.submit(lambda m: 1 / 0)
    run_until_idle(worker)
    with pytest.raises(ZeroDivisionError):
        failed.result(0)
    assert mapper.stamps == [1]


def test_a_cancelled_task_is_not_run():
    worker, ran = make_worker(), []
    future = worker.submit(lambda m: ran.append(1))
    assert future.cancel()
    run_until_idle(worker)
    assert ran == []


def test_one_thread_owns_the_map_through_tasks_frames_and_failures():
    mapper = RecordingMapper({2: RuntimeError("boom")})
    worker, done = make_worker(mapper), threading.Event()
    worker.on_integrated = lambda frame, report: done.set() if frame.stamp_ns == 3 else None
    worker.start()
    try:
        task_thread = worker.submit(lambda m: threading.get_ident()).result(TIMEOUT_S)
        for stamp_ns in (1, 2, 3):
            worker.frames.put(observation(stamp_ns))
        assert done.wait(TIMEOUT_S)
        assert worker.is_alive
    finally:
        worker.stop(TIMEOUT_S)
    assert mapper.stamps == [1, 3]
    assert mapper.threads == {task_thread}
    assert task_thread != threading.get_ident()
    assert not worker.is_alive


def test_a_failing_callback_does_not_end_the_thread():
    worker = make_worker()
    worker.on_integrated = lambda frame, report: 1 / 0
    worker.start()
    try:
        worker.frames.put(observation(1))
        assert worker.submit(lambda m: m.stamps).result(TIMEOUT_S) in ([], [1])
        assert worker.submit(lambda m: "alive").result(TIMEOUT_S) == "alive"
    finally:
        worker.stop(TIMEOUT_S)


def test_stopping_waits_for_the_task_in_hand_and_cancels_the_others():
    worker, started, release = make_worker(), threading.Event(), threading.Event()

    def slow(mapper):
        started.set()
        release.wait(TIMEOUT_S)
        return "finished"

    worker.start()
    first, second = worker.submit(slow), worker.submit(lambda m: None)
    assert started.wait(TIMEOUT_S)
    with pytest.raises(TimeoutError, match="still busy"):
        worker.stop(timeout_s=0.01)
    release.set()
    worker.stop(TIMEOUT_S)
    assert first.result(0) == "finished"
    assert second.cancelled()
    with pytest.raises(RuntimeError, match="stopped"):
        worker.submit(lambda m: None)


def test_rolling_percentiles_against_numpy():
    values = np.random.default_rng(0).exponential(size=300)
    rolling = RollingPercentiles(capacity=100)
    assert rolling.percentiles() == (0, 0, 0)
    for value in values:
        rolling.add(value)
    assert rolling.percentiles() == pytest.approx(np.percentile(values[-100:], (50, 90, 99)))


def test_rate_over_a_window():
    clock = ManualClock()
    meter = RateMeter(window_s=1.0, clock=clock)
    for _ in range(20):
        clock.now_s += 0.1
        meter.tick()
    assert meter.rate_hz() == pytest.approx(10.0)
    clock.now_s += 5.0
    assert meter.rate_hz() == 0.0
