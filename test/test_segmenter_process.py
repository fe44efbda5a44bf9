"""A segmenter in a process of its own: its labels arrive unchanged, and whatever it does is a failure with a name."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from fake_segmenters import SPACE, Honest, Misbehaving, die, refuse, sleep

from panoptic_mapper.frame import Frame, PinholeCamera, Segmentation
from panoptic_mapper.segmenters.process import SegmenterFailure, SegmenterProcess
from panoptic_mapper.shared_memory import SharedMemory

TIMEOUT_S = 60.0  # of what must come
MISDEEDS = {
    "size": ("garbage", "expected the frame's size"),
    "class": ("garbage", "class index 5"),
    "type": ("garbage", "expected integer semantic"),
    "nan": ("garbage", "768 NaN"),
    "score": ("garbage", r"confidences in 0\.\.1, got 1\.5"),
    "negative": ("garbage", "negative class"),
    "shapes": ("garbage", "instance has shape"),
    "huge": ("garbage", "4000000 bytes"),
    "nothing of the kind": ("garbage", "no attribute"),
    "exception": ("error", "RuntimeError: cuDNN is in a bad mood"),
    "memory": ("out_of_memory", "no 3 GB left"),
    "cuda memory": ("out_of_memory", "Tried to allocate"),
}
BAD_STAMPS = {100 + i: how for i, how in enumerate(MISDEEDS)}


def frame_of(stamp_ns: int = 1, height: int = 24, width: int = 32) -> Frame:
    rng = np.random.default_rng(stamp_ns)
    semantic = rng.integers(0, len(SPACE), (height, width)).astype(np.int32)
    confidence = rng.random((height, width), dtype=np.float32)
    return Frame(
        stamp_ns=stamp_ns,
        color=rng.integers(0, 256, (height, width, 3), dtype=np.uint8)[..., ::-1],  # a view, as decoders give it
        depth=rng.random((height, width), dtype=np.float32),
        T_map_camera=np.eye(4),
        camera=PinholeCamera(30.0, 30.0, width / 2, height / 2, width, height),
        labels=Segmentation(semantic, (semantic == 1).astype(np.int32), confidence),
    )


def ready(make) -> SegmenterProcess:
    process = SegmenterProcess(make)
    assert process.wait_until_ready(TIMEOUT_S) == SPACE
    return process


def assert_same(labels: Segmentation | None, expected: Segmentation) -> None:
    assert labels is not None
    for name in ("semantic", "instance", "confidence"):
        np.testing.assert_array_equal(getattr(labels, name), getattr(expected, name))
        assert getattr(labels, name).dtype == getattr(expected, name).dtype


@pytest.fixture(scope="module")
def misbehaving() -> Iterator[SegmenterProcess]:
    process = ready(partial(Misbehaving, BAD_STAMPS))
    yield process
    process.close()


def test_labels_arrive_as_the_segmenter_gives_them_for_images_of_any_size() -> None:
    process = ready(Honest)
    try:
        kept = []
        for stamp_ns, size in enumerate([(24, 32), (48, 64), (24, 32), (1, 1)]):
            frame = frame_of(stamp_ns, *size)
            labels, label_space = process.segment(frame, TIMEOUT_S)
            assert label_space == SPACE
            kept.append((labels, frame.labels))
        for labels, expected in kept:  # what came later did not change what came before
            assert_same(labels, expected)
    finally:
        process.close()


@pytest.mark.parametrize("stamp_ns", BAD_STAMPS, ids=MISDEEDS)
def test_garbage_and_exceptions_are_told_and_the_next_frame_labelled(stamp_ns, misbehaving) -> None:
    kind, words = MISDEEDS[BAD_STAMPS[stamp_ns]]
    with pytest.raises(SegmenterFailure, match=words) as failure:
        misbehaving.segment(frame_of(stamp_ns), TIMEOUT_S)
    assert failure.value.kind == kind
    good = frame_of(2)
    assert_same(misbehaving.segment(good, TIMEOUT_S)[0], good.labels)


@pytest.mark.parametrize(
    ("how", "words"),
    [("exit", "status 3"), ("segfault", "SIGSEGV"), ("killed", "SIGKILL; the kernel does that where memory runs out")],
)
def test_a_crash_is_told_at_once_and_again(how, words) -> None:
    process = ready(partial(Misbehaving, {1: how}))
    try:
        for _ in range(2):
            with pytest.raises(SegmenterFailure, match=words) as failure:
                process.segment(frame_of(1), TIMEOUT_S)
            assert failure.value.kind == "crash"
    finally:
        process.close()


def test_a_hanging_model_is_given_up_after_the_timeout_and_ended_by_force() -> None:
    process = ready(partial(Misbehaving, {1: "hang"}))
    with pytest.raises(SegmenterFailure, match=r"no answer within 0\.1 s") as failure:
        process.segment(frame_of(1), timeout_s=0.1)
    assert failure.value.kind == "hang"
    process.close()
    assert process._process.returncode is not None


def test_a_function_of_a_script_is_refused_with_the_reason(monkeypatch) -> None:
    def make() -> Honest:
        return Honest()

    make.__module__, make.__qualname__ = "__main__", "make_in_a_script"
    monkeypatch.setattr(sys.modules["__main__"], "make_in_a_script", make, raising=False)
    process = SegmenterProcess(make)
    with pytest.raises(SegmenterFailure, match=r"can import, not one of a script .*make_in_a_script") as failure:
        process.wait_until_ready(TIMEOUT_S)
    assert failure.value.kind == "refused"
    process.close()


@pytest.mark.parametrize(
    ("make", "timeout_s", "kind", "words"),
    [
        (refuse, TIMEOUT_S, "refused", "no weights in /nowhere"),
        (die, TIMEOUT_S, "crash", "status 7"),
        (sleep, 0.1, "hang", "no answer"),
    ],
)
def test_a_segmenter_that_cannot_be_made_is_told(make, timeout_s, kind, words) -> None:
    process = SegmenterProcess(make)
    try:
        with pytest.raises(SegmenterFailure, match=words) as failure:
            process.wait_until_ready(timeout_s)
        assert failure.value.kind == kind
    finally:
        process.close()


def test_the_process_yields_to_others_and_outlives_an_interrupt_but_not_its_parent() -> None:
    process = SegmenterProcess(Honest, niceness=7)
    process.wait_until_ready(TIMEOUT_S)
    pid = process._process.pid
    stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    assert int(stat[16]) == 7  # field 19 of proc(5): nice
    assert Path(f"/proc/{pid}/oom_score_adj").read_text().strip() == "500"
    process._process.send_signal(signal.SIGINT)
    assert process.segment(frame_of(), TIMEOUT_S)[0] is not None
    process._connection.close()  # as the kernel does where the parent is killed
    assert process._process.wait(TIMEOUT_S) == 0


def test_shared_memory_grows_and_holds_arrays_apart() -> None:
    writer = SharedMemory()
    reader = SharedMemory(writer.fd)
    for shape in ((3,), (1000, 7), (0,), (2, 2)):
        values = [np.full(shape, 3, np.int16), np.asfortranarray(np.full(shape, 0.5)), "words"]
        back = reader.read(writer.write(values))
        assert back[2] == "words"
        for array, expected in zip(back[:2], values[:2], strict=True):
            np.testing.assert_array_equal(array, expected)
            array[...] = 0  # arrays of its own, writable
    gaps = np.arange(2000)[::2]
    parcel = writer.write(gaps)
    assert parcel.sizes == (gaps.nbytes,)
    np.testing.assert_array_equal(reader.read(parcel), gaps)
    writer.close()
