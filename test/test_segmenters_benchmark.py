"""The benchmark of panoptic networks runs, with networks small enough for a CPU."""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

from tiny_panoptic_models import MAKERS, class_names

from benchmarks import segmenters_gpu
from benchmarks.segmenters_gpu import Case
from panoptic_mapper.segmenters import huggingface


@pytest.fixture(autouse=True)
def small_models(monkeypatch) -> None:
    makers = {name: lambda name=name: MAKERS[name](class_names()) for name in ("eomt", "mask2former")}
    monkeypatch.setattr(segmenters_gpu, "INPUT_PX", 64)
    monkeypatch.setattr(segmenters_gpu, "NUM_SEGMENTS", 5)
    monkeypatch.setattr(segmenters_gpu, "MAKERS", makers)


def merged(parts: Iterator[dict[str, Any]]) -> dict[str, Any]:
    return {key: value for part in parts for key, value in part.items()}


@pytest.mark.parametrize("model", ["eomt", "mask2former"])
def test_what_is_measured(model, tmp_path) -> None:
    segmenters_gpu.save_random(segmenters_gpu.MAKERS[model], tmp_path)
    row = merged(segmenters_gpu.measure(tmp_path, Case(model, "float32", False), 2, "cpu"))
    assert 0 < row["segment_ms"] <= row["segment_p95_ms"]
    assert min(row["forward_ms"], row["batch4_ms_per_frame"], row["load_s"], row["first_s"]) > 0
    assert row["memory_mb"] is None
    assert 1 <= row["segments"] <= 5
    assert json.loads(json.dumps(row)) == row


def test_compiling_is_a_time_of_its_own(monkeypatch, tmp_path) -> None:
    compiled_s = 0.3

    def compile_(model, **options):
        done = []

        def run(**inputs):
            if not done:
                time.sleep(compiled_s)
                done.append(True)
            return model(**inputs)

        return run

    monkeypatch.setattr(huggingface.torch, "compile", compile_)
    segmenters_gpu.save_random(segmenters_gpu.MAKERS["eomt"], tmp_path)
    parts = list(segmenters_gpu.measure(tmp_path, Case("eomt", "float32", True), 2, "cpu"))
    assert [part["doing"] for part in parts] == ["compiling", "forward", "segment", "batch"]
    row = merged(iter(parts))
    assert row["first_s"] > compiled_s
    assert row["forward_ms"] < 1e3 * compiled_s
    assert "batch4_ms_per_frame" not in row


def fake_measure(folder: Path, case: Case, num_frames: int, device: str) -> Iterator[dict[str, Any]]:
    """Does what the name of the model's type of numbers says."""
    yield {"load_s": 1.0, "doing": "compiling"}
    if case.dtype == "hang":
        time.sleep(600)
    if case.dtype == "exit":
        raise SystemExit(3)
    if case.dtype == "fail":
        raise RuntimeError("cannot be compiled\nfor a reason")
    yield {"forward_ms": float(num_frames), "doing": "segment"}


def test_an_exception_ends_a_case_with_its_first_line(tmp_path) -> None:
    receiver, sender = multiprocessing.Pipe(duplex=False)
    segmenters_gpu._send_parts(sender, fake_measure, (tmp_path, Case("eomt", "fail", True), 7, "cpu"))
    sender.close()
    parts = []
    while (part := receiver.recv()) is not None:
        parts.append(part)
    assert parts[1:] == [{"load_s": 1.0, "doing": "compiling"}, {"error": "RuntimeError: cannot be compiled"}]


def test_what_was_measured_is_kept_where_a_case_hangs_or_crashes() -> None:
    wanted = segmenters_gpu.cases(["eomt"], ["hang", "exit", "fine"], [True])
    snapshots: list[str] = []
    rows = segmenters_gpu.run_cases(
        wanted, 7, "cpu", limit_s=1.0, on_change=lambda rows: snapshots.append(json.dumps(rows)), measure=fake_measure
    )
    hung, exited, fine = rows
    begun = {"model": "eomt", "compile": True, "load_s": 1.0, "doing": "compiling"}
    assert hung == begun | {"dtype": "hang", "error": "ended after 1 s"}
    assert exited == begun | {"dtype": "exit", "error": "its process ended with code 3"}
    assert fine == {"model": "eomt", "compile": True, "dtype": "fine", "load_s": 1.0, "forward_ms": 7.0}
    assert json.loads(snapshots[1]) == [begun | {"dtype": "hang"}]  # before it was ended
    assert json.loads(snapshots[-1]) == rows
