"""Labels that come later: the 2D model works in a process of its own while the mapper goes on with geometry."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from panoptic_mapper.config import Config, param, section
from panoptic_mapper.frame import Frame, Segmentation
from panoptic_mapper.label_space import LabelSpace
from panoptic_mapper.segmenters.base import Segmenter
from panoptic_mapper.segmenters.label_queue import LabelQueue, LabelQueueConfig, LabelRequest
from panoptic_mapper.segmenters.process import SegmenterFailure, SegmenterProcess
from panoptic_mapper.timing import Clock, RollingPercentiles
from panoptic_mapper.vocabulary import label_space_of_words

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 2  # on one frame: a crash may have had another cause, but a frame must not be fatal for ever
MAX_FAILURES_IN_A_ROW = 3  # of a process that still answers, before it is replaced: its state may be spoiled


@dataclass(frozen=True)
class BackgroundConfig(Config):
    """A segmenter that runs beside the mapper: patience with it, and what follows a failure."""

    timeout_s: float = param(20.0, "A model that takes longer for a frame is taken to hang, and is replaced, s.", gt=0)
    start_wait_s: float = param(
        30.0,
        "Frames wait at most so long for the first start of the model; then mapping begins with geometry, s.",
        ge=0,
    )
    start_timeout_s: float = param(300.0, "The same for its start: loading, warming up, compiling, s.", gt=0)
    retry_s: float = param(1.0, "Wait before the model is started again; doubled with every failure in a row, s.", gt=0)
    max_retry_s: float = param(60.0, "Longest such wait, s.", gt=0)
    niceness: int = param(5, "By how much its process yields to the mapper on a busy CPU.", ge=0, le=19)
    queue: LabelQueueConfig = section(LabelQueueConfig)


@dataclass(frozen=True)
class LateLabels:
    """The labels of an earlier frame, to be given to the keyframe of that stamp."""

    stamp_ns: int
    segmentation: Segmentation
    label_space: LabelSpace  # what the class indices mean


@dataclass(frozen=True)
class BackgroundStatus:
    """How the 2D model is doing."""

    state: str  # "running", "starting", "retrying" (after a failure), "stopped"
    num_waiting: int  # frames that wait for it
    num_labelled: int
    given_up: dict[str, int]  # frames that stay without labels: "queue_full", "too_old", "failed"
    failures: dict[str, int]  # by kind, see `SegmenterFailure`
    last_failure: str
    model_ms: float  # median time of the model for a frame
    delay_ms: float  # median time from a frame to its labels


class BackgroundSegmenter:
    """Takes frames at once and gives their labels later, by `on_labels`, from a thread of its own.

    Whatever the model does costs labels only: where it crashes, hangs or gives garbage its process is replaced, after a
    wait that grows from failure to failure, and the frames in between wait or stay without labels. A model that is not
    ready after `start_wait_s` has no classes yet: labels bring theirs with them.

    Args:
        make: makes the segmenter in its process; pickled.

    Raises:
        ValueError: the segmenter's settings are wrong, or weights or run times are missing.
    """

    def __init__(self, make: Callable[[], Segmenter], config: BackgroundConfig, clock: Clock = time.monotonic) -> None:
        self.config = config
        self.on_labels: Callable[[LateLabels], None] = lambda labels: None
        self._make = make
        self._clock = clock
        self._queue = LabelQueue(config.queue)
        self._condition = threading.Condition()
        self._stopping = False
        self._failures: Counter[str] = Counter()
        self._failures_in_a_row = 0
        self._retry_at_s = 0.0
        self._last_failure = ""
        self._num_labelled = 0
        self._model_ms, self._delay_ms = RollingPercentiles(), RollingPercentiles()
        self._process: SegmenterProcess | None = None
        self._vocabulary: tuple[Sequence[str], Sequence[str]] | None = None  # that of the configuration
        self._has_vocabulary = True  # whether the process has it
        self._is_ready = False
        self.label_space = LabelSpace.from_classes((), is_open=True)
        self._first_start()
        self._thread = threading.Thread(target=self._run, name="labels", daemon=True)
        self._thread.start()

    def segment(self, frame: Frame) -> None:
        """Lets the frame wait for the model. Never blocks."""
        with self._condition:
            self._queue.put(LabelRequest(frame, self._clock()))
            self._condition.notify_all()

    def set_vocabulary(self, things: Sequence[str], stuff: Sequence[str]) -> None:
        """Looks for other words from the next frame on, whichever process then runs. Never blocks.

        Raises:
            ValueError: a word is wrong, or the segmenter has fixed classes; all is as before.
        """
        if not self.label_space.is_open:
            raise ValueError("vocabulary: the segmenter knows a fixed set of classes")
        label_space = label_space_of_words(things, stuff)
        with self._condition:
            self._vocabulary, self._has_vocabulary = (tuple(things), tuple(stuff)), False
            self.label_space = label_space

    def clear(self) -> None:
        """Forgets the frames that wait."""
        with self._condition:
            self._queue.clear()

    def status(self) -> BackgroundStatus:
        with self._condition:
            state = "running" if self._is_ready else "retrying" if self._failures_in_a_row else "starting"
            return BackgroundStatus(
                state="stopped" if self._stopping else state,
                num_waiting=len(self._queue),
                num_labelled=self._num_labelled,
                given_up=dict(+self._queue.given_up),
                failures=dict(self._failures),
                last_failure=self._last_failure,
                model_ms=self._model_ms.percentiles((50,))[0],
                delay_ms=self._delay_ms.percentiles((50,))[0],
            )

    def close(self) -> None:
        """Ends the model's process, also where it hangs, and the thread."""
        with self._condition:
            self._stopping = True
            self._condition.notify_all()
        process = self._process
        if process is not None:
            process.kill()
        self._thread.join()
        self._end_process()

    def _run(self) -> None:
        while True:
            with self._condition:
                while not self._stopping and (wait_s := self._wait_s()) != 0:
                    self._condition.wait(wait_s)
                if self._stopping:
                    return
                request = self._queue.take(self._clock()) if self._is_ready else None
            if not self._is_ready:
                self._restart()
            elif request is not None:
                self._label(request)

    def _wait_s(self) -> float | None:
        """How long there is nothing to do: until a frame may be labelled, or the model be started again."""
        if self._is_ready:
            return self._queue.wait_s(self._clock())
        return max(0.0, self._retry_at_s - self._clock())

    def _label(self, request: LabelRequest) -> None:
        process, start_s = self._process, self._clock()
        assert process is not None
        try:
            self._hand_vocabulary_over(process)
            segmentation, label_space = process.segment(request.frame, self.config.timeout_s)
        except Exception as error:  # also a failure of ours in handing the frame over
            self._note_failure(error)
            request.num_attempts += 1
            with self._condition:
                if request.num_attempts < MAX_ATTEMPTS:
                    self._queue.put(request)
                else:
                    self._queue.given_up["failed"] += 1
            return
        now_s = self._clock()
        self._failures_in_a_row = 0
        self._num_labelled += 1
        self._model_ms.add(1e3 * (now_s - start_s))
        self._delay_ms.add(1e3 * (now_s - request.arrival_s))
        if segmentation is not None:
            try:
                self.on_labels(LateLabels(request.frame.stamp_ns, segmentation, label_space))
            except Exception:
                logger.exception("handing labels over failed")

    def _hand_vocabulary_over(self, process: SegmenterProcess) -> None:
        with self._condition:
            words, self._has_vocabulary = None if self._has_vocabulary else self._vocabulary, True
        if words is not None:
            process.set_vocabulary(*words, self.config.timeout_s)

    def _first_start(self) -> None:
        """Starts the model and waits a little for it; wrong settings are told while nothing is lost yet."""
        try:
            self.label_space = self._started().wait_until_ready(self.config.start_wait_s)
            self._is_ready = True
        except SegmenterFailure as failure:
            if failure.kind == "refused":
                self._end_process()
                raise ValueError(str(failure)) from None
            if failure.kind != "hang":  # else it is still starting, and the thread goes on waiting for it
                self._note_failure(failure)

    def _restart(self) -> None:
        """Waits for the process that is starting, or for a new one."""
        try:
            process = self._process or self._started()
            label_space = process.wait_until_ready(self.config.start_timeout_s)
        except Exception as error:
            self._note_failure(error)
            return
        with self._condition:
            if self._vocabulary is None:
                self.label_space = label_space
            self._has_vocabulary = self._vocabulary is None
            self._is_ready = True
        logger.info("the 2D model runs")

    def _note_failure(self, error: Exception) -> None:
        """Counts a failure, and gives up the process where it is dead, hangs, or fails again and again."""
        kind = error.kind if isinstance(error, SegmenterFailure) else "error"
        with self._condition:
            if self._stopping:
                return
            self._failures[kind] += 1
            self._failures_in_a_row += 1
            self._last_failure = f"{kind}: {error}"
            is_spoiled = self._failures_in_a_row % MAX_FAILURES_IN_A_ROW == 0
        if self._is_ready and kind not in ("crash", "hang") and not is_spoiled:
            logger.warning("no labels for a keyframe, %s", self._last_failure)
            return
        wait_s = min(self.config.max_retry_s, self.config.retry_s * 2 ** min(self._failures_in_a_row - 1, 30))
        logger.error("geometry only, the 2D model is started again in %g s: %s", wait_s, self._last_failure)
        self._is_ready = False
        self._end_process()
        self._retry_at_s = self._clock() + wait_s

    def _started(self) -> SegmenterProcess:
        self._process = process = SegmenterProcess(self._make, self.config.niceness)
        if self._stopping:  # `close` may have come too early to see it
            process.kill()
        return process

    def _end_process(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.close()
