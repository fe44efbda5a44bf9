"""The harness of the accuracy report: jobs, store, schedule, tables, sections; on tiny worlds and made-up records."""

import dataclasses
import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.ablation import EXPERIMENTS, noise, over_time, parts, plots, recall, report, schedule
from benchmarks.ablation.__main__ import main
from benchmarks.ablation.context import Context, Observed, noise_config
from benchmarks.ablation.job import Job, Record
from benchmarks.ablation.measure import METHODS, held_out
from benchmarks.ablation.run import measured
from benchmarks.ablation.store import Store
from benchmarks.ablation.tables import (
    MISSING,
    gain_sentence,
    metric_of,
    metric_table,
    scene_table,
    spread,
    spread_of_all,
)
from panoptic_mapper.datasets.noise import NOISE_LEVELS, NoiseConfig
from panoptic_mapper.segmenters.dataset import DatasetSegmenter

TINY = "synthetic:num_frames=10,width=48,height=36"
CONTEXT = Context(Path("nowhere"), "cpu", 48)
SCENES, SEEDS = ("sim_aws_house", "sim_apt_flat"), (0, 1, 2)
MODULES = [importlib.import_module(f"benchmarks.ablation.{name}") for name in EXPERIMENTS]

# Stands for python: measures nothing, fails where the scene says so, and tells what it was given.
FAKE = """
import json, os, sys
task = json.loads(sys.argv[-1])
if task["job"]["scene"] == "broken":
    sys.exit("the scene is broken")
result = {"gpu": os.environ.get("CUDA_VISIBLE_DEVICES"), "module": sys.argv[2]}
print("words of a library")
print(json.dumps({"key": task["job"]["scene"] + str(task["job"]["seed"]), "job": task["job"], "result": result,
                  "machine": {}, "wall_s": 0}))
"""


def made_up(job, value=50.0, **result):
    """A record whose every metric is `value`."""
    numbers = dict.fromkeys(("pq", "miou", "mcov", "pq_frame", "psnr", "depth_l1_m", "id_switches", "map_s"), value)
    machine = {"device": "an abacus", "torch": "0", "commit": "abc"}
    return Record(job.key(320), job, numbers | result, machine, 1.0)


def runs(values, scene="a", method="ours"):
    """Records of one scene, seed after seed."""
    return [made_up(Job("noise", scene, method, seed=i), value) for i, value in enumerate(values)]


@pytest.fixture
def fake_python(tmp_path):
    (tmp_path / "fake.py").write_text(FAKE)
    return (sys.executable, str(tmp_path / "fake.py"))


def test_jobs_that_differ_in_anything_have_keys_of_their_own():
    jobs = [Job("noise", "a"), Job("parts", "a"), Job("noise", "b"), Job("noise", "a", "tracker")]
    jobs += [Job("noise", "a", noise="hard"), Job("noise", "a", seed=1), Job("noise", "a", overrides=("x=1",))]
    keys = {job.key(width) for job in jobs for width in (320, 640)}
    assert len(keys) == 2 * len(jobs)


def test_records_survive_the_store(tmp_path):
    path = tmp_path / "deep" / "store.jsonl"
    first, second = (made_up(Job("noise", "a", seed=s, overrides=("x=1",)), s) for s in (0, 1))
    store = Store(path)
    for record in (first, second, dataclasses.replace(first, wall_s=7.0)):
        store.append(record)
    assert Store(path).records == {first.key: dataclasses.replace(first, wall_s=7.0), second.key: second}


def test_a_record_that_was_cut_off_is_left_out_and_written_over(tmp_path, caplog):
    path = tmp_path / "store.jsonl"
    first, second = (made_up(Job("noise", "a", seed=s)) for s in (0, 1))
    path.write_text(first.to_json() + "\n" + second.to_json()[:30])
    store = Store(path)
    assert list(store.records) == [first.key]
    assert "cut off" in caplog.text
    store.append(second)
    assert Store(path).records == {first.key: first, second.key: second}


def test_a_line_that_is_no_record_is_an_error(tmp_path):
    path = tmp_path / "store.jsonl"
    path.write_text("no record\n" + made_up(Job("noise", "a")).to_json() + "\n")
    with pytest.raises(ValueError, match="line 1: not a record"):
        Store(path)


def test_noise_is_a_level_or_fields():
    assert noise_config("hard") == NOISE_LEVELS["hard"]
    assert noise_config("drop=0.3,flip=0.1") == NoiseConfig(drop=0.3, flip=0.1)


def test_every_method_sees_the_labels_that_the_dataset_segmenter_gives():
    job = Job("noise", TINY, noise="hard", seed=3)
    dataset = CONTEXT.dataset(job)
    frame = dataset[2]
    seen = CONTEXT.observed(job, dataset)[2]
    expected = DatasetSegmenter(dataset.label_space, 3, NOISE_LEVELS["hard"]).segment(frame)
    assert np.array_equal(seen.labels.semantic, expected.semantic)
    assert np.array_equal(seen.labels.instance, expected.instance)
    assert not np.array_equal(seen.labels.semantic, frame.labels.semantic)


@pytest.mark.parametrize("method", ["ours", "tracker", "tracker+depth", "voxels", "voxels+depth", "truth+depth"])
def test_a_method_is_measured_on_held_out_frames(method, monkeypatch):
    read = []
    get = Observed.__getitem__
    monkeypatch.setattr(Observed, "__getitem__", lambda self, index: read.append(index) or get(self, index))
    job = Job("noise", TINY, method, overrides=("mapper.optimizer.steps_per_keyframe=1",))
    result = held_out(job, CONTEXT)
    assert sorted(set(read)) == [i for i in range(10) if i != 4]  # frame 4 is held out
    assert result["frames"] == 1
    assert 10 < result["pq"] <= 100
    assert result["counts"]
    assert json.loads(json.dumps(result)) == result


class OtherIds:
    """A sequence whose true objects have other ids in every frame that is not held out."""

    def __init__(self, dataset):
        self.name, self.label_space, self._dataset = dataset.name, dataset.label_space, dataset

    def __len__(self):
        return len(self._dataset)

    def __getitem__(self, index):
        frame = self._dataset[index]
        if index == 4:
            return frame
        ids = np.append(0, 1 + np.random.default_rng(index).permutation(100)).astype(np.int32)
        return dataclasses.replace(frame, labels=dataclasses.replace(frame.labels, instance=ids[frame.labels.instance]))


@pytest.mark.parametrize("method", METHODS)
def test_only_true_association_knows_true_ids(method, monkeypatch):
    job = Job("noise", TINY, method, noise="moderate", overrides=("mapper.optimizer.steps_per_keyframe=1",))
    dataset = CONTEXT.dataset(job)
    found = []
    for given in (dataset, OtherIds(dataset)):
        monkeypatch.setattr(Context, "dataset", lambda self, job, given=given: given)
        found.append(held_out(job, CONTEXT) | {"map_s": 0})
    assert (found[0] == found[1]) == (method != "truth")


def test_a_record_tells_what_it_was_made_on():
    record = measured(Job("noise", TINY, "tracker"), CONTEXT)
    assert record.key == record.job.key(48)
    assert record.machine["device"]
    assert record.machine["commit"]
    assert Record.from_json(record.to_json()) == record


def test_the_curve_over_time_ends_with_the_finished_map():
    settings = ("mapper.optimizer.steps_per_keyframe=1",)
    curve = over_time.run(Job("over_time", TINY, overrides=settings), CONTEXT)["curve"]
    whole = held_out(Job("noise", TINY, overrides=settings), CONTEXT)
    assert curve[-1]["mapped_frames"] == 9
    assert curve[-1]["pq"] == whole["pq"]


def test_only_missing_jobs_run_and_failures_are_told(tmp_path, fake_python, caplog):
    store = Store(tmp_path / "store.jsonl")
    done = Job("noise", "done")
    store.append(made_up(done))
    jobs = [done, Job("noise", "new"), Job("noise", "broken"), Job("noise", "new")]
    context = dataclasses.replace(CONTEXT, width_px=320)
    failed = schedule.run_missing(jobs, context, store, schedule.Plan(2, fake_python))
    assert failed == [jobs[2]]
    assert "the scene is broken" in caplog.text
    assert {record.job.scene for record in store.records.values()} == {"done", "new"}
    assert len((tmp_path / "store.jsonl").read_text().splitlines()) == 2


def test_runs_are_dealt_over_the_gpus(fake_python):
    plan = schedule.Plan(4, fake_python, num_gpus=2)
    records = [schedule.run_job(Job("noise", "a"), CONTEXT, plan, slot) for slot in range(3)]
    assert [record.result["gpu"] for record in records] == ["0", "1", "0"]
    assert records[0].result["module"] == "benchmarks.ablation.run"


def test_nothing_begins_after_the_time_is_up(tmp_path, fake_python):
    store = Store(tmp_path / "store.jsonl")
    plan = schedule.Plan(1, fake_python, stop_after_s=-1.0)
    assert schedule.run_missing([Job("noise", "new")], CONTEXT, store, plan) == []
    assert store.records == {}


def test_a_spread_is_that_of_the_seeds():
    records = runs([90, 92, 97], "a") + runs([80, 84, 85], "b")
    assert spread(records, "pq", "a").text() == "93.0 ± 3.6"
    over_scenes = spread(records, "pq")  # of 85, 88, 91
    assert (over_scenes.mean, over_scenes.std, over_scenes.num_seeds) == (88, 3, 3)
    assert spread(records, "nothing") is None
    assert spread([], "pq") is None


def test_a_seed_that_lacks_a_scene_has_no_mean_over_scenes():
    found = spread(runs([90, 10], "a") + runs([80], "b"), "pq")
    assert found.mean == 85
    assert found.text(num_asked=2) == "85.0 (1 of 2 seeds)"


def test_numbers_that_lie_deeper_are_found():
    record = made_up(Job("noise", "a"), counts={"queries": 7})
    assert metric_of(record, "counts.queries") == 7
    assert metric_of(record, "counts.voxels") is None
    assert metric_of(record, "pq.deeper") is None


def test_a_row_that_lacks_a_scene_of_the_others_has_no_mean():
    rows = {"one": runs([90], "a") + runs([80], "b"), "two": runs([70], "a"), "three": []}
    found = spread_of_all(rows, "pq")
    assert found["one"].mean == 85
    assert found["two"] is found["three"] is None
    assert spread_of_all({"two": rows["two"]}, "pq")["two"].mean == 70  # of the only scene that there is


def test_tables_show_what_is_missing():
    rows = {"one": runs([90, 92], "a") + runs([80, 82], "b"), "two": runs([70], "a"), "three": []}
    lines = scene_table(rows, "pq").splitlines()
    assert lines[0] == "| method | a | b | all scenes |"
    assert lines[2] == "| one | 91.0 ± 1.4 | 81.0 ± 1.4 | 86.0 ± 1.4 |"
    assert lines[3] == f"| two | 70.0 (1 of 2 seeds) | {MISSING} | {MISSING} |"
    assert lines[4] == f"| three | {MISSING} | {MISSING} | {MISSING} |"
    assert metric_table(rows, {"pq": ".0f"}).splitlines()[2:] == [
        "| one | 86 ± 1 |",
        f"| two | {MISSING} |",
        f"| three | {MISSING} |",
    ]


@pytest.mark.parametrize(
    ("with_it", "without", "words"),
    [
        ([90, 91, 92], [85, 86, 87], "+5.0 PQ^scene@0.5 (86.0 without, 91.0 with). This is a gain larger than"),
        ([85, 86, 87], [90, 91, 92], "This is a loss larger than"),
        ([85, 86, 87], [85.5, 86, 86], "no gain is shown"),
        ([90], [80], "one seed alone has no spread"),
        ([90], [], MISSING),
    ],
)
def test_a_sentence_says_whether_a_gain_is_more_than_the_spread(with_it, without, words):
    assert words in gain_sentence("Part", runs(with_it), runs(without))


def test_runs_of_different_states_of_the_code_show_no_gain():
    with_it, without = runs([90, 91, 92]), runs([85, 86, 87])
    without[1] = dataclasses.replace(without[1], machine=without[1].machine | {"commit": "other"})
    sentence = gain_sentence("Part", with_it, without)
    assert sentence.startswith("Part: +5.0 PQ^scene@0.5 (86.0 without, 91.0 with), of different states of the code: ")
    assert "spread" not in sentence


def test_a_gain_is_that_of_the_runs_that_both_have():
    assert "+1.0" in gain_sentence("Part", runs([90, 91, 0]), runs([89, 90]))


def test_missing_bars_and_points_leave_gaps():
    _, (ax,) = plots.figure()
    value = spread(runs([90, 92]), "pq")
    plots.bars(ax, ["x", "y"], {"one": [value, None], "two": [value, value]})
    assert len(ax.patches) == 3
    plots.curve(ax, [1, 2, 3], [value, None, value], "curve")
    assert ax.lines[-1].get_xdata().tolist() == [1, 3]


@pytest.mark.parametrize("module", MODULES, ids=EXPERIMENTS)
def test_an_experiment_keeps_to_the_interface(module, tmp_path):
    jobs = module.jobs(SCENES, SEEDS)
    assert jobs
    assert len(set(jobs)) == len(jobs)
    assert {job.experiment for job in jobs} <= set(EXPERIMENTS)
    for job in jobs:
        noise_config(job.noise)
        CONTEXT.build_config(job)
    text = module.report([], tmp_path)
    assert text.startswith("## ")


@pytest.mark.parametrize("module", [noise, parts, recall], ids=lambda m: m.__name__)
def test_a_whole_section_misses_nothing(module, tmp_path):
    counts = {"counts": {"queries": 5}}
    text = module.report([made_up(job, 10.0 + job.seed, **counts) for job in module.jobs(SCENES, SEEDS)], tmp_path)
    assert MISSING not in text
    assert ("11.0 ± 1.0" if module is not recall else "10.0 (1 seed)") in text
    (picture,) = tmp_path.glob("accuracy_*.png")
    assert f"images/{picture.name}" in text


def test_the_lead_is_told_only_when_all_were_measured():
    values = {"this mapper": 90.0, "mask tracker": 70.0, "voxel voting": 75.0}
    rows = {n: [made_up(noise.job(n, "clean", "a", 0), v)] for n, v in values.items()}
    assert noise.lead_sentence("clean", rows).endswith("the better baseline (voxel voting) 75.0: +15.0 PQ.")
    assert "not all of" in noise.lead_sentence("clean", rows | {"voxel voting": []})
    knowing = {n: [made_up(noise.job(n, "clean", "a", 0), 99.0)] for n, (m, _) in noise.METHODS.items() if "+" in m}
    assert "voxel voting, true association" in knowing
    assert noise.lead_sentence("clean", rows | knowing) == noise.lead_sentence("clean", rows)
    elsewhere = [made_up(noise.job("voxel voting", "clean", "b", 0), 75.0)]
    assert "not all of" in noise.lead_sentence("clean", rows | {"voxel voting": elsewhere})


def test_the_report_has_the_counts_and_the_conclusions(tmp_path):
    (tmp_path / "words.md").write_text("On top.\n\n## noise\n\nBelow the noise.\n")
    job = noise.job("this mapper", "clean", "a", 0)
    record = made_up(job)
    path = tmp_path / "accuracy.md"
    report.write_report(path, {"noise": [job, Job("noise", "b")]}, {record.key: record}, 320, tmp_path / "words.md")
    text = path.read_text()
    assert text.index("On top.") < text.index("## How it was made") < text.index("Below the noise.")
    assert text.index("*1 of 2 runs measured.*") < text.index("Below the noise.") < text.index("## Parts")
    assert "an abacus" in text


def test_the_command_writes_the_report_without_running(tmp_path, capsys):
    options = [
        "--store",
        str(tmp_path / "s.jsonl"),
        "--report",
        str(tmp_path / "r.md"),
        "--scenes",
        "a",
        "--seeds",
        "0",
    ]
    assert main([*options, "--report-only"]) == 0
    assert "## Label noise" in (tmp_path / "r.md").read_text()
    assert main([*options, "--list", "--only", "recall"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(recall.SHARES) * len(recall.METHODS)


def test_the_command_runs_what_is_missing(tmp_path, fake_python):
    options = ["--store", str(tmp_path / "s.jsonl"), "--report", str(tmp_path / "r.md"), "--only", "iterations"]
    launcher = " ".join(fake_python)
    assert main([*options, "--scenes", "a", "--seeds", "0", "--launcher", launcher]) == 0
    assert (tmp_path / "s.jsonl").stat().st_size > 0
    assert main([*options, "--scenes", "broken", "--seeds", "0", "--launcher", launcher]) == 1
