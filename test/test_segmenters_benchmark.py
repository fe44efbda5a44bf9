"""The benchmark of panoptic networks runs, with networks small enough for a CPU."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("transformers")

from tiny_panoptic_models import MAKERS, class_names

from benchmarks import segmenters_gpu


def test_rows_of_the_benchmark(monkeypatch) -> None:
    monkeypatch.setattr(segmenters_gpu, "INPUT_PX", 64)
    monkeypatch.setattr(segmenters_gpu, "NUM_SEGMENTS", 5)

    def broken():
        raise RuntimeError("cannot be built\nfor a reason")

    makers = {name: lambda name=name: MAKERS[name](class_names()) for name in ("eomt", "mask2former")}
    monkeypatch.setattr(segmenters_gpu, "MAKERS", makers)
    rows = segmenters_gpu.run_cases(segmenters_gpu.cases(makers, ["float32"], [False]), num_frames=2, device="cpu")
    assert [row["model"] for row in rows] == ["eomt", "mask2former"]
    for row in rows:
        assert 0 < row["segment_ms"] <= row["segment_p95_ms"]
        assert min(row["forward_ms"], row["batch4_ms_per_frame"], row["ready_s"]) > 0
        assert row["memory_mb"] is None
        assert 1 <= row["segments"] <= 5
    assert json.loads(json.dumps(rows)) == rows

    monkeypatch.setattr(segmenters_gpu, "measure", lambda *_: broken())
    (row,) = segmenters_gpu.run_cases([segmenters_gpu.Case("eomt", "float16", True)], 2, "cpu")
    assert row == {"model": "eomt", "dtype": "float16", "compile": True, "error": "RuntimeError: cannot be built"}
