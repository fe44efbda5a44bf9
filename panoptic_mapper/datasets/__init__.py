"""Recorded and computed sequences, all behind the `Dataset` protocol; `open_dataset` opens any of them by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from panoptic_mapper.config import load_config
from panoptic_mapper.datasets.base import Dataset

SYNTHETIC = "synthetic"


@dataclass(frozen=True)
class Format:
    """A kind of sequence, and how it is known by what is on the disk."""

    name: str
    sign: str  # what is looked for, in words
    is_there: Callable[[Path], bool]
    reader: str  # module, and class or function, in this package; it is imported when it is needed


def _has(*names: str) -> Callable[[Path], bool]:
    return lambda path: all((path / name).exists() for name in names)


def _has_any(pattern: str) -> Callable[[Path], bool]:
    return lambda path: path.is_dir() and any(path.glob(pattern))


def _is_scannetpp(path: Path) -> bool:
    devices = ("iphone", "dslr")
    return any((path / device).is_dir() for device in devices) or (path.is_dir() and path.resolve().name in devices)


# The first that is there counts.
FORMATS = (
    Format(
        "a rosbag",
        "metadata.yaml, or a .mcap or .db3 file",
        lambda path: path.suffix in (".mcap", ".db3") or (path / "metadata.yaml").is_file(),
        "rosbag.RosbagDataset",
    ),
    Format("a plain folder", "sequence.yaml", _has("sequence.yaml"), "plain_folder.PlainFolder"),
    Format(
        "a ScanNet v2 scene",
        "a .sens file",
        lambda path: path.suffix == ".sens" or _has_any("*.sens")(path),
        "scannet_scene.ScanNetScene",
    ),
    Format("a ScanNet-style folder", "color/", lambda path: (path / "color").is_dir(), "scannet_folder.ScanNetFolder"),
    Format("a ScanNet++ scene", "iphone/ or dslr/", _is_scannetpp, "scannetpp.open_scannetpp"),
    Format("TUM RGB-D", "rgb.txt and depth.txt", _has("rgb.txt", "depth.txt"), "tum.TumSequence"),
    Format(
        "7-Scenes",
        "frame-000000.pose.txt, ...",
        lambda path: _has_any("frame-*.pose.txt")(path) or _has_any("seq-*/frame-*.pose.txt")(path),
        "seven_scenes.SevenScenesSequence",
    ),
    Format("ARKitScenes", "lowres_wide/", _has("lowres_wide"), "arkitscenes.ArkitRecording"),
    Format("Replica", "results/ and traj.txt", _has("results", "traj.txt"), "replica.ReplicaSequence"),
    Format("Replica", "traj_w_c.txt", _has("traj_w_c.txt"), "replica.ReplicaSequence"),
)


def open_dataset(spec: str | Path) -> Dataset:
    """Opens a recorded sequence of any of `FORMATS`, known by what is there, or the synthetic world.

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
    for format in FORMATS:
        if format.is_there(path):
            module, _, reader = format.reader.partition(".")
            return getattr(import_module(f"{__name__}.{module}"), reader)(path)
    known = "; ".join(f"{format.name} ({format.sign})" for format in FORMATS)
    what = "it holds none of them" if path.is_dir() else "there is no such folder"
    raise ValueError(f"{spec}: expected '{SYNTHETIC}[:key=value,...]' or a folder with: {known}; {what}")
