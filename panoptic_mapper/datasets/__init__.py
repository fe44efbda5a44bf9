"""Recorded and computed sequences, all behind the `Dataset` protocol; `open_dataset` opens any of them by name."""

from __future__ import annotations

from pathlib import Path

from panoptic_mapper.config import load_config
from panoptic_mapper.datasets.base import Dataset

SYNTHETIC = "synthetic"


def open_dataset(spec: str | Path) -> Dataset:
    """Opens a ScanNet-style folder, a rosbag (folder, .mcap or .db3), or the synthetic world.

    Args:
        spec: a path, or "synthetic", or "synthetic:key=value,..." with the fields of `SyntheticConfig`.

    Raises:
        ValueError: nothing of that kind is there, it is damaged or empty, or a setting is unknown.
    """
    name, _, settings = str(spec).partition(":")
    if name == SYNTHETIC:
        from panoptic_mapper.datasets.synthetic import SyntheticConfig, SyntheticRoom

        return SyntheticRoom(load_config(SyntheticConfig, overrides=[w for w in settings.split(",") if w]))
    path = Path(spec)
    if path.suffix in (".mcap", ".db3") or (path / "metadata.yaml").is_file():
        from panoptic_mapper.datasets.rosbag import RosbagDataset

        return RosbagDataset(path)
    if path.suffix == ".sens" or any(path.glob("*.sens")):
        from panoptic_mapper.datasets.scannet_scene import ScanNetScene

        return ScanNetScene(path)
    if (path / "color").is_dir():
        from panoptic_mapper.datasets.scannet_folder import ScanNetFolder

        return ScanNetFolder(path)
    what = "it holds none of them" if path.is_dir() else "there is no such folder"
    raise ValueError(
        f"{spec}: expected a ScanNet-style folder (with color/), a rosbag (a folder with metadata.yaml, a .mcap or a"
        f" .db3 file) or '{SYNTHETIC}[:key=value,...]'; {what}"
    )
