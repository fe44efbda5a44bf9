"""Opening datasets by name."""

import numpy as np
import pytest

from panoptic_mapper.datasets import FORMATS, open_dataset
from panoptic_mapper.datasets.rosbag import RosbagDataset
from panoptic_mapper.datasets.rosbag_writer import write_rosbag
from panoptic_mapper.datasets.scannet_folder import ScanNetFolder
from panoptic_mapper.datasets.synthetic import SyntheticConfig, SyntheticRoom

TINY = "width=16,height=12,num_frames=2"


def test_synthetic_with_and_without_settings():
    dataset = open_dataset(f"synthetic:seed=3,{TINY},depth_noise=0.01")
    assert isinstance(dataset, SyntheticRoom)
    assert dataset.config == SyntheticConfig(seed=3, width=16, height=12, num_frames=2, depth_noise=0.01)
    assert open_dataset("synthetic").config == SyntheticConfig()


def test_unknown_settings_are_named():
    with pytest.raises(ValueError, match="unknown key 'sed'; did you mean 'seed'"):
        open_dataset("synthetic:sed=3")
    with pytest.raises(ValueError, match="expected key=value, got 'seed'"):
        open_dataset("synthetic:seed")


def test_bags_as_folder_and_file(tmp_path):
    write_rosbag(open_dataset(f"synthetic:{TINY}"), tmp_path / "bag")
    for path in (tmp_path / "bag", tmp_path / "bag" / "bag.mcap"):
        assert isinstance(open_dataset(str(path)), RosbagDataset)


def test_scannet_folder(tmp_path):
    import cv2

    for sub in ("color", "depth", "pose", "intrinsic"):
        (tmp_path / sub).mkdir()
    cv2.imwrite(str(tmp_path / "color" / "0.png"), np.zeros((4, 6, 3), np.uint8))
    cv2.imwrite(str(tmp_path / "depth" / "0.png"), np.full((4, 6), 1000, np.uint16))
    np.savetxt(tmp_path / "pose" / "0.txt", np.eye(4))
    np.savetxt(tmp_path / "intrinsic" / "intrinsic_depth.txt", np.diag([5.0, 5, 1, 1]))
    dataset = open_dataset(tmp_path)
    assert isinstance(dataset, ScanNetFolder)
    assert dataset[0].depth[0, 0] == 1


def test_what_is_nothing_of_that_says_what_was_looked_for(tmp_path):
    with pytest.raises(ValueError, match=r"expected 'synthetic.*rosbag.*ScanNet-style.*it holds none of them") as error:
        open_dataset(tmp_path)
    for format in FORMATS:
        assert f"{format.name} ({format.sign})" in str(error.value)
    with pytest.raises(ValueError, match=r"missing: expected .* there is no such folder"):
        open_dataset(tmp_path / "missing")
    with pytest.raises(ValueError, match=r"missing.mcap: no such file"):
        open_dataset(tmp_path / "missing.mcap")
