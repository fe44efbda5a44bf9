"""The demonstration at a small size: what it leaves behind, and how it fails."""

import json

import pytest

pytest.importorskip("panoptic_mapper.msg", reason="ROS 2 or the built messages are not installed")
from panoptic_mapper.datasets import open_dataset
from panoptic_mapper.datasets.synthetic import SyntheticConfig, SyntheticRoom
from panoptic_mapper.results import load_mapper
from panoptic_mapper.ros.demo import run_demo

pytestmark = [pytest.mark.ros, pytest.mark.slow]

WORLD = SyntheticConfig(width=80, height=60, num_frames=16)
QUICK = {"mapper.optimizer.steps_per_keyframe": 2, "device": "cpu"}


def test_the_demonstration_leaves_map_objects_report_and_picture(tmp_path):
    report = run_demo(tmp_path, WORLD, QUICK)
    assert json.loads((tmp_path / "report.json").read_text()).keys() == report.keys()
    assert report["ros"]["frames_integrated"] == report["frames"] == 14
    assert report["ros"]["drops"] == {}
    assert report["test"]["frames"] == 2
    assert report["test"]["pq"] > 30  # with 60 rows and hardly any optimisation; an empty or shifted map has 0
    objects = json.loads((tmp_path / "objects.json").read_text())
    assert [o["id"] for o in objects] == [o.id for o in load_mapper(tmp_path / "map.pmap").objects()]
    assert (tmp_path / "overview.png").stat().st_size > 10_000
    assert (tmp_path / "view_from_node.png").is_file()
    # Frames 4 and 12 are held out.
    room, bag = SyntheticRoom(WORLD), open_dataset(tmp_path / "bag")
    mapped = [i for i in range(16) if i not in (4, 12)]
    assert [bag[k].stamp_ns - 10**9 for k in range(len(bag))] == [room[i].stamp_ns for i in mapped]


def test_a_node_that_fails_is_shown_with_its_log(tmp_path):
    with pytest.raises(RuntimeError, match=r"the node ended with status 1(.|\n)*did you mean 'queue.capacity'"):
        run_demo(tmp_path, WORLD, {"queue.capacitty": 3})


def test_an_unwritable_folder_is_named_before_the_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot write to the folder"):
        run_demo(tmp_path / "file" / "demo", WORLD)
