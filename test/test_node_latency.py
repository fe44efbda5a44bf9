"""The benchmark of the node's latency, small: real processes that talk through DDS."""

import json

import pytest

pytest.importorskip("panoptic_mapper.msg", reason="ROS 2 or the built messages are not installed")
from benchmarks import node_latency

pytestmark = [pytest.mark.ros, pytest.mark.slow]


def test_every_frame_is_accounted_for_and_shown_after_it_was_played(tmp_path):
    data = "synthetic:num_frames=12,width=160,height=120"
    settings = ["--set", "mapper.image_width_px=80", "--set", "mapper.optimizer.frame_budget_ms=1"]
    words = ["--data", data, "--warm-up", "2", "--rate", "0.2", "--device", "cpu", "--out", str(tmp_path), *settings]
    measured = node_latency.main(words)
    assert measured["frames"] == measured["frames_received"] == 12
    assert measured["frames_integrated"] + sum(measured["drops"].values()) == 12
    assert 3 < measured["frames_per_s_played"] < 9  # 6 frames/s were asked for
    for topic in ("semantic_cloud", "objects"):
        latencies = measured["topics"][topic]["latency_ms"]
        assert 1 < latencies["p50"] <= latencies["p99"] <= latencies["p100"] < 60_000
        assert 1 <= measured["topics"][topic]["frames_shown_first"] <= 12
    assert json.loads((tmp_path / "node_latency.json").read_text()) == measured
    assert "image stamp to message, p99" in (tmp_path / "node_latency.md").read_text()
