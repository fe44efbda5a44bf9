"""The first three experiments of the paper: what they measure, against numbers known by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from small_room import CAMERA, SPACE, wall_frame

from benchmarks.ablation import attention_memory, lighting, query_saturation
from benchmarks.ablation.context import Context
from benchmarks.ablation.job import Job, Record
from benchmarks.ablation.memory import kept_bytes, peak_bytes
from panoptic_mapper.snapshot import PanopticView

CPU = torch.device("cpu")


def record(job: Job, result: dict) -> Record:
    return Record(job.key(320), job, result, {"device": "a CPU", "commit": "abc"}, 1.0)


def test_the_peak_is_that_of_what_is_alive_at_a_time() -> None:
    def run() -> None:
        a = torch.zeros(1_000_000)
        b = torch.zeros(500_000)
        del a
        c = torch.zeros(750_000)
        del b, c

    run()
    assert peak_bytes(run, CPU) == pytest.approx(4 * 1_500_000, rel=0.01)


def test_what_the_backward_pass_needs_is_counted_once() -> None:
    x = torch.ones(1000, requires_grad=True)

    def run() -> torch.Tensor:
        y = x.exp()  # keeps y
        return (y * y).sum()  # keeps y, twice

    assert kept_bytes(run) == 4000


def test_global_attention_keeps_more_and_the_map_stays_as_it_is() -> None:
    world = "synthetic:num_rooms=2,num_frames=16,width=48,height=36"
    job = Job("attention_memory", world, overrides=("mapper.optimizer.steps_per_keyframe=0",))
    result = attention_memory.run(job, Context(Path(), "cpu", 48))
    assert result["visible"] < result["gaussians"]
    assert 0 < result["queries_in_view"] < result["queries"]
    local_pairs = result["visible"] * result["queries_in_view"]
    more_bytes = 4 * (result["gaussians"] * result["queries"] - local_pairs)  # of one tensor of distributions
    for measure in attention_memory.MEASURES:
        assert result["global"][measure] > result["local"][measure] + more_bytes


def test_objects_count_as_seen_with_enough_pixels_that_have_depth() -> None:
    frame = wall_frame()  # instances 5 and 3, 480 pixels each
    frame.depth[:, :20] = 0
    frame.depth[:5, :2] = 2.0
    assert query_saturation.objects_in(frame, 10) == {3, 5}
    assert query_saturation.objects_in(frame, 11) == {3}


@pytest.mark.parametrize(
    ("living", "share"), [([20, 20, 20, 20], 0.25), ([10, 19, 20, 20], 0.5), ([20, 15, 21, 20], 0.75)]
)
def test_saturation_is_where_the_number_stays(living: list[int], share: float) -> None:
    assert query_saturation.saturated_at({"living": living, "frames": [10, 20, 30, 40]}) == share


class WallRenderer:
    """Renders the wall with its labels, the left ten columns a metre too near and as of class 2."""

    label_space = SPACE

    def render(self, camera: object, T_map_camera: np.ndarray) -> PanopticView:
        frame = wall_frame()
        semantic, depth = frame.labels.semantic.copy(), frame.depth.copy()
        depth[:, :10] -= 1
        semantic[:6, :10] = 2
        alpha = np.ones_like(depth)
        return PanopticView(frame.color, depth, alpha, semantic, frame.labels.instance)


def test_accuracy_off_the_surface_counts_pixels_with_wrong_depth() -> None:
    found = lighting.off_surface(WallRenderer(), [wall_frame()], [0], Context(Path(), "cpu", CAMERA.width))
    assert found["off_surface_share"] == pytest.approx(25)  # 10 of 40 columns
    assert found["off_surface_accuracy"] == pytest.approx(80)  # 24 of 30 rows


def test_reports_say_what_is_missing_and_show_what_is_there(tmp_path: Path) -> None:
    for experiment in (lighting, attention_memory, query_saturation):
        text = experiment.report([], tmp_path)
        assert text.startswith("## ")
        assert "missing" in text
    jobs = lighting.jobs([], [0]) + lighting.jobs([], [1])
    assert len(jobs) == len(set(jobs))
    values = {"label": 90.0, "feature": 80.0}
    records = [
        record(job, {"pq": values[job.overrides[0].partition("=")[2]] + job.seed, "miou": 70.0, "floaters": 12})
        for job in jobs
    ]
    text = lighting.report(records, tmp_path)
    assert text.count("| label | 90.5 ± 0.7 | 70.0 ± 0.0 | missing | missing | 12 ± 0 | missing |") == 4
    assert text.count("| feature | 80.5 ± 0.7 |") == 4
    assert "+10.0 PQ^scene@0.5" in text
    assert (tmp_path / "accuracy_lighting.png").stat().st_size > 0
